"""`wsi-dbps localise` and `wsi-dbps atlas` on a small cohort, and what each says of bad input."""

import csv
import glob
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from wsi_dbps.cohort.cohort import Cohort
from wsi_dbps.cohort.manifest import read_manifest, write_manifest
from wsi_dbps.core.errors import PredictionError
from wsi_dbps.core.files import write_json, write_text
from wsi_dbps.core.geometry import TileGrid
from wsi_dbps.core.settings import to_toml
from wsi_dbps.formats.attention import SlideAttention, read_attention
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.predictions import Prediction, Predictions, read_predictions
from wsi_dbps.formats.selection_record import VisitRecord, record_path, write_selection_record
from wsi_dbps.metrics.pooling import pool_cases
from wsi_dbps.synth.cohort import lesion_geojson
from wsi_dbps.training.settings import build_run_config

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


def test_attention_on_the_corner_is_located(scene, small_cohort, wsi_dbps) -> None:
    code, out, _ = wsi_dbps("localise", scene / "pred", scene / "cohort.csv", "--val", scene / "val", "--bootstrap", 50)
    assert code == 0
    assert out.startswith("patch AUROC 1.000, Dice 1.000, FROC 1.000 (0.158 to 1.000) over 4 slides")
    found = json.loads((scene / "pred" / "localisation.json").read_text())
    assert found["num_slides"] == 4
    assert found["dice"]["threshold"] == 0.75  # 9 of 36 tiles are lesion
    assert found["dice_fixed"]["threshold"] == 0.9
    assert [row["lesion_share"] for row in found["slides"]] == [0, 0.25, 0, 0.25]
    for path in (scene / "pred" / "attention").glob("*.h5"):  # version 1, which does not say size and mpp of its slide
        with h5py.File(path, "r+") as file:
            file.attrs["format_version"] = 1
            del file.attrs["slide_size"], file.attrs["mpp_level0"]
    localise = ("localise", scene / "pred", scene / "cohort.csv", "--val", scene / "val", "--bootstrap", 50)
    assert wsi_dbps(*localise, "--out", scene / "by_slides")[0] == 0
    assert json.loads((scene / "by_slides" / "localisation.json").read_text()) == found
    code, _, _ = wsi_dbps(
        *("localise", scene / "pred", scene / "cohort.csv", "--caches", small_cohort[1], "--val", scene / "val"),
        *("--bootstrap", 50, "--out", scene / "by_caches"),
    )
    assert code == 0
    again = json.loads((scene / "by_caches" / "localisation.json").read_text())
    said = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs/formats/localisation.md").read_text(encoding="utf-8")))
    assert {*found, *found["dice"], *found["froc"], *found["slides"][0]} <= said
    assert again["patch_auroc"] == found["patch_auroc"]
    assert again["dice"] == found["dice"]
    assert again["reasons"]["froc"] == "no slide has a lesion that counts; those of isolated tumour cells do not"


def test_predictions_of_all_splits_are_parted_as_evaluate_does(scene, wsi_dbps) -> None:
    both = [read_predictions(scene / name / "predictions.csv") for name in ("pred", "val")]
    rows = [row for of in both for row in of.slides]
    Predictions(CLASSES, tuple(rows), pool_cases(rows, CLASSES)).write_csv(scene / "all" / "predictions.csv")
    for name in ("pred", "val"):
        shutil.copytree(scene / name / "attention", scene / "all" / "attention", dirs_exist_ok=True)
    for pred, more in (("pred", ("--val", scene / "val")), ("all", ())):
        code, _, _ = wsi_dbps("localise", scene / pred, scene / "cohort.csv", "--bootstrap", 50, *more)
        assert code == 0
    found, whole = (json.loads((scene / name / "localisation.json").read_text()) for name in ("pred", "all"))
    assert whole["reasons"].pop("splits") == "4 predicted slides are not of split test and are left out"
    assert whole == found


def test_a_threshold_is_not_chosen_on_the_slides_it_is_judged_on(scene, wsi_dbps) -> None:
    assert "in validation and among the evaluated cases" in refused(wsi_dbps, scene, "--val", scene / "pred")


def test_attention_of_another_prediction_or_without_tile_size_is_named(scene, wsi_dbps) -> None:
    path = scene / "pred" / "attention" / "slide_00.h5"
    attention = read_attention(path)
    replace(attention, prediction=replace(attention.prediction, probabilities=(0.7, 0.3))).write(path)
    assert f"{path}: is not of the prediction in predictions.csv; predict again" in named(wsi_dbps, scene)
    replace(attention, grid=attention.grid.with_tile(float("nan"))).write(path)
    assert f"{path}: the features do not say how large a tile is" in named(wsi_dbps, scene)


def test_what_was_found_about_another_model_is_not_reported(scene, wsi_dbps) -> None:
    write_json(scene / "pred" / "predict.json", {"checkpoint_fingerprint": "one"})
    localise = ("localise", scene / "pred", scene / "cohort.csv", "--bootstrap", 50, "--out", scene / "truth")
    evaluate = ("evaluate", scene / "pred", "--bootstrap", 50, "--out", scene / "report", "--truth", scene / "truth")
    assert wsi_dbps(*localise)[0] == wsi_dbps(*evaluate)[0] == 0
    write_json(scene / "pred" / "predict.json", {"checkpoint_fingerprint": "two"})
    code, _, err = wsi_dbps(*evaluate)
    assert (code, err.count("\n")) == (2, 1)
    assert "localisation.json: is about the heatmaps of another model (one) than the predictions (two)" in err
    (scene / "pred" / "predict.json").unlink()
    assert wsi_dbps(*evaluate)[0] == 0


def refused(wsi_dbps, scene, *more) -> str:
    """The last line of what cannot be done at all; above it stands a line for each slide."""
    code, out, err = wsi_dbps("localise", scene / "pred", scene / "cohort.csv", *more)
    assert (code, out) == (2, "")
    return err.splitlines()[-1]


def named(wsi_dbps, scene, *more) -> str:
    """The line about the one slide that cannot be used; the other three are measured."""
    code, out, err = wsi_dbps("localise", scene / "pred", scene / "cohort.csv", "--bootstrap", 10, *more)
    assert (code, err.count("\n"), "over 3 slides" in out) == (1, 1, True)
    assert f"1 slides could not be measured and are missing: {err.strip()}" in out
    assert json.loads((scene / "pred" / "localisation.json").read_text())["failed"] == [err.strip()]
    return err


def test_the_code_in_the_page_of_annotations_runs(scene, small_cohort) -> None:
    record = read_manifest(scene / "cohort.csv").slides("slide_01").records[0]
    given = {"record": record, "cache": PatchCache(small_cohort[1] / "slide_01.h5")}
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/formats/annotations.md").read_text(encoding="utf-8"), re.S
    )
    exec(block, given)
    assert given["share"].sum() == 9


def test_annotations_that_cannot_be_used_are_named_and_the_other_slides_are_measured(scene, wsi_dbps) -> None:
    drawn = scene / "drawn" / "slide_01.geojson"
    write_json(drawn, lesion_geojson(np.array([[100, 100, 400, 150]])))
    said = named(wsi_dbps, scene)
    assert f"slide_01: {drawn}: annotations from (100, 100) to (400, 150) lie off the slide of 192 x 192 px" in said
    drawn.write_text("<ASAP_Annotations>")
    assert f"{drawn}: not annotations that can be used: no element found" in named(wsi_dbps, scene)
    drawn.write_text('{"type": "FeatureCollection", "features": [{}]}')
    assert f"{drawn}: not annotations that can be used: feature 0" in named(wsi_dbps, scene)
    drawn.write_text('{"type": "FeatureCollection", "features": []}')
    assert "holds no area of lesion, though the slide is labelled 1 coarse; empty its cell" in named(wsi_dbps, scene)
    drawn.unlink()
    assert f"{drawn}: annotations cannot be read: No such file" in named(wsi_dbps, scene)


def test_missing_attention_evidence_or_annotations_are_named(scene, wsi_dbps) -> None:
    assert "slide_00: its attention file holds no evidence; predict again" in refused(
        wsi_dbps, scene, "--score", "evidence"
    )
    assert "nothing is classified Necrosis; found: Tumor" in refused(wsi_dbps, scene, "--lesion", "Necrosis")
    (scene / "pred" / "attention" / "slide_02.h5").unlink()
    assert "slide_02.h5: no such attention file; run `wsi-dbps predict` first" in named(wsi_dbps, scene)
    cohort = read_manifest(scene / "cohort.csv")
    write_manifest(scene / "cohort.csv", replace(cohort, records=cohort.records[1:]))
    assert "predicts slide_00, which is not in the cohort" in refused(wsi_dbps, scene)
    write_manifest(
        scene / "cohort.csv", replace(cohort, records=tuple(replace(r, annotations=None) for r in cohort.records))
    )
    said = refused(wsi_dbps, scene)
    assert f"{scene / 'cohort.csv'}: no slide has annotations; name their files in a column annotations" in said


def test_attention_of_another_slide_or_of_other_predictions_is_named(scene, wsi_dbps) -> None:
    folder = scene / "pred" / "attention"
    kept = (folder / "slide_01.h5").read_bytes()
    shutil.copy(folder / "slide_00.h5", folder / "slide_01.h5")
    assert f"{folder / 'slide_01.h5'}: holds slide 'slide_00'; predict again" in named(wsi_dbps, scene)
    (folder / "slide_01.h5").write_bytes(kept)
    changed = {"probabilities": [0.5, 0.5], "classes": '["1 coarse", "0 flat"]'}
    for name, value in changed.items():
        with h5py.File(folder / "slide_01.h5", "r+") as file:
            file.attrs[name] = value
        assert "slide_01.h5: is not of the prediction in predictions.csv" in named(wsi_dbps, scene)
        (folder / "slide_01.h5").write_bytes(kept)
    for value in (np.nan, 0.0):
        with h5py.File(folder / "slide_01.h5", "r+") as file:
            file.attrs["tile_lv0"] = value
        assert "slide_01.h5: the features do not say how large a tile is" in named(wsi_dbps, scene)
        (folder / "slide_01.h5").write_bytes(kept)
    with h5py.File(folder / "slide_01.h5", "r+") as file:
        file["coords"][0] = 10_000
    assert "slide_01: tiles lie outside the slide of 192 x 192 px; its attention is of another" in named(
        wsi_dbps, scene
    )


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


def test_a_seed_below_0_is_refused(scene, wsi_dbps) -> None:
    assert "seed at least 0" in refused(wsi_dbps, scene, "--seed", -1)


def test_a_manifest_of_positive_slides_alone_takes_none_for_free_of_lesion(scene, wsi_dbps) -> None:
    cohort = read_manifest(scene / "cohort.csv")
    coarse = [replace(r, annotations=None if r.slide_id == "slide_01" else r.annotations) for r in cohort.records]
    write_manifest(scene / "cohort.csv", Cohort.of(r for r in coarse if r.label == "1 coarse"))
    lines = (scene / "pred" / "predictions.csv").read_text().splitlines(keepends=True)
    (scene / "pred" / "predictions.csv").write_text(
        "".join(line for line in lines if "flat," not in line or "level" in line)
    )
    code, out, err = wsi_dbps("localise", scene / "pred", scene / "cohort.csv", "--bootstrap", 10)
    assert (code, err) == (0, "")
    assert "left out: slide_01" in out


def test_positive_slides_without_annotations_are_left_out_by_name(scene, wsi_dbps) -> None:
    cohort = read_manifest(scene / "cohort.csv")
    records = (replace(r, annotations=None) if r.slide_id == "slide_01" else r for r in cohort.records)
    write_manifest(scene / "cohort.csv", replace(cohort, records=tuple(records)))
    code, out, _ = wsi_dbps("localise", scene / "pred", scene / "cohort.csv", "--bootstrap", 10)
    assert code == 0
    assert "1 predicted slides are not annotated and left out: slide_01" in out
    assert json.loads((scene / "pred" / "localisation.json").read_text())["num_slides"] == 3


@pytest.fixture
def run(small_cohort, tmp_path):
    """A run folder with the record of three epochs of two slides: the corner patch always, others in turn."""
    run = tmp_path / "run"
    cohort = read_manifest(small_cohort[0]).part("train")
    write_manifest(run / "cohort.csv", cohort)
    write_text(run / "run.toml", to_toml(build_run_config({}, "test")))
    for epoch in (1, 2, 3):
        visits = [
            VisitRecord(
                record.slide_id, place, False, np.ones(36, bool), np.array([0, epoch]), np.array([10, 11]),
                np.zeros((4, 2), np.float32),
            )
            for place, record in enumerate(cohort.records[:2])
        ]  # fmt: skip
        write_selection_record(record_path(run, epoch), epoch, visits)
    return run


def test_the_atlas_of_a_run(run, small_cohort, tmp_path, wsi_dbps) -> None:
    code, out, _ = wsi_dbps("atlas", run, "--caches", small_cohort[1], "--out", tmp_path / "atlas")
    assert (code, out) == (0, f"3 epochs of 2 slides, 2 of them drawn: {tmp_path / 'atlas'}\n")
    names = set(glob.glob("*", root_dir=tmp_path / "atlas"))
    pictures = {"churn_entropy.png", "slide_08.atlas.png", "slide_09.atlas.png"}
    assert names == {"atlas.csv", "atlas.json", *pictures}
    for name in pictures:
        with Image.open(tmp_path / "atlas" / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    found = json.loads((tmp_path / "atlas" / "atlas.json").read_text())
    said = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs/formats/atlas.md").read_text(encoding="utf-8")))
    assert {*found, *found["epochs"][1], *found["epochs"][1]["churn"]} <= said
    assert found["epochs"][1]["churn"] == {"q1": 0.5, "median": 0.5, "q3": 0.5}
    assert found["epochs"][0]["entropy"]["median"] == pytest.approx(1)
    assert "churn" not in found["epochs"][0]
    with open(tmp_path / "atlas" / "atlas.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    code, out, _ = wsi_dbps(
        *("atlas", run, "--caches", small_cohort[1], "--out", tmp_path / "one", "--slide", "slide_09")
    )
    assert (code, "1 of them drawn" in out) == (0, True)


def test_a_slide_whose_cache_is_damaged_is_named_and_the_others_are_drawn(
    run, small_cohort, tmp_path, wsi_dbps
) -> None:
    caches = tmp_path / "caches"
    shutil.copytree(small_cohort[1], caches)
    (caches / "slide_08.h5").write_bytes(b"no cache")
    code, out, err = wsi_dbps("atlas", run, "--caches", caches, "--out", tmp_path / "atlas")
    assert (code, out) == (1, f"3 epochs of 2 slides, 1 of them drawn, 1 failed: {tmp_path / 'atlas'}\n")
    assert err.startswith(f"slide_08: {caches / 'slide_08.h5'}: ")
    assert json.loads((tmp_path / "atlas" / "atlas.json").read_text())["slides"] == ["slide_09"]
    assert not (tmp_path / "atlas" / "slide_08.atlas.png").exists()


def test_bad_input_of_atlas_is_one_line(run, small_cohort, tmp_path, wsi_dbps) -> None:
    def refused(*more: object, caches=small_cohort[1]) -> str:
        code, _, err = wsi_dbps("atlas", run, "--caches", caches, "--out", tmp_path / "atlas", *more)
        assert code == 2
        assert not (tmp_path / "atlas").exists()
        return err.splitlines()[-1]

    assert "never trained on slide_00; the record is of training slides only" in refused("--slide", "slide_00")
    assert "slide_08.h5" in refused(caches=tmp_path / "none")
    settings = (run / "run.toml").read_text()
    write_text(run / "run.toml", to_toml(build_run_config({"patches": {"max_pen": 0.5}}, "test")))
    assert "made without --qc, so [patches] cannot filter it" in refused()  # the run's own filter is applied
    write_text(run / "run.toml", settings)
    (run / "selection" / "epoch_0002.npz").write_bytes(b"PK")
    assert "epoch_0002.npz: not a readable selection record" in refused()
    few = VisitRecord(
        "slide_08", 0, False, np.ones(35, bool), np.array([0]), np.array([1]), np.zeros((2, 1), np.float32)
    )
    shutil.rmtree(run / "selection")
    assert f"{run}: no selection record; train with training.record = true" in refused()
    write_selection_record(record_path(run, 1), 1, [few])
    assert "36 patches, where the run saw 35; give its own caches" in refused()
