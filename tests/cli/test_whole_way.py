"""From slides to heatmaps through the commands, on a small real cohort; and what each says of bad input."""

import csv
import glob
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_dbps.formats.attention import read_attention
from wsi_dbps.formats.predictions import read_predictions

QUICK = [
    *("--set", "encoder.name=small_gn", "--set", "encoder.dim=16", "--set", "aggregator.num_heads=2"),
    *("--set", "selection.num_salient=3", "--set", "selection.num_subsalient=6", "--set", "selection.num_kept=12"),
    *("--set", "training.epochs=1", "--set", "training.device=cpu"),
]


def altered(manifest: Path, target: Path, change) -> Path:
    """A copy of a manifest beside it, each row passed through `change`."""
    with open(manifest, newline="") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    path = manifest.parent / target
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_whole_way_from_slides_to_heatmaps(small_cohort, tmp_path, wsi_dbps) -> None:
    manifest, _ = small_cohort
    caches, run, pred, maps = (tmp_path / name for name in ("caches", "run", "pred", "maps"))
    tiling = ("--mpp", 1, "--size", 32, "--tissue", "none", "--workers", 2)
    code, out, _ = wsi_dbps("tile", manifest, "--out", caches, *tiling)
    assert (code, out.startswith("20 slides tiled (720 patches")) == (0, True)
    code, out, _ = wsi_dbps("tile", manifest, "--out", caches, *tiling)
    assert (code, "20 kept as they were" in out) == (0, True)
    code, out, _ = wsi_dbps("train", manifest, "--caches", caches, "--out", run, *QUICK)
    assert (code, out.startswith("best epoch 1 of 1: val AUROC")) == (0, True)
    code, out, _ = wsi_dbps("predict", run, manifest, "--caches", caches, "--out", pred)
    assert (code, out) == (0, f"4 slides of 4 cases predicted, 0 failed: {pred / 'predictions.csv'}\n")
    code, out, _ = wsi_dbps("evaluate", pred, "--out", tmp_path / "report")
    assert (code, out.startswith("AUROC ")) == (0, True)
    assert "auroc" in json.loads((tmp_path / "report" / "metrics.json").read_text())["cases"]["scores"]
    code, out, _ = wsi_dbps(
        *("heatmap", run, manifest, "--caches", caches, "--predictions", pred, "--split", "test", "--out", maps)
    )
    assert (code, out) == (0, f"4 slides drawn, 0 failed: {maps}\n")
    assert sorted(glob.glob("*", root_dir=maps)) == sorted(
        f"slide_{i:02d}.{suffix}" for i in range(4) for suffix in ("png", "geojson")
    )
    code, out, _ = wsi_dbps("evaluate", pred, "--out", tmp_path / "report", "--heatmaps", maps)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert code == 0
    for part in ("No case of train or val is among the 4 evaluated cases", '<section id="training">', 'id="map-0"'):
        assert part in page
    with Image.open(maps / "slide_00.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    code, out, _ = wsi_dbps(
        "inspect", caches / "slide_00.h5", run, run / "best.pt", pred, pred / "attention/slide_00.h5"
    )
    assert code == 0
    for what in ("patch cache", "run folder", "checkpoint", "predictions", "attention"):
        assert f"what         {what}" in out


def test_a_heatmap_shows_the_prediction_that_predict_wrote(trained, tmp_path, wsi_dbps) -> None:
    """Drawn from kept attention or computed anew, the numbers are those of predictions.csv to the last digit."""
    manifest, caches, run = trained
    wsi_dbps("predict", run, manifest, "--caches", caches, "--out", tmp_path / "pred", "--split", "all")
    assert (
        wsi_dbps("heatmap", run, manifest, "--caches", caches, "--out", tmp_path / "maps", "--slide", "slide_03")[0]
        == 0
    )
    (written,) = (r for r in read_predictions(tmp_path / "pred" / "predictions.csv").slides if r.slide_id == "slide_03")
    kept = read_attention(tmp_path / "pred" / "attention" / "slide_03.h5")
    anew = read_attention(tmp_path / "maps" / "attention" / "slide_03.h5")
    assert kept.prediction == anew.prediction == written
    assert np.array_equal(kept.weights_N, anew.weights_N)
    shown = json.loads((tmp_path / "maps" / "slide_03.geojson").read_text())
    weights = [feature["properties"]["measurements"]["attention"] for feature in shown["features"]]
    assert weights == pytest.approx(kept.weights_N.tolist(), rel=1e-6)


def test_attention_that_is_there_is_not_computed_again(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    draw = ("heatmap", run, manifest, "--caches", caches, "--out", tmp_path, "--slide", "slide_03")
    assert wsi_dbps(*draw)[0] == 0
    before = (tmp_path / "attention" / "slide_03.h5").stat().st_mtime_ns
    assert wsi_dbps(*draw)[0] == 0
    assert (tmp_path / "attention" / "slide_03.h5").stat().st_mtime_ns == before


def test_a_slide_is_predicted_alike_alone_in_company_and_without_labels(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    bare = altered(manifest, Path("bare.csv"), lambda row: {"slide_id": row["slide_id"]})
    wsi_dbps("predict", run, manifest, "--caches", caches, "--out", tmp_path / "a", "--split", "all")
    code, out, _ = wsi_dbps("predict", run, bare, "--caches", caches, "--out", tmp_path / "b", "--split", "all")
    assert (code, "20 slides of 20 cases predicted" in out) == (0, True)
    one = altered(
        manifest, Path("one.csv"), lambda row: row | {"split": "test" if row["slide_id"] == "slide_11" else ""}
    )
    wsi_dbps("predict", run, one, "--caches", caches, "--out", tmp_path / "c")
    first, second, third = (read_predictions(tmp_path / name / "predictions.csv") for name in "abc")
    assert [r.probabilities for r in first.slides] == [r.probabilities for r in second.slides]
    assert {r.label for r in second.slides} == {None}
    assert third.slides[0].probabilities == first.slides[11].probabilities


def test_predictions_without_labels_have_a_report_that_says_so(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    bare = altered(manifest, Path("bare.csv"), lambda row: {"slide_id": row["slide_id"]})
    wsi_dbps("predict", run, bare, "--caches", caches, "--out", tmp_path, "--split", "all")
    code, out, _ = wsi_dbps("evaluate", tmp_path)
    assert code == 0
    assert out.startswith("0 labelled cases, no AUROC (")


def test_split_writes_a_manifest_that_trains(small_cohort, tmp_path, wsi_dbps) -> None:
    manifest, caches = small_cohort
    code, out, _ = wsi_dbps("split", manifest, "--out", tmp_path / "split.csv", "--seed", 5)
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:7]] == [
        [split, label, n, n]
        for split, n in (("train", "6"), ("val", "2"), ("test", "2"))
        for label in ("coarse", "flat")
    ]
    code, out, _ = wsi_dbps("split", manifest, "--out", tmp_path / "folds.csv", "--folds", 4)
    assert code == 0
    train = ("train", tmp_path / "folds.csv", "--caches", caches, "--out", tmp_path / "run", "--fold", 2, *QUICK)
    assert wsi_dbps(*train)[0] == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    with open(tmp_path / "folds.csv", newline="") as file:
        fold = {row["slide_id"]: row["fold"] for row in csv.DictReader(file)}
    assert {fold[slide_id] for slide_id, *_ in run["caches"]["val"]} == {"3"}
    assert {fold[slide_id] for slide_id, *_ in run["caches"]["train"]} == {"0", "1"}


def test_slides_that_cannot_be_predicted_are_named_and_the_rest_is_done(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    bare = tmp_path / "caches"
    shutil.copytree(caches, bare)
    (bare / "slide_01.h5").unlink()
    (bare / "slide_02.h5").write_bytes((bare / "slide_02.h5").read_bytes()[:-500])
    code, out, err = wsi_dbps("predict", run, manifest, "--caches", bare, "--out", tmp_path / "pred")
    assert (code, out) == (1, f"2 slides of 2 cases predicted, 2 failed: {tmp_path / 'pred' / 'predictions.csv'}\n")
    assert f"slide_01: {bare / 'slide_01.h5'}: no such cache; run `wsi-dbps tile` first" in err
    assert f"slide_02: {bare / 'slide_02.h5'}: " in err
    assert "truncated file" in err
    code, out, _ = wsi_dbps("heatmap", run, manifest, "--caches", bare, "--out", tmp_path / "maps", "--split", "test")
    assert (code, out) == (1, f"2 slides drawn, 2 failed: {tmp_path / 'maps'}\n")


def test_a_run_that_is_still_training_is_predicted_with_and_said(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    shutil.copytree(run, tmp_path / "run")
    predict = ("predict", tmp_path / "run", manifest, "--caches", caches, "--out", tmp_path / "pred")
    code, _, err = wsi_dbps(*predict)
    assert (code, "has trained" in err) == (0, False)
    history = (tmp_path / "run" / "history.csv").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "history.csv").write_text("".join(history[:-1]))
    code, _, err = wsi_dbps(*predict)
    epochs = len(history) - 1
    assert code == 0
    assert f"{tmp_path / 'run'} has trained {epochs - 1} of {epochs} epochs; its best so far, epoch " in err


def refused(result: tuple[int, str, str], *parts: str) -> None:
    """Exit code 2, one line, and what it must hold."""
    code, _, err = result
    assert code == 2
    assert err.startswith("wsi-dbps: ")
    for part in parts:
        assert part in err, err
    assert "Traceback" not in err


def test_a_label_unknown_to_the_checkpoint_is_refused(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    other = altered(
        manifest, Path("other.csv"), lambda r: r | {"label": "grey" if r["slide_id"] == "slide_02" else r["label"]}
    )
    result = wsi_dbps("predict", run, other, "--caches", caches, "--out", tmp_path)
    refused(result, "has classes coarse, flat, but slide slide_02 is labelled 'grey' (1 such slides); mend the labels")


def test_caches_of_another_spec_than_the_checkpoint_are_refused_by_slide(trained, tmp_path, wsi_dbps) -> None:
    manifest, _, run = trained
    wsi_dbps("tile", manifest, "--out", tmp_path / "c", "--mpp", 1, "--size", 48, "--tissue", "none", "--workers", 1)
    code, _, err = wsi_dbps("predict", run, manifest, "--caches", tmp_path / "c", "--out", tmp_path / "pred")
    assert code == 1
    assert "slide_00.h5: holds patches of 48 px at 1 µm/px, where 32 px at 1 µm/px are wanted" in err


def test_attention_of_another_checkpoint_is_not_drawn(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    wsi_dbps("predict", run, manifest, "--caches", caches, "--out", tmp_path / "pred")
    wsi_dbps("train", manifest, "--caches", caches, "--out", tmp_path / "run", *QUICK, "--set", "training.seed=9")
    draw = ("--caches", caches, "--predictions", tmp_path / "pred", "--split", "test", "--out", tmp_path / "maps")
    code, _, err = wsi_dbps("heatmap", tmp_path / "run", manifest, *draw)
    assert code == 1
    assert "comes from another checkpoint than" in err


def test_what_cannot_be_met_is_one_line_and_exit_code_2(trained, tmp_path, wsi_dbps) -> None:
    manifest, caches, run = trained
    train = ("train", manifest, "--caches", caches, "--out", tmp_path / "run")
    refused(
        wsi_dbps(*train, "--set", "selection.num_salent=3"), "--set: unknown setting [selection] num_salent; known:"
    )
    refused(wsi_dbps(*train, "--config", tmp_path / "no.toml"), "no.toml: no such settings file")
    refused(wsi_dbps(*train, "--fold", 0), "the manifest has no fold column")
    refused(
        wsi_dbps("predict", tmp_path, manifest, "--caches", caches, "--out", tmp_path), "best.pt: no such checkpoint"
    )
    refused(wsi_dbps("predict", run, tmp_path / "no.csv", "--caches", caches, "--out", tmp_path), "no.csv")
    refused(wsi_dbps("evaluate", tmp_path), "predictions.csv: no such file; run `wsi-dbps predict` first")
    wsi_dbps("predict", run, manifest, "--caches", caches, "--out", tmp_path / "pred")
    refused(wsi_dbps("evaluate", tmp_path / "pred", "--run", caches), "holds no run (no run.json)")
    refused(wsi_dbps("evaluate", tmp_path / "pred", "--truth", caches), "holds none of localisation.json")
    leak = altered(manifest, Path("leak.csv"), lambda row: row | {"case_id": "one"})
    refused(wsi_dbps("train", leak, "--caches", caches, "--out", tmp_path / "run"), "case", "one")
    refused(
        wsi_dbps("heatmap", run, manifest, "--caches", caches, "--out", tmp_path, "--slide", "x"),
        "not in the cohort: x",
    )
    assert wsi_dbps("tile", manifest, "--out", caches, "--mpp", "fast")[0] == 2
    refused(wsi_dbps("tile", manifest, "--out", caches, "--overlap", 256), "overlap_px must lie in 0 .. size_px - 1")


def test_a_quick_demo_runs_to_its_table(tmp_path, wsi_dbps) -> None:
    code, out, _ = wsi_dbps("demo", tmp_path / "demo", "--slides", 16, "--epochs", 1)
    assert code == 0
    assert "slide AUROC" in out
    assert "attention on the lesion, mean patch AUROC of" in out
    assert "data:image/webp" in (tmp_path / "demo" / "report" / "report.html").read_text(encoding="utf-8")
    again, out, _ = wsi_dbps("demo", tmp_path / "demo", "--slides", 16, "--epochs", 1)
    assert (again, "16 kept as they were" in out) == (0, True)


def test_split_says_which_splits_of_the_manifest_it_changed(small_cohort, tmp_path, wsi_dbps) -> None:
    manifest, _ = small_cohort
    code, out, _ = wsi_dbps("split", manifest, "--out", tmp_path / "one.csv", "--seed", 5)
    assert code == 0
    assert f"{manifest} has splits of its own, and {tmp_path / 'one.csv'} has others: " in out
    _, out, _ = wsi_dbps("split", tmp_path / "one.csv", "--out", tmp_path / "two.csv", "--seed", 5)
    assert "splits of its own" not in out


def test_split_counts_slides_without_a_label_once(small_cohort, tmp_path, wsi_dbps) -> None:
    manifest, _ = small_cohort
    lines = manifest.read_text().splitlines()
    rows = [lines[0], *(line.replace("flat", "") if i < 2 else line for i, line in enumerate(lines[1:]))]
    (tmp_path / "some.csv").write_text("\n".join(rows).replace("slide_00.svs", "a.svs"))
    _, out, _ = wsi_dbps("split", tmp_path / "some.csv", "--out", tmp_path / "split.csv")
    assert [line.split() for line in out.splitlines() if "-" in line.split()] == [["-", "-", "1", "1"]]
