"""Values and their intervals, by resampling cases.

N: rows, K: cases, B: samples, S: scores.

An interval is BCa (Efron 1987): a range of the samples' values, its ends moved for the samples' bias and for how the
spread changes with the value. Cases are drawn with replacement within their class (stratified), so that every sample
has the class counts of the data and each score exists in all of them; a slide comes and goes with its case. A sample is
a weight per row, how often its case was drawn, so all samples are computed at once.

Of average precision BCa is too short (tests/bench/coverage.py); its interval is normal on the scale of log odds, with
the variance of leaving one case out (jackknife).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.core.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sequence

    import numpy.typing as npt
    from _typeshed import DataclassInstance

    Floats = npt.NDArray[np.float64]

_CHUNK: Final = 4_000_000
"""Weights in memory at once."""
_NO_SPREAD: Final = 1e-12
TWO_CASES: Final = "an interval needs two cases or more that differ"
"""Why a mean has no interval."""


@settings
class MetricsConfig:
    """How metrics are computed."""

    num_bootstrap: int = 2000
    """Samples of cases behind each interval."""
    confidence: float = 0.95
    """How often an interval is meant to hold the true value."""
    num_calibration_bins: int = 10
    """Bins of equal width from 0 to 1 in the calibration curve and the expected calibration error."""
    seed: int = 0
    """Of the random samples."""

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        if min(self.num_bootstrap, self.num_calibration_bins) < 1 or not 0 < self.confidence < 1 or self.seed < 0:
            raise ValueError(
                "num_bootstrap and num_calibration_bins are at least 1, seed at least 0, confidence between 0 and 1"
            )


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; the interval is None where there is none, which has a reason."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON; what is None is left out."""
        return plain(self)


def plain(value: DataclassInstance) -> dict[str, Any]:
    """Plain values for JSON; what is None is left out."""
    return dataclasses.asdict(value, dict_factory=lambda items: {name: own for name, own in items if own is not None})


def estimates(
    scores: Mapping[str, Callable[[Floats], Floats]],
    case_N: npt.NDArray[np.intp],
    case_label_K: npt.NDArray[np.intp],
    config: MetricsConfig,
    *,
    no_interval: Container[str] = (),
    on_log_odds: Container[str] = (),
) -> dict[str, Estimate]:
    """Each score of all rows, with its interval.

    Args:
        scores: From (B, N) weights to (B,) values.
        case_N: The case of each row.
        case_label_K: The label of each case.
        config: Samples, confidence and seed.
        no_interval: Names of scores that are to have none.
        on_log_odds: Names of scores between 0 and 1 whose interval is to be normal on the scale of log odds.

    Returns:
        By name. No interval where there is no row, where a class has a single case, and of a score that is the same in
        every sample: other cases would still differ.
    """
    values = {name: float(score(np.ones((1, len(case_N))))[0]) for name, score in scores.items()}
    if not len(case_N) or not scores or (np.bincount(case_label_K) == 1).any():
        return {name: Estimate(value) for name, value in values.items()}
    resampled = {name: score for name, score in scores.items() if name not in no_interval}
    drawn = _computed(resampled, _drawn(case_label_K, config, len(case_N)), case_N)
    left_out = _computed(resampled, _left_out(len(case_label_K), len(case_N)), case_N)
    found = {name: Estimate(value) for name, value in values.items()}
    for name in resampled:
        if np.ptp(drawn[name]) < _NO_SPREAD:
            continue
        ends = None
        if name in on_log_odds:
            variance = _jackknife_variance(left_out[name], case_label_K)
            ends = log_odds_interval(values[name], variance, config.confidence)
        ends = ends or bca_interval(values[name], drawn[name], left_out[name], case_label_K, config.confidence)
        found[name] = Estimate(values[name], *ends)
    return found


def mean_estimate(values: Sequence[float], case_ids: Sequence[str], config: MetricsConfig) -> Estimate:
    """The mean of a value per row, with its interval by case; without one for a single case, or where all are equal."""
    value_N = np.asarray(values, np.float64)
    _, case_N = np.unique(case_ids, return_inverse=True)
    of_one_kind_K = np.zeros(int(case_N.max()) + 1, np.intp)
    mean = {"mean": lambda weights_BN: weights_BN @ value_N / weights_BN.sum(axis=1)}
    return estimates(mean, case_N, of_one_kind_K, config)["mean"]


def log_odds_interval(value: float, variance: float, confidence: float) -> tuple[float, float] | None:
    """The interval on the scale of log odds, so that it lies within 0 and 1; None where the variance is 0."""
    from scipy.special import expit, logit, ndtri

    if variance < 1e-20 or not 0 < value < 1:
        return None
    half = ndtri((1 + confidence) / 2) * np.sqrt(variance) / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def bca_interval(
    value: float, drawn_B: Floats, left_out_K: Floats, case_label_K: npt.NDArray[np.intp], confidence: float
) -> tuple[float, float]:
    """The bias-corrected and accelerated interval.

    Args:
        value: Of all cases.
        drawn_B: Of each sample.
        left_out_K: Of all cases but one.
        case_label_K: The class within which each case was drawn.
        confidence: Share of samples within the interval, were there neither bias nor acceleration.
    """
    from scipy.special import ndtr, ndtri

    equal_B = np.isclose(drawn_B, value, rtol=0, atol=1e-12)  # a sample that has the value counts half
    below = (equal_B.sum() / 2 + (~equal_B & (drawn_B < value)).sum()) / len(drawn_B)
    bias = ndtri(np.clip(below, 0.5 / len(drawn_B), 1 - 0.5 / len(drawn_B)))
    tail = ndtri((1 - confidence) / 2)
    shifted = bias + np.array([tail, -tail])
    stretch = np.maximum(1 - _acceleration(left_out_K, case_label_K) * shifted, 1e-6)
    low, high = np.quantile(drawn_B, ndtr(bias + shifted / stretch)).tolist()
    return low, high


def _acceleration(left_out_K: Floats, case_label_K: npt.NDArray[np.intp]) -> float:
    """How the spread changes with the value."""
    influences_K = np.concatenate(_influences(left_out_K, case_label_K))
    squares = float((influences_K**2).sum())
    return float((influences_K**3).sum()) / (6 * squares**1.5) if squares > 1e-24 else 0.0


def _jackknife_variance(left_out_K: Floats, case_label_K: npt.NDArray[np.intp]) -> float:
    """Of the value, from leaving one case out."""
    of_class = _influences(left_out_K, case_label_K)
    return sum(len(influence) / (len(influence) - 1) * float((influence**2).sum()) for influence in of_class)


def _influences(left_out_K: Floats, case_label_K: npt.NDArray[np.intp]) -> list[Floats]:
    """By class, how far each of its cases moves the value."""
    of_class = [left_out_K[case_label_K == c] for c in np.unique(case_label_K)]
    return [(len(values) - 1) / len(values) * (values.mean() - values) for values in of_class]


def _computed(
    scores: Mapping[str, Callable[[Floats], Floats]], weights: Iterator[Floats], case_N: npt.NDArray[np.intp]
) -> dict[str, Floats]:
    found: dict[str, list[Floats]] = {name: [] for name in scores}
    for weights_BK in weights:
        weights_BN = weights_BK[:, case_N]
        for name, score in scores.items():
            found[name].append(score(weights_BN))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _drawn(case_label_K: npt.NDArray[np.intp], config: MetricsConfig, num_rows: int) -> Iterator[Floats]:
    """(B, K) weights, some samples at a time: in each, a class's cases are drawn as often as there are cases."""
    random = np.random.default_rng(config.seed)
    at_once = max(1, _CHUNK // num_rows)
    for start in range(0, config.num_bootstrap, at_once):
        num = min(at_once, config.num_bootstrap - start)
        drawn_BK = np.zeros((num, len(case_label_K)))
        for c in np.unique(case_label_K):
            cases = np.flatnonzero(case_label_K == c)
            drawn_BK[:, cases] = random.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=num)
        yield drawn_BK


def _left_out(num_cases: int, num_rows: int) -> Iterator[Floats]:
    """(B, K) weights: in each sample another case is missing."""
    at_once = max(1, _CHUNK // num_rows)
    for start in range(0, num_cases, at_once):
        which = np.arange(start, min(start + at_once, num_cases))
        weights_BK = np.ones((len(which), num_cases))
        weights_BK[np.arange(len(which)), which] = 0
        yield weights_BK
