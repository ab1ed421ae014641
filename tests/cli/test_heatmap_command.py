"""`wsi-dbps heatmap`: every format from attention that is kept, and what it says of what cannot be drawn."""

import csv
import glob
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiffslide
from PIL import Image

from wsi_dbps.drawing.closeup import FOOT_PX
from wsi_dbps.formats.attention import read_attention

ALL = [part for name in ("png", "ome-tiff", "geojson", "sheet", "csv") for part in ("--format", name)]


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory) -> tuple[Path, Path, Path, Path]:
    """(run, cohort.csv, caches, predictions with evidence)"""
    from wsi_dbps.workflows.predict import predict

    manifest, caches, run = trained
    pred = tmp_path_factory.mktemp("drawn") / "pred"
    predict(run, manifest, caches, pred)
    for path in (pred / "attention").glob("*.h5"):
        attention = read_attention(path)
        n = len(attention.grid.origins_lv0)
        evidence = np.stack([np.linspace(1, -1, n), np.linspace(-1, 1, n)], axis=1)
        replace(attention, evidence_NC=evidence.astype(np.float32)).write(path)
    return run, manifest, caches, pred


def test_every_format_is_drawn_without_opening_a_slide(predicted, tmp_path, wsi_dbps) -> None:
    run, manifest, caches, pred = predicted
    moved = tmp_path / "cohort.csv"
    with open(manifest, newline="") as file:
        rows = [row | {"path": "gone.svs"} for row in csv.DictReader(file)]
    with open(moved, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    maps = tmp_path / "maps"
    draw = ("heatmap", run, moved, "--caches", caches, "--predictions", pred, "--out", maps, "--slide", "slide_00")
    code, out, _ = wsi_dbps(*draw, *ALL, "--smooth", 30, "--values", "evidence")
    assert (code, out) == (0, f"1 slides drawn, 0 failed: {maps}\n")
    endings = ("png", "ome.tiff", "rgb.ome.tiff", "geojson", "sheet.png", "csv")
    assert set(glob.glob("*", root_dir=maps)) == {f"slide_00.{e}" for e in endings}
    attention = read_attention(pred / "attention" / "slide_00.h5")
    with open(maps / "slide_00.csv", newline="") as file:
        table = list(csv.DictReader(file))
    np.testing.assert_array_equal(
        np.array([row[f"evidence_{attention.classes[1]}"] for row in table], np.float32), attention.evidence_NC[:, 1]
    )
    features = json.loads((maps / "slide_00.geojson").read_text())["features"]
    assert len(features) == len(table) == 36
    with tiffslide.TiffSlide(maps / "slide_00.rgb.ome.tiff") as picture:
        coloured = picture.read_region((0, 0), 0, picture.dimensions, as_array=True).astype(int)
    assert coloured[0, 0, 2] > coloured[0, 0, 0]  # evidence rises from against to for, row by row of tiles
    assert coloured[-1, -1, 0] > coloured[-1, -1, 2]


def test_the_slides_predicted_are_drawn_where_no_others_are_asked_for(predicted, tmp_path, wsi_dbps) -> None:
    run, manifest, caches, pred = predicted
    num = sum(line.startswith("slide,") for line in (pred / "predictions.csv").read_text().splitlines())
    draw = ("heatmap", run, manifest, "--caches", caches, "--predictions", pred, "--format", "csv", "--out", tmp_path)
    code, out, _ = wsi_dbps(*draw)
    assert (code, out) == (0, f"{num} slides drawn, 0 failed: {tmp_path}\n")


def test_levels_and_crops_read_the_slide(predicted, tmp_path, wsi_dbps) -> None:
    run, manifest, caches, pred = predicted
    draw = ("heatmap", run, manifest, "--caches", caches, "--predictions", pred, "--out", tmp_path)
    one = ("--slide", "slide_00", "--format", "csv")
    assert wsi_dbps(*draw, *one, "--overlay-level", 0)[0] == 0
    with Image.open(tmp_path / "slide_00.level0.png") as picture:
        assert picture.size == (640, 192 + FOOT_PX)
    assert wsi_dbps(*draw, *one, "--crops", 2)[0] == 0
    with Image.open(tmp_path / "slide_00.level0.crop1.png") as picture:
        assert picture.size == (640, 192 + FOOT_PX)
    assert len(list(tmp_path.glob("*.crop*.png"))) == 1  # the first shows all there is
    code, _, err = wsi_dbps(*draw, *one, "--overlay-level", 2)
    assert (code, err) == (1, "slide_00: has no level 2; its levels are 0 to 0\n")


def test_another_slide_under_the_same_name_or_none_is_refused(predicted, tmp_path, wsi_dbps) -> None:
    run, manifest, caches, pred = predicted
    other = tmp_path / "other.csv"
    other.write_text(f"slide_id,path\nslide_00,{manifest.parent / 'slide_01.svs'}\nslide_01,\n")
    draw = ("heatmap", run, other, "--caches", caches, "--predictions", pred, "--out", tmp_path, "--crops", 1)
    code, _, err = wsi_dbps(*draw, "--format", "csv")
    assert code == 1
    first, second = err.splitlines()
    assert "slide_01.svs: is not the file that" in first
    assert first.endswith("slide_00.h5 was made from; mend the path")
    assert second == "slide_01: no path in the manifest; --overlay-level and --crops read the slide itself"


def test_what_is_missing_is_one_line(predicted, tmp_path, wsi_dbps) -> None:
    run, manifest, caches, pred = predicted
    draw = ("heatmap", run, manifest, "--caches", caches, "--out", tmp_path / "maps", "--slide", "slide_00")

    def fails(*flags: object) -> str:
        code, _, err = wsi_dbps(*draw, *flags)
        assert (code, err.count("\n")) == (1, 1), err
        return err

    replace(read_attention(pred / "attention" / "slide_00.h5"), evidence_NC=None).write(
        tmp_path / "attention" / "slide_00.h5"
    )
    said = fails("--predictions", tmp_path, "--values", "evidence", "--format", "ome-tiff")
    assert said == (
        "slide_00: its attention file holds no evidence by class; predict again, or ask for --values raw or "
        "percentile\n"
    )
    empty = ("heatmap", run, manifest, "--caches", tmp_path, "--out", tmp_path / "maps", "--slide", "slide_00")
    code, _, err = wsi_dbps(*empty, "--predictions", pred)
    assert (code, err.count("\n"), "slide_00.h5: no such" in err) == (1, 1, True), err
    code, _, err = wsi_dbps(*draw, "--smooth", -1)
    assert code == 2


def test_predictions_of_folds_are_drawn_one_fold_at_a_time(predicted, tmp_path, wsi_dbps) -> None:
    run, manifest, caches, pred = predicted
    for fold in (0, 1):
        (tmp_path / "folds").mkdir(exist_ok=True)
        (tmp_path / "folds" / f"fold{fold}").symlink_to(pred)
    folds = tmp_path / "folds"
    said = (
        f"wsi-dbps: {folds}: holds the predictions of several folds (fold0, fold1); give one of them: {folds}/fold0\n"
    )
    draw = ("heatmap", run, manifest, "--caches", caches, "--predictions", folds, "--out", tmp_path / "maps")
    for more in ((), ("--split", "test")):
        assert wsi_dbps(*draw, *more) == (2, "", said)
    assert wsi_dbps("localise", folds, manifest) == (2, "", said)
