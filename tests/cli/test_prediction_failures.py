"""What fails is named, stands in the headline, and never mixes two runs: predict, heatmap and evaluate end to end."""

import csv
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.core.files import write_text
from wsi_dbps.formats.predictions import read_predicted, read_predictions

QUICK = [
    *("encoder.name=small_gn", "encoder.dim=16", "aggregator.num_heads=2", "training.epochs=1", "training.device=cpu"),
    *("selection.num_salient=3", "selection.num_subsalient=6", "selection.num_kept=12"),
]


@pytest.fixture
def one_bad(trained, tmp_path) -> tuple[Path, Path, Path]:
    """The same with the cache of the first test slide damaged."""
    manifest, caches, run = trained
    shutil.copytree(caches, tmp_path / "caches")
    (tmp_path / "caches" / "slide_00.h5").write_bytes(b"not HDF5")
    return manifest, tmp_path / "caches", run


# ---- slides that fail are not forgotten


def test_a_slide_that_failed_is_in_the_last_line_the_json_and_the_first_box(one_bad, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = one_bad
    assert wsi_dbps("predict", run, manifest, "--caches", caches, "--out", tmp_path / "pred")[0] == 1
    code, out, _ = wsi_dbps("evaluate", tmp_path / "pred", "--bootstrap", 50)
    assert code == 0
    said = "1 slide could not be predicted and is missing from every number: slide_00: "
    assert out.splitlines()[-1].startswith(said)
    metrics = json.loads((tmp_path / "pred" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["caveats"][0].startswith(said)
    assert [line.partition(":")[0] for line in metrics["failed_slides"]] == ["slide_00"]
    page = (tmp_path / "pred" / "report.html").read_text(encoding="utf-8")
    box = page.partition('<div class="headline flawed">')[2].partition('<ul class="caveats">')[0]
    assert said in box


def test_without_failures_and_leaks_the_headline_has_no_flaw(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    assert wsi_dbps("predict", run, manifest, "--caches", caches, "--out", tmp_path)[0] == 0
    code, out, _ = wsi_dbps("evaluate", tmp_path, "--bootstrap", 50)
    assert (code, len(out.splitlines())) == (0, 1)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["failed_slides"], metrics["leaked_cases"]) == ([], [])
    assert '<p class="flaw">' not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_leak_is_in_the_last_line_the_json_and_the_first_box(trained, tmp_path, wsi_dbps) -> None:
    """A manifest that calls training slides `test`: the numbers would look like a result."""
    manifest, caches, run = trained
    with open(manifest, newline="") as file:
        rows = [row | {"split": "test", "path": ""} for row in csv.DictReader(file)]
    with open(tmp_path / "all_test.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert wsi_dbps("predict", run, tmp_path / "all_test.csv", "--caches", caches, "--out", tmp_path / "pred")[0] == 0
    code, out, _ = wsi_dbps("evaluate", tmp_path / "pred", "--bootstrap", 50)
    said = "Leak: 16 of the 20 evaluated cases had been seen by the model in training or model selection"
    assert (code, out.splitlines()[-1].startswith(said)) == (0, True)
    metrics = json.loads((tmp_path / "pred" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["caveats"][0].startswith(said)
    assert metrics["leaked_cases"] == [f"case_{i:02d}" for i in range(4, 20)]
    page = (tmp_path / "pred" / "report.html").read_text(encoding="utf-8")
    assert said in page.partition('<div class="headline flawed">')[2].partition('<ul class="caveats">')[0]


# ---- the two files of a prediction


@pytest.mark.parametrize("newer", ["predictions.csv", "predict.json"])
def test_files_of_two_runs_of_predict_are_refused_and_mended_by_predicting_again(
    trained, tmp_path, wsi_dbps, newer
) -> None:
    """A kill between the two renames leaves one file of the old run beside one of the new."""
    manifest, caches, run = trained
    predict = ("predict", run, manifest, "--caches", caches, "--out")
    assert wsi_dbps(*predict, tmp_path / "pred", "--split", "val")[0] == 0
    assert wsi_dbps(*predict, tmp_path / "new")[0] == 0
    write_text(tmp_path / "pred" / newer, (tmp_path / "new" / newer).read_text())
    draw = (
        "heatmap",
        run,
        manifest,
        "--caches",
        caches,
        "--predictions",
        tmp_path / "pred",
        "--out",
        tmp_path / "maps",
    )
    for command in (("evaluate", tmp_path / "pred"), ("compare", tmp_path / "new", tmp_path / "pred"), draw):
        code, _, err = wsi_dbps(*command)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{tmp_path / 'pred'}: predictions.csv is not the table that predict.json was written with" in err
        assert "Predict again" in err
    assert wsi_dbps(*predict, tmp_path / "pred")[0] == 0
    assert wsi_dbps("evaluate", tmp_path / "pred", "--bootstrap", 50)[0] == 0
    assert {row.split for row in read_predicted(tmp_path / "pred").slides} == {"test"}


def test_a_table_changed_by_hand_is_refused_until_predict_json_is_deleted(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    assert wsi_dbps("predict", run, manifest, "--caches", caches, "--out", tmp_path)[0] == 0
    table = tmp_path / "predictions.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if "_03" not in line))
    with pytest.raises(PredictionError, match="if the change is intended, delete predict"):
        read_predicted(tmp_path)
    (tmp_path / "predict.json").unlink()
    assert len(read_predicted(tmp_path).slides) == 3


# ---- each slide fails alone, a damaged model at once


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
        return
    if how == "text":
        path.write_text("no cache")
        return
    with h5py.File(path, "r+") as file:
        if how == "no coords":
            del file["coords"]
        elif how == "coords are text":
            del file["coords"]
            file["coords"] = np.array([[b"a", b"b"]] * 36)


@pytest.mark.parametrize("how", ["missing", "text", "no coords", "coords are text"])
def test_a_damaged_cache_fails_alone_in_every_command(trained, tmp_path, wsi_dbps, how) -> None:
    manifest, caches, run = trained
    shutil.copytree(caches, tmp_path / "caches")
    damage(tmp_path / "caches" / "slide_02.h5", how)
    given = (run, manifest, "--caches", tmp_path / "caches", "--split", "test")
    for command, more in (
        ("predict", ("--out", tmp_path / "pred")),
        ("heatmap", ("--out", tmp_path / "maps", "--format", "csv")),
        ("faithfulness", ("--out", tmp_path / "truth", "--seeds", 2, "--orders", 1)),
    ):
        code, out, err = wsi_dbps(command, *given, *more)
        assert (code, "1 failed" in out) == (1, True), err
        assert [line for line in err.splitlines() if line.startswith("slide_02: ")]
        assert "Traceback" not in err
    assert len(read_predictions(tmp_path / "pred" / "predictions.csv").slides) == 3


def test_of_features_one_file_that_claims_too_many_rows_fails_alone_and_no_sheet_is_promised(
    trained, tmp_path, wsi_dbps
) -> None:
    manifest = trained[0]
    random, folder = np.random.default_rng(0), tmp_path / "features"
    folder.mkdir()
    for i in range(20):
        with h5py.File(folder / f"slide_{i:02d}.h5", "w") as file:
            file["features"] = random.normal(size=(9, 4)).astype(np.float32)
            file["coords"] = np.array([[x, y] for y in (0, 32, 64) for x in (0, 32, 64)])
            file["coords"].attrs.update(patch_size_level0=32, level0_width=192, level0_height=192)
    sets = [part for setting in QUICK if "encoder" not in setting for part in ("--set", setting)]
    run = ("train", manifest, "--caches", folder, "--out", tmp_path / "run", *sets, "--set", "encoder.name=projector")
    code, _, err = wsi_dbps(*run)
    assert code == 0, err
    with h5py.File(folder / "slide_01.h5", "w") as file:
        file.create_dataset("features", (10**15, 4), np.float32, chunks=(1024, 4))
        file.create_dataset("coords", (10**15, 2), np.int64, chunks=(1024, 2))
    code, out, err = wsi_dbps("predict", tmp_path / "run", manifest, "--caches", folder, "--out", tmp_path / "pred")
    assert (code, out.startswith("3 slides of 3 cases predicted, 1 failed")) == (1, True), err
    assert err.startswith("slide_01: ")
    draw = ("heatmap", tmp_path / "run", manifest, "--caches", folder, "--out", tmp_path / "maps")
    code, _, err = wsi_dbps(*draw, "--format", "csv", "--format", "sheet")
    assert (code, err.count("\n"), (tmp_path / "maps").exists()) == (2, 1, False)
    assert f"{tmp_path / 'run'}: was trained on features, which hold no pixels to show; leave out --format sheet" in err


def broken(run: Path, target: Path, how: str) -> Path:
    shutil.copytree(run, target)
    path = target / "best.pt"
    if how == "torn":
        path.write_bytes(path.read_bytes()[:-1000])
        return target
    content = torch.load(path, weights_only=True)
    name = "aggregator.head.bias"
    if how == "not finite":
        content["model"][name] += float("nan")
    elif how == "missing":
        del content["model"][name]
    elif how == "shape":
        content["model"][name] = torch.zeros(99)
    elif how == "no tensor":
        content["model"][name] = "text"
    torch.save(content, path)
    return target


@pytest.mark.parametrize("how", ["torn", "not finite", "missing", "shape", "no tensor"])
def test_a_damaged_checkpoint_ends_every_command_at_once(trained, tmp_path, wsi_dbps, how) -> None:
    manifest, caches, run = trained
    given = (broken(run, tmp_path / "run", how), manifest, "--caches", caches, "--out", tmp_path / "out")
    for command in ("predict", "heatmap", "faithfulness"):
        code, out, err = wsi_dbps(command, *given)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert str(tmp_path / "run" / "best.pt") in err


class Payload:
    """What a pickle would run when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_code_in_a_checkpoint_is_refused_and_not_run(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    shutil.copytree(run, tmp_path / "run")
    torch.save({"format": "wsi-dbps checkpoint", "model": Payload(tmp_path / "ran")}, tmp_path / "run" / "best.pt")
    code, _, err = wsi_dbps("predict", tmp_path / "run", manifest, "--caches", caches, "--out", tmp_path / "out")
    assert (code, err.count("\n"), "not a readable checkpoint" in err) == (2, 1, True)
    assert not (tmp_path / "ran").exists()


# ---- what is asked for


def test_predict_says_what_to_do_with_a_manifest_without_splits(trained, tmp_path, wsi_dbps) -> None:
    _, caches, run = trained
    bare = tmp_path / "bare.csv"
    bare.write_text("slide_id\nslide_00\nslide_01\n")
    given = ("predict", run, bare, "--caches", caches, "--out", tmp_path / "pred")
    code, _, err = wsi_dbps(*given)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{bare}: holds no slide of split test (no slide with a split, of 2 slides)" in err
    assert f"add --split all; to make splits run `wsi-dbps split {bare} --out splits.csv`" in err
    assert wsi_dbps(*given, "--split", "all")[0] == 0


def test_a_folder_of_folds_is_evaluated_and_compared_as_its_folds(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    predict = ("predict", run, manifest, "--caches", caches, "--out")
    for fold, split in enumerate(("test", "val")):
        assert wsi_dbps(*predict, tmp_path / "folds" / f"fold{fold}", "--split", split)[0] == 0
        path = tmp_path / "folds" / f"fold{fold}" / "predictions.csv"
        path.write_text(path.read_text().replace(",val,", ",test,"))
        (path.parent / "predict.json").unlink()
    code, out, _ = wsi_dbps("evaluate", tmp_path / "folds", "--bootstrap", 50)
    assert (code, "over 8 cases" in out) == (0, True)
    assert out.splitlines()[0].endswith(f": {tmp_path / 'folds' / 'report.html'}")
    assert list(json.loads((tmp_path / "folds" / "metrics.json").read_text())["folds"]) == ["fold0", "fold1"]
    code, out, _ = wsi_dbps("compare", tmp_path / "folds", tmp_path / "folds", "--bootstrap", 50)
    assert (code, "8 labelled cases" in out) == (0, True)
    code, _, err = wsi_dbps("compare", tmp_path / "folds", tmp_path / "folds", "--val-a", tmp_path / "folds" / "fold0")
    assert (code, "holds folds, each with a threshold of its own" in err) == (2, True)
