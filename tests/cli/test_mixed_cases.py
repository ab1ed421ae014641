"""A patient with slides of two labels, as in CAMELYON17: refused where it would be learnt from, and yet predicted."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from wsi_dbps.formats.predictions import read_predictions

REFUSED = (
    "case 'p' has slides with different labels: 'flat' on slide slide_00, 'coarse' on slide slide_01. A label belongs"
)


@pytest.fixture
def mixed(small_cohort) -> Path:
    """A manifest whose first two slides, of both classes, are of one patient, dealt to folds."""
    with open(small_cohort[0], newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        row |= {"case_id": "p" if i < 2 else row["case_id"], "fold": str(i // 2 % 3)}
    path = small_cohort[0].parent / "mixed.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_split_and_train_refuse_it_before_anything_is_written(mixed, small_cohort, tmp_path, wsi_dbps) -> None:
    run = tmp_path / "run"
    for command in (
        ("split", mixed, "--out", tmp_path / "split.csv"),
        ("split", mixed, "--folds", 3, "--out", tmp_path / "split.csv"),
        ("train", mixed, "--caches", small_cohort[1], "--out", run),
        ("train", mixed, "--caches", small_cohort[1], "--out", run, "--folds", "all"),
    ):
        code, out, err = wsi_dbps(*command)
        assert (code, out) == (2, "")
        assert err.startswith(f"wsi-dbps: {REFUSED}")
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_its_slides_are_predicted_and_the_case_is_written_without_a_label(
    mixed, small_cohort, tmp_path, wsi_dbps
) -> None:
    small = ("encoder.name=small_gn", "encoder.dim=16", "aggregator.num_heads=2", "selection.num_salient=3")
    sets = [word for one in (*small, "training.epochs=1", "training.device=cpu") for word in ("--set", one)]
    assert wsi_dbps("train", small_cohort[0], "--caches", small_cohort[1], "--out", tmp_path / "run", *sets)[0] == 0
    code, out, err = wsi_dbps("predict", tmp_path / "run", mixed, "--caches", small_cohort[1], "--out", tmp_path / "p")
    assert (code, out.startswith("4 slides of 3 cases predicted, 0 failed")) == (0, True)
    assert "wsi-dbps: 1 cases, the first p, have slides with different labels; they are predicted, and written" in err
    found = read_predictions(tmp_path / "p" / "predictions.csv")
    assert {case.case_id: case.label for case in found.cases}["p"] is None
    assert [slide.label for slide in found.slides[:2]] == ["flat", "coarse"]
    assert wsi_dbps("evaluate", tmp_path / "p", "--out", tmp_path / "m")[0] == 0


def test_the_table_is_read_also_if_a_slide_with_one_of_the_labels_has_failed(
    mixed, small_cohort, tmp_path, wsi_dbps
) -> None:
    small = ("encoder.name=small_gn", "encoder.dim=16", "aggregator.num_heads=2", "selection.num_salient=3")
    sets = [word for one in (*small, "training.epochs=1", "training.device=cpu") for word in ("--set", one)]
    assert wsi_dbps("train", small_cohort[0], "--caches", small_cohort[1], "--out", tmp_path / "run", *sets)[0] == 0
    caches = tmp_path / "caches"
    shutil.copytree(small_cohort[1], caches)
    (caches / "slide_01.h5").write_bytes(b"damaged")
    code, out, _ = wsi_dbps("predict", tmp_path / "run", mixed, "--caches", caches, "--out", tmp_path / "p")
    assert (code, "1 failed" in out) == (1, True)
    found = read_predictions(tmp_path / "p" / "predictions.csv")
    assert [slide.slide_id for slide in found.slides] == ["slide_00", "slide_02", "slide_03"]
    assert wsi_dbps("evaluate", tmp_path / "p", "--out", tmp_path / "m")[0] == 0
