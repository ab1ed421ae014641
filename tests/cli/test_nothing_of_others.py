"""No command replaces a file that it did not write, and two commands never write to one folder at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from wsi_dbps.core.output_folder import output_folder

QUICK = ("--set", "encoder.name=small_gn", "--set", "encoder.dim=16", "--set", "aggregator.num_heads=2",
         "--set", "selection.num_salient=3", "--set", "selection.num_subsalient=6", "--set", "selection.num_kept=12",
         "--set", "training.epochs=1", "--set", "training.device=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained[2]


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory) -> Path:
    from wsi_dbps.workflows.predict import predict

    manifest, caches, run = trained
    return predict(run, manifest, caches, tmp_path_factory.mktemp("others") / "pred").folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOREIGN = [
    ("train", "cohort.csv"),
    ("train", "run.toml"),
    ("train", "best.pt"),
    ("train --folds all", "folds.csv"),
    ("predict", "predictions.csv"),
    ("heatmap", "slide_00.geojson"),
    ("evaluate", "report.html"),
    ("compare", "compare.json"),
    ("faithfulness", "stability.json"),
    ("atlas", "atlas.csv"),
    ("embed", "slide_00.h5"),
    ("export", "slide_00.tar"),
    ("split", "split.csv"),
    ("tile", "tiling.csv"),
    ("tile", "contact-sheet.html"),
    ("demo", "cohort.csv"),
]


@pytest.fixture
def commands(small_cohort, run, predicted, tmp_path):
    """Each command as one would type it, with OUT as its output folder."""
    manifest, caches = small_cohort
    folds = tmp_path / "folds.csv"
    out = tmp_path / "out"
    of_run = (run, manifest, "--caches", caches, "--out", out)
    return out, folds, {
        "train": ("train", manifest, "--caches", caches, "--out", out, *QUICK),
        "train --folds all": ("train", folds, "--caches", caches, "--out", out, "--folds", "all", *QUICK),
        "predict": ("predict", *of_run),
        "heatmap": ("heatmap", *of_run, "--split", "test"),
        "evaluate": ("evaluate", predicted, "--out", out, "--bootstrap", 50),
        "compare": ("compare", predicted, predicted, "--out", out, "--bootstrap", 50),
        "faithfulness": ("faithfulness", *of_run, "--orders", 1, "--seeds", 2),
        "atlas": ("atlas", run, "--caches", caches, "--out", out),
        "embed": ("embed", manifest, "--caches", caches, "--out", out, "--run", run, "--overwrite"),
        "export": ("export", caches / "slide_00.h5", "--out", out, "--format", "tar", "--overwrite"),
        "split": ("split", manifest, "--out", out / "split.csv"),
        "tile": ("tile", manifest, "--out", out, "--mpp", 1, "--size", 32, "--tissue", "none", "--overwrite"),
        "demo": ("demo", out, "--slides", 12),
    }  # fmt: skip


@pytest.mark.parametrize(("command", "name"), FOREIGN)
def test_a_users_file_is_kept_whatever_the_command(commands, wsi_dbps, command: str, name: str) -> None:
    out, folds, typed = commands
    if "folds" in command:
        assert wsi_dbps("split", typed["train"][1], "--folds", 3, "--out", folds)[0] == 0
    out.mkdir()
    (out / name).write_text("mine")
    code, _, err = wsi_dbps(*typed[command])
    assert code in (1, 2)
    assert "Traceback" not in err
    assert any(f"{out / name}: " in line for line in err.splitlines()), err
    assert (out / name).read_text() == "mine"


def test_split_does_not_overwrite_the_manifest_that_it_reads(small_cohort, wsi_dbps, tmp_path) -> None:
    own = tmp_path / "cohort.csv"
    own.write_bytes(small_cohort[0].read_bytes())
    before = own.read_bytes()
    code, out, err = wsi_dbps("split", own, "--out", own)
    assert (code, out) == (2, "")
    assert err == (
        f"wsi-dbps: {own}: exists and was not written by wsi-dbps, so it is not replaced; move it away, or give "
        "another name or folder with --out\n"
    )
    assert own.read_bytes() == before
    assert wsi_dbps("split", own, "--out", tmp_path / "split.csv", "--seed", 1)[0] == 0
    assert wsi_dbps("split", own, "--out", tmp_path / "split.csv", "--seed", 2)[0] == 0


def test_split_does_not_overwrite_a_manifest_of_its_own_that_it_reads(small_cohort, wsi_dbps, tmp_path) -> None:
    dealt = tmp_path / "dealt.csv"
    assert wsi_dbps("split", small_cohort[0], "--out", dealt)[0] == 0
    before = dealt.read_bytes()
    code, _, err = wsi_dbps("split", dealt, "--out", dealt, "--test", 0.5)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{dealt}: is the table that is read" in err
    assert dealt.read_bytes() == before


@pytest.mark.parametrize("name", ["cohort.csv", "folds.csv"])
def test_training_in_the_folder_of_a_manifest_that_split_wrote_keeps_it(small_cohort, wsi_dbps, tmp_path, name) -> None:
    dealt, folds = tmp_path / name, ("--folds", 3) * (name == "folds.csv")
    assert wsi_dbps("split", small_cohort[0], "--out", dealt, *folds)[0] == 0
    before = dealt.read_bytes()
    flags = ("--folds", "all") * bool(folds)
    code, _, err = wsi_dbps("train", dealt, "--caches", small_cohort[1], "--out", tmp_path, *flags, *QUICK)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{dealt}: was written by `wsi-dbps split`" in err
    assert dealt.read_bytes() == before


def test_tile_does_not_replace_features_by_caches(small_cohort, run, wsi_dbps, tmp_path) -> None:
    manifest, caches = small_cohort
    assert wsi_dbps("embed", manifest, "--caches", caches, "--out", tmp_path, "--run", run)[0] == 0
    before = content(tmp_path)["slide_00.h5"]
    again = ("--mpp", 1, "--size", 32, "--tissue", "none", "--slide", "slide_00", "--overwrite")
    code, _, err = wsi_dbps("tile", manifest, "--out", tmp_path, *again)
    assert code == 1
    assert "slide_00.h5: holds features, which something else would replace" in err
    assert content(tmp_path)["slide_00.h5"] == before


def test_training_in_the_folder_of_the_manifest_keeps_the_manifest(small_cohort, wsi_dbps, tmp_path) -> None:
    """Version 0.1 replaced cohort.csv by the slides of train and val: the test slides were lost."""
    own = tmp_path / "cohort.csv"
    own.write_text(small_cohort[0].read_text().replace(",slide_", f",{small_cohort[0].parent}/slide_"))
    before = content(tmp_path)
    code, _, err = wsi_dbps("train", own, "--caches", small_cohort[1], "--out", tmp_path, *QUICK)
    assert code == 2
    assert f"{own}: exists and was not written by wsi-dbps" in err
    assert content(tmp_path) == before


ALL = ("train", "train --folds all", "predict", "heatmap", "evaluate", "compare", "faithfulness", "atlas", "embed",
       "export", "split", "tile", "demo")  # fmt: skip


@pytest.mark.parametrize("command", ALL)
def test_an_output_that_cannot_be_written_is_one_line(commands, wsi_dbps, small_disks, command: str) -> None:
    out, folds, typed = commands
    if "folds" in command:
        assert wsi_dbps("split", typed["train"][1], "--folds", 3, "--out", folds)[0] == 0
    (disk,) = small_disks([1 << 20])
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    moved = [str(argument).replace(str(out), str(disk / "out")) for argument in typed[command]]
    code, _, err = wsi_dbps(*moved)
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith(f"wsi-dbps: {disk}/out")
    assert last.endswith(": cannot be written: Read-only file system")
    assert "Traceback" not in err


@pytest.mark.parametrize("size", [4096, 20480])
@pytest.mark.parametrize("command", ALL[:-1])
def test_a_full_disk_is_one_line_whatever_the_command(commands, wsi_dbps, small_disks, command: str, size: int) -> None:
    out, folds, typed = commands
    if "folds" in command:
        assert wsi_dbps("split", typed["train"][1], "--folds", 3, "--out", folds)[0] == 0
    (disk,) = small_disks([size])
    moved = [str(argument).replace(str(out), str(disk / "out")) for argument in typed[command]]
    code, _, err = wsi_dbps(*moved)
    assert "Traceback" not in err
    if code:  # what a command writes may also fit
        assert code == 2
        assert err.splitlines()[-1].endswith(": cannot be written: No space left on device")
    assert not list(disk.rglob("*.wsi-dbps-part"))


WRITING = ("train", "train --folds all", "predict", "heatmap", "evaluate", "compare", "faithfulness", "atlas", "embed",
           "split", "demo")  # fmt: skip


@pytest.mark.parametrize("command", WRITING)
def test_a_second_command_is_told_who_is_at_its_folder(commands, wsi_dbps, command: str) -> None:
    out, folds, typed = commands
    if "folds" in command:
        assert wsi_dbps("split", typed["train"][1], "--folds", 3, "--out", folds)[0] == 0
    hold = (
        "import sys; from pathlib import Path; from wsi_dbps.core.output_folder import output_folder as hold\n"
        "with hold(Path(sys.argv[1]), 'predict'): print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        code, _, err = wsi_dbps(*typed[command])
    finally:
        other.communicate()
    assert code == 2
    assert err.splitlines()[-1].startswith(
        f"wsi-dbps: {out}: another command, `wsi-dbps predict` (process {other.pid} on "
    )
    assert not out.exists()


def test_the_record_of_a_folder_stays_out_of_sight_of_what_reads_it(run, predicted, small_cohort, wsi_dbps) -> None:
    with output_folder(predicted, "evaluate"):
        pass
    assert wsi_dbps("evaluate", predicted, "--bootstrap", 50)[0] == 0
    assert wsi_dbps("inspect", predicted, run)[0] == 0
