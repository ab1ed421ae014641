"""Several runs as one predictor, and the same slide whatever its company."""

import dataclasses
import shutil

import numpy as np
import pytest

from wsi_dbps.cohort.cohort import Cohort
from wsi_dbps.cohort.manifest import read_manifest, write_manifest
from wsi_dbps.core.errors import CacheError, PredictionError
from wsi_dbps.core.geometry import TileGrid
from wsi_dbps.formats.attention import attention_path, read_attention
from wsi_dbps.formats.predictions import read_predictions
from wsi_dbps.inference.predict import predict
from wsi_dbps.inference.predictor import together
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.folds import train_folds
from wsi_dbps.training.settings import build_run_config


@pytest.fixture(scope="module")
def made(small_cohort, quick_settings, tmp_path_factory):
    """A cohort of three folds, the runs of its folds, and what two of them predict alone and together."""
    folder, caches = tmp_path_factory.mktemp("ensemble"), small_cohort[1]
    records = read_manifest(small_cohort[0]).records
    cohort = Cohort.of(dataclasses.replace(r, extra={"fold": str(i // 2 % 3)}) for i, r in enumerate(records))
    write_manifest(folder / "cohort.csv", cohort)
    train_folds(cohort, caches, folder / "run", build_run_config(quick_settings, "test"))
    members = [load_checkpoint(folder / "run" / f"fold{k}" / "best.pt") for k in (0, 1)]
    some = dataclasses.replace(cohort, records=cohort.records[:4])
    for name, those in (("a", members[:1]), ("b", members[1:]), ("ab", members), ("ba", members[::-1])):
        predict(those, some, caches, folder / name, device="cpu")
    return folder, caches, some, members


def read(folder, record):
    return read_attention(attention_path(folder, record.slide_id))


def test_an_ensemble_is_the_mean_of_its_members_in_any_order(made):
    folder, _, some, _ = made
    for record in some.records:
        a, b, ab, ba = (read(folder / name, record) for name in ("a", "b", "ab", "ba"))
        assert np.allclose(ab.weights_N, (a.weights_N + b.weights_N) / 2, atol=1e-7)
        means = np.mean([a.prediction.probabilities, b.prediction.probabilities], axis=0)
        assert np.allclose(ab.prediction.probabilities, means, atol=1e-12)
        assert np.array_equal(ab.role_N == 1, (a.role_N == 1) | (b.role_N == 1))
        assert np.array_equal(ab.role_N == 0, (a.role_N == 0) & (b.role_N == 0))
        assert ab.logits_NR.shape == (len(ab.grid.origins_lv0), 4)
        assert ab.checkpoint_fingerprint == ba.checkpoint_fingerprint != a.checkpoint_fingerprint
        assert np.allclose(ab.evidence_NC, ba.evidence_NC)


def test_the_chosen_account_for_the_logits(made):
    folder, _, some, _ = made
    for record in some.records:
        found = read(folder / "a", record)
        total_C = found.evidence_NC[found.role_N > 0].sum(axis=0)
        assert np.allclose(total_C, found.class_logits_C - found.empty_logits_C, atol=1e-4)
        exp_C = np.exp(found.class_logits_C.astype(np.float64))
        assert np.allclose(exp_C / exp_C.sum(), found.prediction.probabilities, atol=1e-6)


def test_a_slide_is_predicted_alike_alone_and_in_company(made, tmp_path):
    folder, caches, some, members = made
    alone = dataclasses.replace(some, records=some.records[2:3])
    (row,) = predict(members[:1], alone, caches, tmp_path, device="cpu").predictions.slides
    assert row == read_predictions(folder / "a" / "predictions.csv").slides[2]
    assert np.array_equal(read(tmp_path, some.records[2]).logits_NR, read(folder / "a", some.records[2]).logits_NR)


def test_half_of_the_slides_without_labels_changes_nothing(made, tmp_path):
    folder, caches, some, members = made
    unlabelled = dataclasses.replace(
        some,
        records=tuple(dataclasses.replace(r, label=r.label if i % 2 else None) for i, r in enumerate(some.records)),
    )
    rows = predict(members[:1], unlabelled, caches, tmp_path, device="cpu").predictions.slides
    known = read_predictions(folder / "a" / "predictions.csv").slides
    assert [row.probabilities for row in rows] == [row.probabilities for row in known]


def test_runs_of_other_classes_are_no_ensemble(made, tmp_path):
    _, caches, some, members = made
    other = dataclasses.replace(members[1], classes=("a", "b"))
    with pytest.raises(PredictionError, match=r"has classes a, b, but .* an ensemble needs the same"):
        predict([members[0], other], some, caches, tmp_path, device="cpu")


def test_a_run_given_twice_or_a_folder_that_is_none_is_refused(made, tmp_path):
    folder, caches, some, members = made
    with pytest.raises(PredictionError, match=r"best.pt: the same checkpoint is given twice"):
        predict([members[0], members[0]], some, caches, tmp_path, device="cpu")
    with pytest.raises(CacheError, match=r"gone: no such folder of caches; run `wsi-dbps tile` first"):
        predict(members[:1], some, folder / "gone", tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_members_that_looked_at_other_patches_are_no_ensemble(made):
    folder, _, some, _ = made
    a, b = (read(folder / name, some.records[0]) for name in "ab")
    with pytest.raises(PredictionError, match="the runs take different patches"):
        together([a, dataclasses.replace(b, grid=TileGrid(b.grid.origins_lv0 + 1, b.grid.tile_lv0))])


def test_a_folder_of_folds_predicts_together_or_each_fold_its_own(made, tmp_path, wsi_dbps):
    folder, caches, _, _ = made
    folds_run, cohort = folder / "run", folder / "cohort.csv"
    code, out, _ = wsi_dbps(
        "predict", folds_run, cohort, "--caches", caches, "--out", tmp_path / "all", "--split", "all"
    )
    assert (code, "by 3 runs together" in out) == (0, True)
    code, _, _ = wsi_dbps(
        "predict", folds_run, cohort, "--caches", caches, "--out", tmp_path / "each", "--folds", "all"
    )
    assert code == 0
    folds = read_manifest(cohort).folds()
    for k in range(3):
        rows = read_predictions(tmp_path / "each" / f"fold{k}" / "predictions.csv").slides
        assert {row.slide_id for row in rows} == {slide for slide, fold in folds.items() if fold == k}
        assert {row.split for row in rows} == {"test"}
    code, _, err = wsi_dbps("predict", folds_run, cohort, "--caches", caches, "--out", tmp_path / "x", "--folds", "2")
    assert (code, err.count("\n")) == (2, 1)


def test_a_fold_is_told_by_its_folder_where_others_are_missing(made, tmp_path, wsi_dbps):
    folder, caches, _, _ = made
    for k in (0, 2):
        (tmp_path / "run" / f"fold{k}").mkdir(parents=True)
        for name in ("best.pt", "cohort.csv"):
            shutil.copy(folder / "run" / f"fold{k}" / name, tmp_path / "run" / f"fold{k}" / name)
    (tmp_path / "run" / "fold2-old").mkdir()
    code, _, err = wsi_dbps(
        *("predict", tmp_path / "run", folder / "cohort.csv", "--caches", caches, "--out", tmp_path / "each"),
        *("--folds", "all"),
    )
    assert code == 0
    assert "results on them are no test" not in err
    folds = read_manifest(folder / "cohort.csv").folds()
    for k in (0, 2):
        rows = read_predictions(tmp_path / "each" / f"fold{k}" / "predictions.csv").slides
        assert {folds[row.slide_id] for row in rows} == {k}
    assert not (tmp_path / "each" / "fold1").exists()
