"""localise on a small cohort, and what it says of bad input."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi_dbps.cohort.cohort import Cohort
from wsi_dbps.cohort.manifest import read_manifest, write_manifest
from wsi_dbps.core.errors import PredictionError, WsiDbpsError
from wsi_dbps.core.files import write_json
from wsi_dbps.core.geometry import TileGrid
from wsi_dbps.formats.attention import SlideAttention, read_attention
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.predictions import Prediction, Predictions, read_predictions
from wsi_dbps.metrics.pooling import pool_cases
from wsi_dbps.synth.cohort import lesion_geojson
from wsi_dbps.workflows.evaluate import evaluate
from wsi_dbps.workflows.localise import localise

ROOT = Path(__file__).parents[2]
CLASSES = ("0 flat", "1 coarse")
"""In this order here: slides that are flat are free of lesion."""


@pytest.fixture
def scene(small_cohort, tmp_path):
    """A manifest whose coarse slides have their corner annotated, and predictions of its test slides that see it."""
    records = []
    for record in read_manifest(small_cohort[0]).records:
        label = {"flat": "0 flat", "coarse": "1 coarse"}[record.label]
        drawn = None
        if record.label == "coarse":
            drawn = tmp_path / "drawn" / f"{record.slide_id}.geojson"
            write_json(drawn, lesion_geojson(np.array([[0, 0, 96, 96]])))
        records.append(replace(record, label=label, annotations=drawn, mpp_um=4.0))
    write_manifest(tmp_path / "cohort.csv", Cohort.of(records))
    for name, split in (("pred", "test"), ("val", "val")):
        rows = []
        for record in (record for record in records if record.split == split):
            cache, positive = PatchCache(small_cohort[1] / f"{record.slide_id}.h5"), record.label == "1 coarse"
            inside = (cache.grid.origins_lv0 < 96).all(axis=1)
            weights = np.where(inside, 4.0, 1.0) + 0.01 * np.arange(len(cache))
            p = 0.9 if positive else 0.2
            row = Prediction(record.slide_id, record.case_id, split, record.label, len(cache), (1 - p, p))
            rows.append(row)
            SlideAttention(
                slide_id=record.slide_id,
                prediction=row,
                classes=CLASSES,
                grid=TileGrid(cache.grid.origins_lv0, cache.grid.tile_lv0, cache.grid.slide_lv0, 4.0),
                logits_NR=np.log(weights)[:, None].astype(np.float32),
                weights_N=(weights / weights.sum()).astype(np.float32),
                role_N=np.zeros(len(cache), np.uint8),
                cache_fingerprint="c",
                checkpoint_fingerprint="k",
            ).write(tmp_path / name / "attention" / f"{record.slide_id}.h5")
        Predictions(CLASSES, tuple(rows), pool_cases(rows, CLASSES)).write_csv(tmp_path / name / "predictions.csv")
    return tmp_path


def test_attention_on_the_corner_is_located(scene, small_cohort) -> None:
    result = localise(scene / "pred", scene / "cohort.csv", val=scene / "val", bootstrap=50)
    assert result.summary.startswith("patch AUROC 1.000, Dice 1.000, FROC 1.000 (0.158 to 1.000) over 4 slides")
    found = json.loads((scene / "pred" / "localisation.json").read_text())
    assert (found, result.failed) == (result.numbers, ())
    assert found["num_slides"] == 4
    assert found["dice"]["threshold"] == 0.75  # 9 of 36 tiles are lesion
    assert found["dice_fixed"]["threshold"] == 0.9
    assert [row["lesion_share"] for row in found["slides"]] == [0, 0.25, 0, 0.25]
    for path in (scene / "pred" / "attention").glob("*.h5"):  # version 1, which does not say size and mpp of its slide
        with h5py.File(path, "r+") as file:
            file.attrs["format_version"] = 1
            del file.attrs["slide_size"], file.attrs["mpp_level0"]
    given = {"val": scene / "val", "bootstrap": 50}
    assert localise(scene / "pred", scene / "cohort.csv", scene / "by_slides", **given).numbers == found
    again = localise(scene / "pred", scene / "cohort.csv", scene / "out", caches=small_cohort[1], **given).numbers
    said = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs/formats/localisation.md").read_text(encoding="utf-8")))
    assert {*found, *found["dice"], *found["froc"], *found["slides"][0]} <= said
    assert again["patch_auroc"] == found["patch_auroc"]
    assert again["dice"] == found["dice"]
    assert again["reasons"]["froc"] == "no slide has a lesion that counts; those of isolated tumour cells do not"


def test_predictions_of_all_splits_are_parted_as_evaluate_does(scene) -> None:
    both = [read_predictions(scene / name / "predictions.csv") for name in ("pred", "val")]
    rows = [row for of in both for row in of.slides]
    Predictions(CLASSES, tuple(rows), pool_cases(rows, CLASSES)).write_csv(scene / "all" / "predictions.csv")
    for name in ("pred", "val"):
        shutil.copytree(scene / name / "attention", scene / "all" / "attention", dirs_exist_ok=True)
    found = localise(scene / "pred", scene / "cohort.csv", bootstrap=50, val=scene / "val").numbers
    whole = localise(scene / "all", scene / "cohort.csv", bootstrap=50).numbers
    assert whole["reasons"].pop("splits") == "4 predicted slides are not of split test and are left out"
    assert whole == found


def test_a_threshold_is_not_chosen_on_the_slides_it_is_judged_on(scene) -> None:
    assert "in validation and among the evaluated cases" in refused(scene, val=scene / "pred")


def test_attention_of_another_prediction_or_without_tile_size_is_named(scene) -> None:
    path = scene / "pred" / "attention" / "slide_00.h5"
    attention = read_attention(path)
    replace(attention, prediction=replace(attention.prediction, probabilities=(0.7, 0.3))).write(path)
    assert f"{path}: is not of the prediction in predictions.csv; predict again" in named(scene)
    replace(attention, grid=attention.grid.with_tile(float("nan"))).write(path)
    assert f"{path}: the features do not say how large a tile is" in named(scene)


def test_what_was_found_about_another_model_is_not_reported(scene) -> None:
    write_json(scene / "pred" / "predict.json", {"checkpoint_fingerprint": "one"})
    localise(scene / "pred", scene / "cohort.csv", scene / "truth", bootstrap=50)
    given = {"bootstrap": 50, "truth": scene / "truth"}
    evaluate(scene / "pred", scene / "report", **given)
    write_json(scene / "pred" / "predict.json", {"checkpoint_fingerprint": "two"})
    said = r"localisation.json: is about the heatmaps of another model \(one\) than the predictions \(two\)"
    with pytest.raises(PredictionError, match=said):
        evaluate(scene / "pred", scene / "report", **given)
    (scene / "pred" / "predict.json").unlink()
    assert evaluate(scene / "pred", scene / "report", **given).report.is_file()


def refused(scene, **options) -> str:
    """Why nothing can be measured at all."""
    with pytest.raises(WsiDbpsError) as error:
        localise(scene / "pred", scene / "cohort.csv", bootstrap=10, **options)
    return str(error.value)


def named(scene, **options) -> str:
    """The line about the one slide that cannot be used; the other three are measured."""
    found = localise(scene / "pred", scene / "cohort.csv", bootstrap=10, **options)
    (line,) = found.failed
    assert len(found.slides) == 3
    assert f"1 slides could not be measured and are missing: {line}" in found.summary
    assert json.loads(found.path.read_text())["failed"] == [line]
    return line


def test_the_code_in_the_page_of_annotations_runs(scene, small_cohort) -> None:
    record = read_manifest(scene / "cohort.csv").slides("slide_01").records[0]
    given = {"record": record, "cache": PatchCache(small_cohort[1] / "slide_01.h5")}
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/formats/annotations.md").read_text(encoding="utf-8"), re.S
    )
    exec(block, given)
    assert given["share"].sum() == 9


def test_annotations_that_cannot_be_used_are_named_and_the_other_slides_are_measured(scene) -> None:
    drawn = scene / "drawn" / "slide_01.geojson"
    write_json(drawn, lesion_geojson(np.array([[100, 100, 400, 150]])))
    said = named(scene)
    assert f"slide_01: {drawn}: annotations from (100, 100) to (400, 150) lie off the slide of 192 x 192 px" in said
    drawn.write_text("<ASAP_Annotations>")
    assert f"{drawn}: not annotations that can be used: no element found" in named(scene)
    drawn.write_text('{"type": "FeatureCollection", "features": [{}]}')
    assert f"{drawn}: not annotations that can be used: feature 0" in named(scene)
    drawn.write_text('{"type": "FeatureCollection", "features": []}')
    assert "holds no area of lesion, though the slide is labelled 1 coarse; empty its cell" in named(scene)
    drawn.unlink()
    assert f"{drawn}: annotations cannot be read: No such file" in named(scene)


def test_missing_attention_evidence_or_annotations_are_named(scene) -> None:
    assert "slide_00: its attention file holds no evidence; predict again" in refused(scene, score="evidence")
    assert "nothing is classified Necrosis; found: Tumor" in refused(scene, lesion="Necrosis")
    (scene / "pred" / "attention" / "slide_02.h5").unlink()
    assert "slide_02.h5: no such attention file; run `wsi-dbps predict` first" in named(scene)
    cohort = read_manifest(scene / "cohort.csv")
    write_manifest(scene / "cohort.csv", replace(cohort, records=cohort.records[1:]))
    assert "predicts slide_00, which is not in the cohort" in refused(scene)
    write_manifest(
        scene / "cohort.csv", replace(cohort, records=tuple(replace(r, annotations=None) for r in cohort.records))
    )
    said = refused(scene)
    assert f"{scene / 'cohort.csv'}: no slide has annotations; name their files in a column annotations" in said


def test_attention_of_another_slide_or_of_other_predictions_is_named(scene) -> None:
    folder = scene / "pred" / "attention"
    kept = (folder / "slide_01.h5").read_bytes()
    shutil.copy(folder / "slide_00.h5", folder / "slide_01.h5")
    assert f"{folder / 'slide_01.h5'}: holds slide 'slide_00'; predict again" in named(scene)
    (folder / "slide_01.h5").write_bytes(kept)
    changed = {"probabilities": [0.5, 0.5], "classes": '["1 coarse", "0 flat"]'}
    for name, value in changed.items():
        with h5py.File(folder / "slide_01.h5", "r+") as file:
            file.attrs[name] = value
        assert "slide_01.h5: is not of the prediction in predictions.csv" in named(scene)
        (folder / "slide_01.h5").write_bytes(kept)
    for value in (np.nan, 0.0):
        with h5py.File(folder / "slide_01.h5", "r+") as file:
            file.attrs["tile_lv0"] = value
        assert "slide_01.h5: the features do not say how large a tile is" in named(scene)
        (folder / "slide_01.h5").write_bytes(kept)
    with h5py.File(folder / "slide_01.h5", "r+") as file:
        file["coords"][0] = 10_000
    assert "slide_01: tiles lie outside the slide of 192 x 192 px; its attention is of another" in named(scene)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights", np.array([b"x"] * 36)),
        ("weights", np.zeros((36, 2))),
        ("logits", np.zeros(36)),
        ("evidence", np.zeros(36)),
        ("evidence", np.zeros((36, 3))),
        ("class_logits", np.zeros(3)),
        ("coords", np.zeros((36, 2))),
        ("role", -np.ones(36, np.int8)),
    ],
)
def test_attention_of_a_wrong_shape_or_kind_is_refused(scene, name, value) -> None:
    path = scene / "pred" / "attention" / "slide_01.h5"
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        file[name] = value
    with pytest.raises(PredictionError, match=rf"slide_01.h5: /{name} is .*; predict again"):
        read_attention(path)


@pytest.mark.parametrize(("name", "value"), [("classes", "3"), ("probabilities", 0.5), ("classes", "[")])
def test_attention_whose_attributes_are_none_is_refused(scene, name, value) -> None:
    path = scene / "pred" / "attention" / "slide_01.h5"
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(PredictionError, match=r"slide_01.h5: not a readable attention file: .*; predict again"):
        read_attention(path)


def test_a_seed_below_0_is_refused(scene) -> None:
    assert "seed at least 0" in refused(scene, seed=-1)


def test_a_manifest_of_positive_slides_alone_takes_none_for_free_of_lesion(scene) -> None:
    cohort = read_manifest(scene / "cohort.csv")
    coarse = [replace(r, annotations=None if r.slide_id == "slide_01" else r.annotations) for r in cohort.records]
    write_manifest(scene / "cohort.csv", Cohort.of(r for r in coarse if r.label == "1 coarse"))
    lines = (scene / "pred" / "predictions.csv").read_text().splitlines(keepends=True)
    (scene / "pred" / "predictions.csv").write_text(
        "".join(line for line in lines if "flat," not in line or "level" in line)
    )
    found = localise(scene / "pred", scene / "cohort.csv", bootstrap=10)
    assert (found.failed, "left out: slide_01" in found.summary) == ((), True)


def test_positive_slides_without_annotations_are_left_out_by_name(scene) -> None:
    cohort = read_manifest(scene / "cohort.csv")
    records = (replace(r, annotations=None) if r.slide_id == "slide_01" else r for r in cohort.records)
    write_manifest(scene / "cohort.csv", replace(cohort, records=tuple(records)))
    found = localise(scene / "pred", scene / "cohort.csv", bootstrap=10)
    assert "1 predicted slides are not annotated and left out: slide_01" in found.summary
    assert found.numbers["num_slides"] == len(found.slides) == 3


def test_the_command_names_a_slide_that_cannot_be_used_and_exits_with_1(scene, wsi_dbps) -> None:
    (scene / "pred" / "attention" / "slide_02.h5").write_bytes(b"damaged")
    code, out, err = wsi_dbps("localise", scene / "pred", scene / "cohort.csv", "--bootstrap", 10)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("slide_02: ")
    assert "over 3 slides" in out
