"""Deletion, insertion and drop seeds."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.core.errors import CheckpointError, PredictionError
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.inference.faithfulness import (
    FRACTIONS,
    FaithfulnessConfig,
    SlideFaithfulness,
    _deleted,
    _estimate,
    _inserted,
    _jaccard,
    _mean_correlation,
    measure_faithfulness,
)
from wsi_dbps.inference.predictor import check_same_patches
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import train
from wsi_dbps.training.settings import build_run_config

FEW = FaithfulnessConfig(num_random=2, num_seeds=3, num_bootstrap=200)


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_an_order_that_knows_the_lesion_beats_any_other(num, seed):
    """Where the prediction is the share of the lesion that is left, no order deletes or inserts it sooner."""
    random = np.random.default_rng(seed)
    lesion = random.random(num) < 0.3
    lesion[0] = True

    def probability(ids):
        return lesion[ids].sum() / lesion.sum()

    knowing, other = np.argsort(~lesion, kind="stable"), random.permutation(num)
    assert (np.array(_deleted(probability, knowing)) <= np.array(_deleted(probability, other)) + 1e-12).all()
    assert (np.array(_inserted(probability, knowing)) >= np.array(_inserted(probability, other)) - 1e-12).all()


def test_one_patch_always_stays():
    seen = []
    for curve in (_deleted, _inserted):
        curve(lambda ids: seen.append(len(ids)) or 0.0, np.arange(3))
    assert min(seen) == 1
    assert len(seen) == 2 * len(FRACTIONS)


def test_the_area_is_the_mean_gap():
    flat = np.full(len(FRACTIONS), 0.9)
    slide = SlideFaithfulness("s", "c", flat - 0.5, flat, flat, flat - 0.25, 0.0, 0.0, None, None)
    assert slide.deletion_area == pytest.approx(0.5)
    assert slide.insertion_area == pytest.approx(0.25)


def test_overlap_is_a_jaccard_index_where_there_is_one():
    assert _jaccard({1, 2}, {2, 3}) == pytest.approx(1 / 3)
    assert _jaccard(set(), set()) is None


def test_intervals_draw_cases_and_are_absent_for_one():
    flat = np.zeros(len(FRACTIONS))
    slides = [SlideFaithfulness(f"s{i}", f"c{i // 2}", flat, flat, flat, flat, 0, 0, None, None) for i in range(4)]
    assert _estimate(slides[:2], [1.0, 3.0], FEW) == {"value": 2.0}
    found = _estimate(slides, [1.0, 3.0, 5.0, 7.0], FEW)
    assert (found["low"], found["value"], found["high"]) == (2.0, 4.0, 6.0)


@pytest.fixture(scope="module")
def checkpoints(small_cohort, quick_settings, tmp_path_factory):
    from wsi_dbps.cohort.manifest import read_manifest

    made, cohort = [], read_manifest(small_cohort[0])
    for seed in (0, 1):
        config = build_run_config(quick_settings | {"training": quick_settings["training"] | {"seed": seed}}, "test")
        run = train(cohort, small_cohort[1], tmp_path_factory.mktemp("runs") / str(seed), config)
        made.append(load_checkpoint(run.checkpoint))
    return made


@pytest.mark.parametrize("score", ["attention", "evidence"])
def test_curves_begin_with_the_whole_slide_and_both_files_say_the_same_again(
    checkpoints, cohort, caches, tmp_path, score
):
    config = dataclasses.replace(FEW, score=score)
    part = cohort.part("test")
    of = measure_faithfulness(checkpoints, part, caches, tmp_path / "a", config, device="cpu")
    found, failed = of.slides, of.failed
    assert (len(found), failed) == (len(part), ())
    for slide in found:
        assert slide.deletion_F[0] == pytest.approx(slide.deletion_random_F[0])
        assert slide.deletion_F[0] >= 0.5 - 1e-6  # of the class that was predicted
        assert -1 <= slide.runs_rank_correlation <= 1
    measure_faithfulness(checkpoints, part, caches, tmp_path / "b", config, device="cpu")
    for name in ("faithfulness.json", "stability.json"):
        text = (tmp_path / "a" / name).read_text()
        assert text == (tmp_path / "b" / name).read_text()
        assert "NaN" not in text
    stable = json.loads((tmp_path / "a" / "stability.json").read_text())
    assert 0 <= stable["salient_overlap"]["low"] <= stable["salient_overlap"]["high"] <= 1
    assert stable["num_runs"] == 2


def test_scores_agree_with_themselves_and_with_nothing_that_is_even():
    score_N = np.array([3.0, 1.0, 2.0])
    assert _mean_correlation([score_N, score_N]) == pytest.approx(1)
    assert _mean_correlation([score_N, -score_N]) == pytest.approx(-1)
    assert _mean_correlation([score_N, np.ones(3)]) is None


def test_one_run_has_nothing_to_agree_with(checkpoints, cohort, caches, tmp_path):
    part = dataclasses.replace(cohort, records=cohort.part("test").records[:1])
    measure_faithfulness(checkpoints[:1], part, caches, tmp_path, FEW, device="cpu")
    reasons = json.loads((tmp_path / "stability.json").read_text())["reasons"]
    assert reasons["runs_rank_correlation"] == "a single run; give several to compare their scores"
    assert reasons["intervals"].endswith(": an interval needs two cases or more that differ")


def test_a_slide_without_cache_is_named_and_the_rest_go_on(checkpoints, cohort, caches, tmp_path):
    part = cohort.part("test")
    lost = dataclasses.replace(part.records[0], slide_id="lost", case_id="lost")
    some = dataclasses.replace(part, records=(lost, part.records[1]))
    of = measure_faithfulness(checkpoints[:1], some, caches, tmp_path, FEW, device="cpu")
    assert len(of.slides) == 1
    assert of.failed[0].startswith("lost: ")
    with pytest.raises(PredictionError, match="no heatmap could be tested; lost: "):
        measure_faithfulness(
            checkpoints[:1], dataclasses.replace(part, records=(lost,)), caches, tmp_path, FEW, device="cpu"
        )


def test_a_damaged_model_is_named(checkpoints, cohort, caches, tmp_path):
    state = {name: weights.clone() for name, weights in checkpoints[0].model_state.items()}
    state["aggregator.head.bias"] += float("nan")
    damaged = dataclasses.replace(checkpoints[0], model_state=state)
    with pytest.raises(CheckpointError, match=r"the weights aggregator.head.bias are not finite; the checkpoint is"):
        measure_faithfulness([damaged], cohort.part("test"), caches, tmp_path, FEW, device="cpu")


def test_runs_of_other_patches_cannot_be_compared(caches):
    grid = PatchCache(caches / "slide_00.h5").grid
    with pytest.raises(PredictionError, match="slide_00: the runs take different patches of it"):
        check_same_patches("slide_00", [grid, grid.take(np.arange(36) < 30)])


@pytest.mark.parametrize("wrong", [{"drop": 1.0}, {"num_seeds": 1}, {"num_random": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="drop lies between 0 and 1"):
        FaithfulnessConfig(**wrong)
