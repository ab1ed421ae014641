import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from wsi_dbps.metrics.bootstrap import log_odds_interval
from wsi_dbps.metrics.delong import auroc_covariance, paired_test

few = st.integers(0, 5)  # few distinct scores, so that ties are common


def by_definition(scores, positive):
    """AUROCs and covariance from every pair of a positive case and another, one after the other."""
    x, y = [s[positive] for s in scores], [s[~positive] for s in scores]
    m, n = positive.sum(), (~positive).sum()
    psi = np.zeros((len(scores), m, n))
    for r in range(len(scores)):
        for i in range(m):
            for j in range(n):
                psi[r, i, j] = 1.0 if y[r][j] < x[r][i] else 0.5 if y[r][j] == x[r][i] else 0.0
    aurocs = [psi[r].sum() / (m * n) for r in range(len(scores))]
    covariance = np.zeros((len(scores), len(scores)))
    for r in range(len(scores)):
        for s in range(len(scores)):
            s10 = sum((psi[r, i].mean() - aurocs[r]) * (psi[s, i].mean() - aurocs[s]) for i in range(m)) / (m - 1)
            s01 = sum((psi[r, :, j].mean() - aurocs[r]) * (psi[s, :, j].mean() - aurocs[s]) for j in range(n)) / (n - 1)
            covariance[r, s] = s10 / m + s01 / n
    return np.array(aurocs), covariance


@st.composite
def scored_cases(draw):
    positives, others = draw(st.integers(2, 8)), draw(st.integers(2, 8))
    num = positives + others
    scores = np.array([draw(st.lists(few, min_size=num, max_size=num)) for _ in range(2)], float)
    return scores, np.array(draw(st.permutations([True] * positives + [False] * others)))


@settings(deadline=None)
@given(scored_cases())
def test_midranks_give_what_all_pairs_give(made):
    found, expected = auroc_covariance(*made), by_definition(*made)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-12)


@settings(deadline=None)
@given(scored_cases())
def test_the_paired_test_is_that_of_the_definition(made):
    (a, b), covariance = by_definition(*made)
    variance = np.array([-1, 1]) @ covariance @ [-1, 1]
    assume(variance > 1e-12)
    found = paired_test(*made[0], made[1], 0.95)
    z = (b - a) / np.sqrt(variance)
    expected = (a, b, b - a, z, 2 * stats.norm.sf(abs(z)))
    assert (found.a, found.b, found.difference, found.z, found.p) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    half = stats.norm.ppf(0.975) * np.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((max(-1, b - a - half), min(1, b - a + half)))


@settings(deadline=None)
@given(scored_cases())
def test_models_in_the_other_order_differ_by_as_much_the_other_way(made):
    (one, two), positive = made
    ab, ba = paired_test(one, two, positive, 0.95), paired_test(two, one, positive, 0.95)
    assert ab.difference == -ba.difference
    assert ab.p == (None if ba.p is None else pytest.approx(ba.p))


@settings(deadline=None)
@given(scored_cases())
def test_only_the_order_of_scores_counts(made):
    scores, positive = made
    for found, expected in zip(auroc_covariance(np.exp(scores), positive), auroc_covariance(*made), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_five_cases_by_hand():
    """Positive 0.4, 0.8, 0.9 are above 1, 2, 2 of the two others; others 0.1, 0.6 below 3, 2 of the three."""
    scores, positive = np.array([[0.1, 0.6, 0.4, 0.8, 0.9]]), np.array([False, False, True, True, True])
    auroc, variance = auroc_covariance(scores, positive)
    assert auroc[0] == pytest.approx(5 / 6)
    # components 1/2, 1, 1: variance 1/12 over 3; 1, 2/3: variance 1/18 over 2
    assert variance[0, 0] == pytest.approx(1 / 36 + 1 / 36)


def test_the_interval_lies_within_0_and_1_and_is_symmetric_in_log_odds():
    low, high = log_odds_interval(0.9, 0.01, 0.95)
    half = stats.norm.ppf(0.975) * 0.1 / 0.09
    assert np.log(low / (1 - low)) == pytest.approx(np.log(9) - half)
    assert np.log(high / (1 - high)) == pytest.approx(np.log(9) + half)


def test_without_variance_there_is_no_interval_and_no_test():
    positive = np.array([True, True, False, False])
    perfect = np.array([0.9, 0.8, 0.2, 0.1])
    assert log_odds_interval(*(found.item() for found in auroc_covariance(perfect[None], positive)), 0.95) is None
    same = paired_test(perfect, perfect, positive, 0.95)
    assert (same.difference, same.z, same.p) == (0, None, None)


def test_the_paired_test_errs_in_one_of_twenty_where_models_are_equal():
    """Two models as good as each other, their scores correlated: p is uniform."""
    random, positive = np.random.default_rng(0), np.arange(80) < 40
    ps = []
    for _ in range(1000):
        truth = random.normal(size=80) + positive
        ps.append(paired_test(*(truth + random.normal(size=80) for _ in "ab"), positive, 0.95).p)
    assert 0.03 < np.mean(np.array(ps) < 0.05) < 0.075
    assert 0.42 < np.mean(np.array(ps) < 0.5) < 0.58
