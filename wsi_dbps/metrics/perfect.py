"""Intervals of what is without error, or all error, among these cases: resampling them shows no spread, and other cases
would still differ.

A share of 0 or 1 has the interval of Clopper and Pearson (1934). Where classes are parted without error, the lower end
is the AUROC at which so many cases are parted as seldom as the confidence allows, scores of both classes being normal
with one spread: the question of Obuchowski and Lieber (2002), "Confidence bounds when the estimated ROC area is 1.0".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wsi_dbps.metrics.bootstrap import Estimate
from wsi_dbps.metrics.scores import CLASS_AUPRC, CLASS_AUROC, NO_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt


def with_bounds(
    found: Mapping[str, Estimate], case_label_K: npt.NDArray[np.intp], classes: Sequence[str], confidence: float
) -> dict[str, Estimate]:
    """The estimates, with an interval for shares of 0 or 1 and for an AUROC or average precision of 1 without one.

    Slides count as their cases, for they are not independent.

    Args:
        found: By name of the score.
        case_label_K: The label of each case.
        classes: In the order of the labels.
        confidence: How often an interval is meant to hold the true value.
    """
    of_class = np.bincount(case_label_K, minlength=len(classes)).tolist()
    shares = {"accuracy": len(case_label_K), "specificity": of_class[0], "sensitivity": of_class[1]}
    ranked = {CLASS_AUROC + name: c for c, name in enumerate(classes)}
    ranked |= {CLASS_AUPRC + name: c for c, name in enumerate(classes)}
    if len(classes) == 2:
        ranked |= {"auroc": 1, "auprc": 1}
    bounded = dict(found)
    for name, estimate in found.items():
        if estimate.low is not None:
            continue
        if name in shares and estimate.value in (0, 1):
            bounded[name] = Estimate(estimate.value, *share_interval(estimate.value, shares[name], confidence))
        elif name in ranked and np.isclose(estimate.value, 1, rtol=0, atol=1e-12):
            num = of_class[ranked[name]]
            auroc, auprc = parted_bounds(num, len(case_label_K) - num, confidence)
            bounded[name] = Estimate(estimate.value, auprc if "auprc" in name else auroc, 1.0)
    return bounded


def why_no_interval(found: Mapping[str, Estimate]) -> dict[str, str]:
    """Reasons, by `interval.<score>`, where there are cases enough and still no interval."""
    lacking = [name for name, estimate in found.items() if estimate.low is None and name not in NO_INTERVAL]
    return {f"interval.{name}": "every bootstrap sample of these cases gives the same value" for name in lacking}


def share_interval(value: float, num: int, confidence: float) -> tuple[float, float]:
    """Of none (0) or all (1) of so many cases.

    Examples:
        >>> [round(end, 3) for end in share_interval(1, 15, 0.95)]
        [0.782, 1.0]
    """
    far = ((1 - confidence) / 2) ** (1 / num)
    return (far, 1.0) if value == 1 else (0.0, 1 - far)


def parted_bounds(num_positive: int, num_negative: int, confidence: float) -> tuple[float, float]:
    """Lower ends of AUROC and average precision where every positive case scores above every other."""
    from scipy.integrate import trapezoid
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    x = np.linspace(-9, 9, 4001)  # score of the highest other case, then of a positive one above its mean
    log_density = -(x**2) / 2 - np.log(2 * np.pi) / 2
    log_highest = np.log(num_negative) + log_density + (num_negative - 1) * log_ndtr(x)

    def too_often(shift: float) -> float:
        parted = trapezoid(np.exp(log_highest + num_positive * log_ndtr(shift - x)), x)
        return float(parted) - (1 - confidence) / 2

    shift = brentq(too_often, -12, 12)
    above, others_above = num_positive * ndtr(-x), num_negative * ndtr(-x - shift)
    auprc = trapezoid(np.exp(log_density) * above / (above + others_above), x)
    return float(ndtr(shift / np.sqrt(2))), float(auprc)
