"""The scores there are, each as a function of weights.

N: rows, K: cases, B: samples, C: classes, G: groups of rows with the same probability. Of two classes the second is
positive. A score takes (B, N) weights, how often each row counts in each sample, to (B,) values: the value itself is
the sample in which every row counts once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.metrics.reliability import TINY, calibration_error, scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from wsi_dbps.formats.predictions import Prediction
    from wsi_dbps.metrics.thresholds import Chosen

    Floats = npt.NDArray[np.float64]

CLASS_AUROC: Final = "class_auroc."
CLASS_AUPRC: Final = "class_auprc."
OF_PROBABILITIES: Final = ("ece", "brier", "log_loss")
"""Scores that a temperature changes."""
NO_INTERVAL: Final = frozenset({"ece", "calibrated.ece"})
"""Noise of a bin adds to the expected calibration error, and resampling adds it again: no interval of resampled values
covers the true one (docs/formats/metrics.md)."""


@dataclass(frozen=True)
class Rows:
    """Labelled predictions as arrays, in an order of their own."""

    label_N: npt.NDArray[np.intp]
    probability_NC: Floats
    predicted_N: npt.NDArray[np.intp]
    """By the row's threshold; without one the most probable class, the first of equals."""
    case_N: npt.NDArray[np.intp]
    case_label_K: npt.NDArray[np.intp]
    scaled_NC: Floats | None = None
    """The probabilities after temperature scaling; None where a row has no temperature."""


def rows_of(predictions: Sequence[Prediction], classes: Sequence[str], chosen: Mapping[str, Chosen]) -> Rows:
    """The labelled rows, sorted by case and slide.

    Args:
        predictions: Slides, or cases.
        classes: In the order of the probabilities.
        chosen: Threshold and temperature by case; a case may lack them.

    Raises:
        PredictionError: If a label is not one of the classes.
    """
    known = sorted((r for r in predictions if r.label is not None), key=lambda row: (row.case_id, row.slide_id or ""))
    for row in known:
        if row.label not in classes:
            raise PredictionError(f"{row.case_id}: label {row.label!r} is not one of the classes {', '.join(classes)}")
    label_N = np.array([classes.index(str(row.label)) for row in known], np.intp)
    probability_NC = np.array([row.probabilities for row in known], np.float64).reshape(len(known), len(classes))
    predicted_N = probability_NC.argmax(axis=1)
    of_row = [chosen.get(row.case_id) for row in known]
    for i, own in enumerate(of_row):
        if own and own.threshold:
            predicted_N[i] = probability_NC[i, 1] >= own.threshold.value
    temperatures = [own.temperature.value for own in of_row if own and own.temperature]
    complete = len(known) > 0 and len(temperatures) == len(known)
    _, first, case_N = np.unique([row.case_id for row in known], return_index=True, return_inverse=True)
    return Rows(
        label_N=label_N,
        probability_NC=probability_NC,
        predicted_N=predicted_N,
        case_N=case_N.astype(np.intp),
        case_label_K=label_N[first],
        scaled_NC=scaled(probability_NC, np.array(temperatures)) if complete else None,
    )


# ---- which scores, and whether they exist


@dataclass(frozen=True)
class Score:
    """A score and what it needs to exist."""

    needs: tuple[int, ...]
    """Classes that need a row each."""
    compute: Callable[[Floats, Rows], Floats]
    """From (B, N) weights to (B,) values."""
    needs_two: bool = False
    """Whether rows of two classes or more are needed."""

    def on(self, rows: Rows) -> Callable[[Floats], Floats]:
        """Of these rows, from weights to values."""
        return lambda weights_BN: self.compute(weights_BN, rows)


def scores_of(classes: Sequence[str], num_bins: int) -> dict[str, Score]:
    """What there is to compute, by the name it has in `reasons`."""
    num = len(classes)
    binary, every = num == 2, tuple(range(num))
    ranked = (1,) if binary else every  # the classes whose one-against-the-rest values are averaged
    apart_CC = np.abs(np.subtract.outer(np.arange(num), np.arange(num))).astype(np.float64)
    scores = {
        "auroc": Score(every, partial(_mean_over, ranked, auroc)),
        "auprc": Score(every, partial(_mean_over, ranked, auprc)),
        "accuracy": Score((), lambda w_BN, rows: _share(w_BN, rows.predicted_N == rows.label_N)),
        "balanced_accuracy": Score(every, partial(_mean_over, every, _recall)),
        "f1": Score(every, partial(_mean_over, ranked, _f1)),
        "kappa": Score((), partial(_kappa, cost_CC=(apart_CC > 0).astype(np.float64)), needs_two=True),
        "brier": Score((), lambda w_BN, rows: _share(w_BN, _squared_error(rows, binary=binary))),
        "log_loss": Score((), lambda w_BN, rows: _share(w_BN, _log_loss(rows))),
        "ece": Score((), lambda w_BN, rows: calibration_error(w_BN, rows.probability_NC, rows.label_N, num_bins)),
    }
    if binary:
        scores["sensitivity"] = Score((1,), partial(_recall, c=1))
        scores["specificity"] = Score((0,), partial(_recall, c=0))
        return scores
    scores["kappa_linear"] = Score((), partial(_kappa, cost_CC=apart_CC), needs_two=True)
    scores["kappa_quadratic"] = Score((), partial(_kappa, cost_CC=apart_CC**2), needs_two=True)
    for c, name in enumerate(classes):
        scores[CLASS_AUROC + name] = Score((c,), partial(auroc, c=c), needs_two=True)
        scores[CLASS_AUPRC + name] = Score((c,), partial(auprc, c=c), needs_two=True)
    return scores


def why_absent(score: Score, counts: Sequence[int], classes: Sequence[str]) -> str | None:
    """Why a score does not exist for so many rows of each class, or None if it does."""
    if not sum(counts):
        return "no row has a label"
    if missing := [classes[c] for c in score.needs if not counts[c]]:
        return f"no row is labelled {', '.join(missing)}"
    if score.needs_two and max(counts) == sum(counts):
        return f"every row is labelled {classes[int(np.argmax(counts))]}"
    return None


# ---- from weights to values


def _share(weights_BN: Floats, amount_N: npt.NDArray[Any]) -> Floats:
    """The weighted mean."""
    mean: Floats = weights_BN @ amount_N.astype(np.float64) / weights_BN.sum(axis=1)
    return mean


def _mean_over(
    classes: Sequence[int], compute: Callable[[Floats, Rows, int], Floats], weights_BN: Floats, rows: Rows
) -> Floats:
    mean_B: Floats = np.mean([compute(weights_BN, rows, c) for c in classes], axis=0)
    return mean_B


def _recall(weights_BN: Floats, rows: Rows, c: int) -> Floats:
    labelled_N = rows.label_N == c
    return _share(weights_BN[:, labelled_N], rows.predicted_N[labelled_N] == c)


def _f1(weights_BN: Floats, rows: Rows, c: int) -> Floats:
    labelled_N, predicted_N = rows.label_N == c, rows.predicted_N == c
    both_B = weights_BN @ (labelled_N & predicted_N).astype(np.float64)
    f1_B: Floats = 2 * both_B / (weights_BN @ (labelled_N.astype(np.float64) + predicted_N))
    return f1_B


def _kappa(weights_BN: Floats, rows: Rows, cost_CC: Floats) -> Floats:
    """One less the disagreement over that of the same marginals by chance, each disagreement at its cost."""
    num = len(cost_CC)
    cell_N = rows.label_N * num + rows.predicted_N
    found_BCC = (weights_BN @ np.eye(num * num)[cell_N]).reshape(-1, num, num)
    labelled_BC, predicted_BC = found_BCC.sum(axis=2), found_BCC.sum(axis=1)
    by_chance_B = np.einsum("bi,bj,ij->b", labelled_BC, predicted_BC, cost_CC) / labelled_BC.sum(axis=1)
    kappa_B: Floats = 1 - (found_BCC * cost_CC).sum(axis=(1, 2)) / by_chance_B
    return kappa_B


def _squared_error(rows: Rows, *, binary: bool) -> Floats:
    error_NC = rows.probability_NC - np.eye(rows.probability_NC.shape[1])[rows.label_N]
    error_N: Floats = error_NC[:, 1] ** 2 if binary else (error_NC**2).sum(axis=1)
    return error_N


def _log_loss(rows: Rows) -> Floats:
    of_label_N = np.take_along_axis(rows.probability_NC, rows.label_N[:, None], axis=1)[:, 0]
    loss_N: Floats = -np.log(np.maximum(of_label_N, TINY))
    return loss_N


def auroc(weights_BN: Floats, rows: Rows, c: int) -> Floats:
    """The share of pairs of a row of class c and another in which the first scores higher, equals counting half."""
    positive_BG, negative_BG = _by_score(weights_BN, rows, c)
    below_BG = negative_BG.cumsum(axis=1) - negative_BG / 2
    pairs_B = positive_BG.sum(axis=1) * negative_BG.sum(axis=1)
    auroc_B: Floats = (positive_BG * below_BG).sum(axis=1) / pairs_B
    return auroc_B


def auprc(weights_BN: Floats, rows: Rows, c: int) -> Floats:
    """Average precision: the mean over the rows of class c of the precision at their score."""
    positive_BG, negative_BG = (groups[:, ::-1] for groups in _by_score(weights_BN, rows, c))
    above_BG = positive_BG.cumsum(axis=1)
    called_BG = above_BG + negative_BG.cumsum(axis=1)
    precision_BG = np.divide(above_BG, called_BG, out=np.zeros_like(called_BG), where=called_BG > 0)
    auprc_B: Floats = (positive_BG * precision_BG).sum(axis=1) / positive_BG.sum(axis=1)
    return auprc_B


def _by_score(weights_BN: Floats, rows: Rows, c: int) -> tuple[Floats, Floats]:
    """(B, G) weight of the rows of class c, and of the others, with each distinct probability of c, lowest first."""
    score_N = rows.probability_NC[:, c]
    order = np.argsort(score_N, kind="stable")
    first_of_group = np.flatnonzero(np.diff(score_N[order], prepend=-1.0))
    sorted_BN, labelled_N = weights_BN[:, order], (rows.label_N == c)[order]
    positive_BG = np.add.reduceat(sorted_BN * labelled_N, first_of_group, axis=1)
    return positive_BG, np.add.reduceat(sorted_BN * ~labelled_N, first_of_group, axis=1)
