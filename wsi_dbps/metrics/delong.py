"""The AUROC's variance without resampling, and the paired test of two AUROCs.

P: positive cases, Q: the others, M: sets of scores for the same cases. Sources: DeLong et al. 1988 for the variance;
Sun and Xu 2014 for its computation from midranks, in the time it takes to sort.

The structural component of a positive case is the share of the others that score lower, that of another case the share
of the positive ones that score higher, equals counting half. The AUROC is the mean of either; its variance is the sum
of the variances of both means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AurocTest:
    """Two AUROCs of the same cases."""

    a: float
    b: float
    difference: float
    """b less a."""
    low: float | None
    """End of the difference's interval; None, like all below, where the two differ without any variance."""
    high: float | None
    z: float | None
    p: float | None
    """Two-sided."""


def auroc_covariance(score_MN: Floats, positive_N: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(M,) AUROCs and their (M, M) covariance.

    Args:
        score_MN: Sets of scores of the same cases, of which two or more must be positive, and two or more not.
        positive_N: Which cases are positive.
    """
    from scipy.stats import rankdata

    positive_MP, other_MQ = score_MN[:, positive_N], score_MN[:, ~positive_N]
    num_positive, num_other = positive_MP.shape[1], other_MQ.shape[1]
    rank_MN = rankdata(score_MN, axis=1)
    below_MP = (rank_MN[:, positive_N] - rankdata(positive_MP, axis=1)) / num_other
    above_MQ = 1 - (rank_MN[:, ~positive_N] - rankdata(other_MQ, axis=1)) / num_positive
    covariance_MM = np.atleast_2d(np.cov(below_MP)) / num_positive + np.atleast_2d(np.cov(above_MQ)) / num_other
    return below_MP.mean(axis=1), covariance_MM


def testable_classes(
    label_N: npt.NDArray[np.intp], classes: Sequence[str]
) -> tuple[dict[str, tuple[int, npt.NDArray[np.bool_]]], dict[str, str]]:
    """What there is to test: `auroc` of two classes, else each class against the rest, by its name.

    Returns:
        By name the class and which cases are of it; and why some are not there, by `reason_key` of their name.
    """
    found, reasons = {}, {}
    for c in (1,) if len(classes) == 2 else range(len(classes)):
        name, positive_N = "auroc" if len(classes) == 2 else classes[c], label_N == c
        if min(positive_N.sum(), (~positive_N).sum()) < 2:
            reasons[reason_key(name)] = f"two or more cases of {classes[c]} and two or more of the rest are needed"
        else:
            found[name] = c, positive_N
    return found, reasons


def reason_key(name: str) -> str:
    """Under what a test's absence has its reason.

    Examples:
        >>> reason_key("auroc"), reason_key("tumour")
        ('delong', 'delong.tumour')
    """
    return "delong" if name == "auroc" else f"delong.{name}"


def paired_test(a_N: Floats, b_N: Floats, positive_N: npt.NDArray[np.bool_], confidence: float) -> AurocTest:
    """Whether scores `b_N` rank the cases better than `a_N`: difference of the AUROCs, its plain interval, z and p."""
    from scipy.special import ndtr, ndtri

    (a, b), covariance_22 = auroc_covariance(np.stack([a_N, b_N]), positive_N)
    difference = float(b - a)
    variance = covariance_22[0, 0] + covariance_22[1, 1] - 2 * covariance_22[0, 1]
    if variance < 1e-20:
        return AurocTest(float(a), float(b), difference, None, None, None, None)
    z, half = difference / np.sqrt(variance), ndtri((1 + confidence) / 2) * np.sqrt(variance)
    low, high = max(-1.0, difference - half), min(1.0, difference + half)
    return AurocTest(float(a), float(b), difference, float(low), float(high), float(z), float(2 * ndtr(-abs(z))))
