"""Whether probabilities can be taken at their word.

N: rows, B: samples, C: classes, M: bins of equal width from 0 to 1. What is judged is the probability of the positive
class, the second of two; of more classes, the probability of the most probable one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

TINY: Final = float(np.finfo(np.float64).eps)
"""Where logarithms are taken, a smaller probability counts as this."""


@dataclass(frozen=True)
class CalibrationBin:
    """The rows whose probability lies in one bin; empty bins are left out."""

    num: int
    mean_probability: float
    """Of the positive class; of the most probable class where there are more than two."""
    observed_share: float
    """Share of the rows that are positive; of those whose most probable class is right where there are more than two
    classes."""


def calibration_curve(
    probability_NC: Floats, label_N: npt.NDArray[np.intp], num_bins: int
) -> tuple[CalibrationBin, ...]:
    """The bins that hold rows, lowest probability first."""
    told_N, seen_N = _told_and_seen(probability_NC, label_N)
    bin_N = _bin(told_N, num_bins)
    return tuple(
        CalibrationBin(int(inside.sum()), float(told_N[inside].mean()), float(seen_N[inside].mean()))
        for b in np.unique(bin_N)
        if (inside := bin_N == b).any()
    )


def calibration_error(
    weights_BN: Floats, probability_NC: Floats, label_N: npt.NDArray[np.intp], num_bins: int
) -> Floats:
    """Expected calibration error: the distance of the curve from the diagonal, each bin counting by its rows."""
    told_N, seen_N = _told_and_seen(probability_NC, label_N)
    excess_NM = (told_N - seen_N)[:, None] * (_bin(told_N, num_bins)[:, None] == np.arange(num_bins))
    error_B: Floats = np.abs(weights_BN @ excess_NM).sum(axis=1) / weights_BN.sum(axis=1)
    return error_B


def scaled(probability_NC: Floats, temperature_N: Floats) -> Floats:
    """The probabilities whose logarithms are divided by the row's temperature; they sum to 1."""
    log_NC = np.log(np.maximum(probability_NC, TINY)) / temperature_N[:, None]
    power_NC = np.exp(log_NC - log_NC.max(axis=1, keepdims=True))
    share_NC: Floats = power_NC / power_NC.sum(axis=1, keepdims=True)
    return share_NC


def _told_and_seen(probability_NC: Floats, label_N: npt.NDArray[np.intp]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    if probability_NC.shape[1] == 2:
        return probability_NC[:, 1], label_N == 1
    return probability_NC.max(axis=1, initial=0), label_N == probability_NC.argmax(axis=1)


def _bin(told_N: Floats, num_bins: int) -> npt.NDArray[np.intp]:
    return np.minimum((told_N * num_bins).astype(np.intp), num_bins - 1)
