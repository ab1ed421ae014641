from functools import partial

import numpy as np
import pytest
from scipy import stats
from scipy.special import logit
from sklearn.metrics import average_precision_score

from wsi_dbps.metrics.bootstrap import bca_interval, estimates, log_odds_interval
from wsi_dbps.metrics.delong import auroc_covariance
from wsi_dbps.metrics.metrics import MetricsConfig
from wsi_dbps.metrics.scores import Rows, auprc, auroc


def test_the_interval_is_that_of_scipy_where_there_is_one_class():
    """Of a mean, with the very samples that SciPy drew."""
    data = np.random.default_rng(0).exponential(size=25)
    theirs = stats.bootstrap((data,), np.mean, n_resamples=2000, method="BCa", random_state=1)
    left_out = (data.sum() - data) / (len(data) - 1)
    found = bca_interval(data.mean(), theirs.bootstrap_distribution, left_out, np.zeros(25, int), 0.95)
    assert found == pytest.approx(tuple(theirs.confidence_interval), abs=1e-6)


def test_two_classes_are_two_samples_as_in_scipy():
    random = np.random.default_rng(0)
    x, y = random.normal(1, 1, 20), random.normal(size=30)

    def share(a, b, axis=-1):
        return (a[..., :, None] > b[..., None, :]).mean(axis=(-2, -1))

    theirs = stats.bootstrap((x, y), share, n_resamples=999, method="BCa", vectorized=True, random_state=1)
    left_out = [share(np.delete(x, i), y) for i in range(20)] + [share(x, np.delete(y, j)) for j in range(30)]
    drawn, label = theirs.bootstrap_distribution, np.repeat([0, 1], [20, 30])
    found = bca_interval(share(x, y), drawn, np.array(left_out), label, 0.95)
    assert found == pytest.approx(tuple(theirs.confidence_interval), abs=1e-6)


def test_without_spread_the_interval_is_the_value():
    ones = np.ones(50)
    assert bca_interval(1.0, ones, ones[:4], np.array([0, 0, 1, 1]), 0.95) == (1, 1)


def test_every_weight_vector_has_the_class_counts_of_the_data():
    seen = []

    def record(weights_BN):
        seen.append(weights_BN)
        return weights_BN[:, 0]

    label = np.array([0, 0, 0, 1, 1])
    estimates({"first": record}, np.arange(5), label, MetricsConfig(num_bootstrap=100))
    once, drawn, left_out = seen
    assert (once == 1).all()
    assert (drawn[:, :3].sum(axis=1) == 3).all()
    assert (drawn[:, 3:].sum(axis=1) == 2).all()
    assert (left_out == 1 - np.eye(5)).all()


def test_on_log_odds_the_spread_is_the_jackknife_s():
    """Of a share, whose jackknife variance is p (1 - p) / (n - 1)."""
    right, label = np.repeat([1.0, 0.0], [14, 6]), np.zeros(20, int)
    compute = {"share": lambda weights_BN: weights_BN @ right / weights_BN.sum(axis=1)}
    found = estimates(compute, np.arange(20), label, MetricsConfig(num_bootstrap=20), on_log_odds=["share"])["share"]
    half = stats.norm.ppf(0.975) / np.sqrt(19 * 0.7 * 0.3)
    assert logit([found.low, found.high]) == pytest.approx([logit(0.7) - half, logit(0.7) + half])


def test_intervals_cover_the_true_value():
    """Binormal scores; tests/bench/coverage.py measures it with thousands of cohorts."""
    true, num, cohorts = {"auroc": 0.85}, 30, 300
    shift, random = np.sqrt(2) * stats.norm.ppf(0.85), np.random.default_rng(0)
    label, many = np.repeat([0, 1], num), np.repeat([0, 1], 200_000)
    true["auprc"] = average_precision_score(many, random.normal(size=len(many)) + shift * many)
    covered = {"auroc": 0, "auprc": 0, "delong": 0}
    for _ in range(cohorts):
        score = stats.norm.cdf(random.normal(size=2 * num) + shift * label)
        rows = Rows(label, np.stack([1 - score, score], 1), label, np.arange(2 * num), label)
        compute = {name: partial(of, rows=rows, c=1) for name, of in (("auroc", auroc), ("auprc", auprc))}
        found = estimates(compute, rows.case_N, label, MetricsConfig(num_bootstrap=400), on_log_odds=["auprc"])
        for name, estimate in found.items():
            covered[name] += estimate.low <= true[name] <= estimate.high
        low, high = log_odds_interval(*(v.item() for v in auroc_covariance(score[None], label == 1)), 0.95)
        covered["delong"] += low <= true["auroc"] <= high
    assert all(0.92 <= hits / cohorts <= 0.98 for hits in covered.values()), covered
