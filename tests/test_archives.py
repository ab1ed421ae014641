"""Files of earlier versions, kept in tests/archives, are read by the present code with equal results.

Only the command line is called here, and files are opened by h5py, csv, json, numpy and torch alone: how the package
is built does not matter. A value of an old file must be in the new one; what a new version adds is not compared.
"""

import csv
import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")

ARCHIVES = Path(__file__).parent / "archives"
VERSIONS = sorted(path.name for path in ARCHIVES.iterdir() if path.is_dir())
ROUNDING = 1e-5
"""How far a number in 0 .. 1 may move from one processor to another."""
TRAINING = 1e-4
"""The same after steps of training: a last bit may decide which patch is selected."""
NOT_COMPARED = {
    *("wsi_dbps_version", "torch_version", "made_with", "seconds", "data_wait"),
    *("predictions_fingerprint", "bytes"),  # the last digits of what was computed; the length of what libjpeg wrote
    "format_version",  # that a new version still reads the old one is what is tested
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """How sums are split among threads moves the last bit; the archives were made with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a version's archive, its checkpoints unpacked."""
    folder = tmp_path / "old"
    shutil.copytree(ARCHIVES / request.param, folder)
    for packed in folder.rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    return folder


@pytest.fixture
def done(wsi_dbps) -> Callable[..., str]:
    """Calls a command that has to succeed; its standard output."""

    def call(*arguments: object) -> str:
        code, out, err = wsi_dbps(*arguments)
        assert code == 0, f"wsi-dbps {' '.join(map(str, arguments))}\n{out}{err}"
        return str(out)

    return call


def content(path: Path) -> Any:
    """What a file holds, as plain values and arrays."""
    if path.suffix == ".h5":
        found: dict[str, Any] = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, node: found.update({name: node[:]} if isinstance(node, h5py.Dataset) else {}))
            for name in ("/", *found):
                found |= {f"{name}@{key}": value for key, value in file[name].attrs.items()}
        return found
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return [{key: as_number(cell) for key, cell in row.items()} for row in csv.DictReader(file)]
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True).numpy()
    if path.suffix in (".json", ".geojson"):
        return json.loads(path.read_text(encoding="utf-8"))
    return path.read_bytes()


def as_number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def differences(found: Any, kept: Any, where: str, within: float) -> list[str]:
    """Where a value that is in `kept` is another one in `found`, or not there."""
    if isinstance(kept, dict):
        names = [name for name in kept if name.rpartition("@")[2] not in NOT_COMPARED]
        lost = [f"{where}: {name} is missing" for name in names if name not in found]
        there = [name for name in names if name in found]
        return lost + [d for name in there for d in differences(found[name], kept[name], f"{where} {name}", within)]
    if isinstance(kept, list):
        if len(found) != len(kept):
            return [f"{where}: {len(found)} entries, in the archive {len(kept)}"]
        pairs = enumerate(zip(found, kept, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}[{i}]", within)]
    if isinstance(kept, str) and kept.startswith("/archive/"):  # the folder in which the archive was made
        same = str(found).endswith(kept.removeprefix("/archive"))
    elif isinstance(kept, (float, np.ndarray)) and np.asarray(kept).dtype.kind == "f":
        same = np.shape(found) == np.shape(kept) and np.allclose(found, kept, rtol=within, atol=within, equal_nan=True)
    else:
        same = np.array_equal(found, kept)
    return [] if same else [f"{where}: is {short(found)}, in the archive {short(kept)}"]


def short(value: Any) -> str:
    """The value on one line of a message."""
    shape = f"{value.shape} array " if isinstance(value, np.ndarray) else ""
    return f"{shape}{' '.join(repr(value).split())[:150]}"


def assert_as_kept(new: Path, archived: Path, *names: str, within: float = ROUNDING) -> None:
    """The files of these names (patterns) in `archived` are in `new` too, with equal values."""
    paths = [path for name in names for path in sorted(archived.glob(name))]
    assert len(paths) >= len(names), f"{archived} lacks one of {names}"
    lost = [f"{path}: not written" for path in paths if not (new / path.relative_to(archived)).exists()]
    assert not lost, "\n".join(lost)
    found = [(content(new / path.relative_to(archived)), content(path), path) for path in paths]
    wrong = [d for a, b, path in found for d in differences(a, b, str(path.relative_to(archived.parent)), within)]
    assert not wrong, "\n".join(wrong)


PREDICTED = ("predictions.csv", "predict.json", "attention/*.h5")


def test_an_old_run_and_old_caches_give_the_old_predictions_and_attention(old, tmp_path, done) -> None:
    predict = ("predict", old / "run", old / "cohort.csv", "--caches", old / "caches")
    for split, folder in (("test", "predictions"), ("val", "predictions_val")):
        done(*predict, "--split", split, "--out", tmp_path / folder)
        assert_as_kept(tmp_path / folder, old / folder, *PREDICTED)


def test_old_folds_and_old_features_give_the_old_predictions(old, tmp_path, done) -> None:
    predict = ("predict", old / "run_folds", old / "cohort.csv", "--caches", old / "features")
    done(*predict, "--folds", "all", "--out", tmp_path / "folds")
    assert_as_kept(tmp_path / "folds", old / "predictions_folds", *(f"*/{name}" for name in PREDICTED))
    done(*predict, "--out", tmp_path / "ensemble")
    assert_as_kept(tmp_path / "ensemble", old / "predictions_ensemble", *PREDICTED)


def test_old_features_with_clams_tensors_beside_are_read(old, tmp_path, done) -> None:
    one = ("predict", old / "run_folds" / "fold0", old / "one.csv", "--caches", old / "features_pt")
    done(*one, "--out", tmp_path / "new")
    new, kept = content(tmp_path / "new/predictions.csv"), content(old / "predictions_folds/fold0/predictions.csv")
    wrong = differences(new[0], kept[0], "predictions from features_pt", ROUNDING)
    assert not wrong, "\n".join(wrong)


def test_a_run_stopped_in_the_midst_of_an_epoch_ends_as_one_that_was_not(old, tmp_path, done) -> None:
    run, cohort, caches = old / "run_stopped", old / "cohort.csv", old / "caches"
    assert len(content(run / "history.csv")) == 1
    done("train", cohort, "--caches", caches, "--out", run, "--resume")
    assert_as_kept(run, old / "run", "history.csv", "run.json", "cohort.csv", "selection/*.npz", within=TRAINING)
    done("predict", run, cohort, "--caches", caches, "--out", tmp_path / "new")
    kept = content(old / "predictions" / "predictions.csv")
    assert not differences(content(tmp_path / "new/predictions.csv"), kept, "predictions of run_stopped", TRAINING)


def test_an_ended_run_goes_on_for_another_epoch(old, done) -> None:
    caches = ("--caches", old / "caches", "--out", old / "run")
    done("train", old / "cohort.csv", *caches, "--resume", "--set", "training.epochs=3")
    assert_as_kept(old / "run", old / "run_raised", "history.csv", "run.json", "selection/*.npz", within=TRAINING)


def test_old_settings_and_old_features_train_a_new_run(old, tmp_path, done) -> None:
    config = old / "run_folds" / "fold0" / "run.toml"
    features = ("--caches", old / "features", "--out", tmp_path / "run", "--fold", 0)
    done("train", old / "cohort.csv", *features, "--config", config)
    assert_as_kept(tmp_path / "run", old / "run_folds" / "fold0", "history.csv", within=TRAINING)


def test_old_predictions_have_the_old_metrics(old, tmp_path, done) -> None:
    bootstrap = ("--bootstrap", 50, "--out", tmp_path)
    done("evaluate", old / "predictions", "--val", old / "predictions_val", *bootstrap)
    assert_as_kept(tmp_path, old / "report", "metrics.json")


def test_old_predictions_of_folds_are_pooled_as_they_were(old, tmp_path, done) -> None:
    done("evaluate", old / "predictions_folds", "--bootstrap", 50, "--out", tmp_path)
    assert_as_kept(tmp_path, old / "report_folds", "metrics.json")


def test_old_predictions_compare_as_they_did(old, tmp_path, done, monkeypatch) -> None:
    monkeypatch.chdir(old)  # compare.json names the folders as they were given
    done("compare", "predictions", "predictions_ensemble", "--bootstrap", 50, "--out", tmp_path)
    assert_as_kept(tmp_path, old / "report", "compare.json")


def test_old_attention_agrees_with_annotations_as_it_did(old, tmp_path, done) -> None:
    val = ("--val", old / "predictions_val", "--bootstrap", 50, "--out", tmp_path)
    done("localise", old / "predictions", old / "cohort.csv", "--caches", old / "caches", *val)
    assert_as_kept(tmp_path, old / "report", "localisation.json")


def test_an_old_run_is_as_faithful_as_it_was(old, tmp_path, done) -> None:
    seeds = ("--orders", 2, "--seeds", 2, "--out", tmp_path)
    done("faithfulness", old / "run", old / "cohort.csv", "--caches", old / "caches", *seeds)
    assert_as_kept(tmp_path, old / "report", "faithfulness.json", "stability.json", within=1e-4)


def test_old_attention_is_drawn_as_it_was_and_not_computed_again(old, tmp_path, done) -> None:
    drawn = ("--predictions", old / "predictions", "--out", tmp_path / "new", "--format", "csv", "--format", "geojson")
    done("heatmap", old / "run", old / "cohort.csv", "--caches", old / "caches", *drawn)
    assert not (tmp_path / "new" / "attention").exists()
    assert_as_kept(tmp_path / "new", old / "heatmaps", "*.csv", "*.geojson")


def test_an_old_selection_record_has_the_old_atlas(old, tmp_path, done) -> None:
    done("atlas", old / "run", "--caches", old / "caches", "--out", tmp_path)
    assert_as_kept(tmp_path, old / "atlas", "atlas.csv", "atlas.json")


def test_old_caches_are_embedded_as_they_were(old, tmp_path, done) -> None:
    run = ("--caches", old / "caches", "--run", old / "run", "--device", "cpu", "--out")
    done("embed", old / "cohort.csv", *run, tmp_path / "h5")
    assert_as_kept(tmp_path / "h5", old / "features", "*.h5")
    done("embed", old / "one.csv", *run, tmp_path / "pt", "--format", "pt")
    assert_as_kept(tmp_path / "pt", old / "features_pt", "pt_files/*.pt", "h5_files/*.h5")
    done("embed", old / "one.csv", *run, tmp_path / "stamp", "--format", "stamp")
    assert_as_kept(tmp_path / "stamp", old / "features_stamp", "*.h5", within=1e-3)


def test_old_caches_are_exported_with_the_old_bytes(old, tmp_path, done) -> None:
    tar = ("--format", "tar", "--labels", old / "one.csv", "--out", tmp_path / "tar")
    done("export", old / "caches" / "s6.h5", "--max", 4, *tar)
    assert_as_kept(tmp_path / "tar", old / "exported", "labels.csv")
    new, kept = (members(folder / "s6.tar") for folder in (tmp_path / "tar", old / "exported"))
    wrong = differences(new, kept, "s6.tar", 0)
    assert not wrong, "\n".join(wrong)
    done("export", old / "caches" / "s7.h5", "--max", 4, "--format", "jpeg", "--out", tmp_path / "jpeg")
    assert_as_kept(tmp_path / "jpeg", old / "exported_folders", "s7/*.jpg", "s7/*.csv", "s7/*.json")


def members(path: Path) -> dict[str, Any]:
    """What a TAR holds: its JPEG files as bytes, its JSON files as tables."""
    with tarfile.open(path) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    return {name: json.loads(data) if name.endswith(".json") else data for name, data in found.items()}


TILINGS = {
    "caches": ("--qc", "--mpp", 6, "--size", 24),
    "caches_copied": ("--codec", "copy", "--mpp", 4, "--size", 32),
    "caches_given": ("--coords", "caches"),
}


def tile(old: Path, how: str, out: Path) -> tuple[object, ...]:
    options = tuple(old / "caches" if option == "caches" else option for option in TILINGS[how])
    return ("tile", old / "one.csv", "--out", out, "--no-sheet", *options)


@pytest.mark.parametrize("how", TILINGS)
def test_a_slide_is_tiled_as_it_was(old, tmp_path, done, how) -> None:
    """Another libjpeg may round otherwise: encoded patches are compared as pixels; copied ones are the same bytes."""
    done(*tile(old, how, tmp_path / "new"))
    name, new, kept = f"{how}/s6.h5", content(tmp_path / "new" / "s6.h5"), content(old / how / "s6.h5")
    by_pixels = ("qc/", "thumbnail") if how == "caches_copied" else ("qc/", "thumbnail", "patches/")
    exact = {key: value for key, value in kept.items() if not key.startswith(by_pixels)}
    measured = {key: value for key, value in kept.items() if key.startswith("qc/")}
    wrong = differences(new, exact, name, 0) + differences(new, measured, name, 0.05)
    (row,) = content(tmp_path / "new" / "tiling.csv")
    kept_row = next(row for row in content(old / how / "tiling.csv") if row["slide_id"] == "s6")
    wrong += differences(row, kept_row, f"{how}/tiling.csv", 0)
    assert not wrong, "\n".join(wrong)
    for i, (picture, kept_picture) in enumerate(zip(pictures(new), pictures(kept), strict=True)):
        assert np.abs(picture - kept_picture).max() <= 2, f"{name}: pixels of picture {i} (the last: the thumbnail)"


def pictures(cache: dict[str, Any]) -> list[np.ndarray]:
    """The patches and the thumbnail, decoded."""
    data, ends = cache["patches/data"], pairwise(cache["patches/offsets"])
    jpegs = [data[int(start) : int(end)] for start, end in ends] + [cache["thumbnail"]]
    return [np.asarray(Image.open(io.BytesIO(jpeg.tobytes()))).astype(int) for jpeg in jpegs]


def test_old_files_are_known_again_and_not_made_anew(old, done) -> None:
    """Tiled, embedded and exported into the folders that the old version wrote."""
    cohort, caches, run = old / "cohort.csv", ("--caches", old / "caches"), ("--run", old / "run", "--device", "cpu")
    for how in TILINGS:
        assert "1 kept as they were, 0 failed" in done(*tile(old, how, old / how)), how
    embed = ("embed", cohort, *caches, *run, "--out", old / "features")
    assert "10 kept as they were, 0 failed" in done(*embed), "features"
    for layout in ("pt", "stamp"):
        one = ("embed", old / "one.csv", *caches, *run, "--format", layout, "--out", old / f"features_{layout}")
        assert "1 kept as they were, 0 failed" in done(*one), f"features_{layout}"
    tar = ("--max", 4, "--format", "tar", "--labels", old / "one.csv", "--out", old / "exported")
    assert "1 kept as they were, 0 failed" in done("export", old / "caches" / "s6.h5", *tar), "exported"
    jpeg = ("--max", 4, "--format", "jpeg", "--out", old / "exported_folders")
    assert "1 kept as they were, 0 failed" in done("export", old / "caches" / "s7.h5", *jpeg), "exported_folders"


def test_old_outputs_are_replaced_as_our_own(old, done) -> None:
    """The hidden records of the old version still tell which files may be written over."""
    done("predict", old / "run", old / "cohort.csv", "--caches", old / "caches", "--out", old / "predictions")
    done("compare", old / "predictions", old / "predictions_ensemble", "--bootstrap", 50, "--out", old / "report")


def test_inspect_names_every_kind_of_old_file(old, done) -> None:
    kinds = {
        "cohort.csv": "cohort manifest",
        "lesion.geojson": "annotations",
        "slides/s6.tif": "slide (",
        "caches/s6.h5": "patch cache (version 1",
        "features/s6.h5": "features",
        "features_pt/h5_files/s6.h5": "features",
        "features_pt/pt_files/s6.pt": "features without coordinates",
        "features_stamp/s6.h5": "features (STAMP)",
        "run": "run folder",
        "run/best.pt": "checkpoint",
        "run_stopped/last.pt": "checkpoint",
        "run/selection/epoch_0001.npz": "selection record",
        "run_folds": "runs of `train --folds all`",
        "predictions": "predictions",
        "predictions_folds": "predictions of `predict --folds all`",
        "predictions/attention/s6.h5": "attention",
        "report/metrics.json": "metrics",
        "report/compare.json": "compar",
        "report/localisation.json": "localisation",
        "report/faithfulness.json": "faithfulness",
        "report/stability.json": "stability",
        "atlas/atlas.json": "selection atlas",
    }
    said = done("inspect", *(old / name for name in kinds)).splitlines()
    found = dict(pairwise(said))  # a path, and what it is in the line below
    wrong = [f"{name}: {found[str(old / name)]}" for name in kinds if kinds[name] not in found[str(old / name)]]
    assert not wrong, "\n".join(wrong)


def test_the_archives_are_small() -> None:
    for version in VERSIONS:
        assert sum(path.stat().st_size for path in (ARCHIVES / version).rglob("*") if path.is_file()) < 1_500_000
