import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import average_precision_score

from wsi_dbps.metrics.metrics import MetricsConfig, evaluate
from wsi_dbps.metrics.perfect import parted_bounds, share_interval

FEW = MetricsConfig(num_bootstrap=200)


@given(st.integers(1, 500), st.sampled_from([0, 1]), st.floats(0.5, 0.999))
def test_the_interval_of_a_share_is_clopper_and_pearson_s(num, value, confidence):
    theirs = binomtest(num * value, num).proportion_ci(confidence, method="exact")
    assert share_interval(value, num, confidence) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize(("num_positive", "num_negative"), [(15, 15), (5, 40), (30, 8)])
def test_at_the_bound_cohorts_are_parted_as_often_as_said(num_positive, num_negative):
    low, _ = parted_bounds(num_positive, num_negative, 0.8)
    random = np.random.default_rng(0)
    positive = random.normal(size=(20_000, num_positive)) + np.sqrt(2) * norm.ppf(low)
    parted = positive.min(axis=1) > random.normal(size=(20_000, num_negative)).max(axis=1)
    assert parted.mean() == pytest.approx(0.1, abs=0.01)


def test_the_bound_of_average_precision_is_of_the_same_scores():
    auroc, auprc = parted_bounds(10, 40, 0.95)
    label = np.repeat([0, 1], [400_000, 100_000])
    score = np.random.default_rng(0).normal(size=len(label)) + np.sqrt(2) * norm.ppf(auroc) * label
    assert average_precision_score(label, score) == pytest.approx(auprc, abs=0.005)


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_more_cases_are_surer(num_positive, num_negative):
    low = parted_bounds(num_positive, num_negative, 0.95)
    assert all(0 < bound < 1 for bound in low)
    assert parted_bounds(num_positive + 5, num_negative + 5, 0.95)[0] > low[0]
    assert parted_bounds(num_positive, num_negative, 0.99)[0] < low[0]


def test_a_cohort_without_error_is_not_certain(scored):
    metrics = evaluate(scored(*[("normal", 0.1), ("tumor", 0.9)] * 15), FEW)
    for level in (metrics.cases, metrics.slides):
        assert level.scores["sensitivity"].low == pytest.approx(0.025 ** (1 / 15))
        assert level.scores["accuracy"].low == pytest.approx(0.025 ** (1 / 30))
        ends = level.scores["auroc"].low, level.scores["auprc"].low
        assert ends == pytest.approx(parted_bounds(15, 15, 0.95))
        assert {level.scores[name].high for name in ("sensitivity", "accuracy", "auroc", "auprc")} == {1}
        assert level.scores["kappa"].low is None
        assert level.reasons["interval.kappa"] == "every bootstrap sample of these cases gives the same value"


def test_no_case_found_is_not_certain_either(scored):
    level = evaluate(scored(*[("normal", 0.1), ("tumor", 0.2)] * 5), FEW).cases
    found = level.scores["sensitivity"]
    assert (found.low, found.value, found.high) == (0, 0, pytest.approx(1 - 0.025**0.2))


def test_a_class_parted_from_the_rest_has_its_bound(make_predictions):
    predictions = make_predictions(30, ("a", "b", "c"), skill=50)
    level = evaluate(predictions, FEW).cases
    num = level.class_counts["a"]
    assert level.class_auroc["a"].value == 1
    assert level.class_auroc["a"].low == pytest.approx(parted_bounds(num, 30 - num, 0.95)[0])
    assert "interval.auroc" in level.reasons
