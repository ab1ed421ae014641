"""What is chosen on validation cases: the threshold of two classes, and the temperature.

N: rows, C: classes. Source of the temperature: Guo et al. 2017; the paper's z_i / T is here log p / T, which gives the
same probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.metrics.reliability import TINY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from wsi_dbps.formats.predictions import Predictions

    Floats = npt.NDArray[np.float64]

RULE: Final = "highest sensitivity + specificity on validation; of equals the nearest to 0.5"


@dataclass(frozen=True)
class Threshold:
    """The probability from which a row counts as positive; two classes only."""

    value: float
    rule: str
    """How it was chosen, in words."""
    num_cases: int
    """Labelled validation cases it was chosen on."""


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by: above 1, the model was too sure of itself."""

    value: float
    num_cases: int
    """Labelled validation cases it was fitted on."""


@dataclass(frozen=True)
class Chosen:
    """What validation decides; None is absent, and has its reason."""

    threshold: Threshold | None = None
    temperature: Temperature | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


def choose(validation: Predictions) -> Chosen:
    """Threshold and temperature of labelled cases, as far as they exist."""
    known = [row for row in validation.cases if row.label is not None]
    classes, num = validation.classes, len(known)
    label_N = np.array([classes.index(str(row.label)) for row in known], np.intp)
    probability_NC = np.array([row.probabilities for row in known], np.float64).reshape(num, len(classes))
    if missing := [name for c, name in enumerate(classes) if not (label_N == c).any()]:
        reason = f"no validation case is labelled {', '.join(missing)}"
        return Chosen(reasons={"temperature": reason} | ({"threshold": reason} if len(classes) == 2 else {}))
    threshold = temperature = None
    reasons = {}
    if len(classes) == 2:
        value = best_threshold(probability_NC[:, 1], label_N == 1)
        if value is None:
            reasons["threshold"] = "no threshold does better than chance on validation"
        else:
            threshold = Threshold(value, RULE, num)
    if why := why_no_temperature(probability_NC, label_N):
        reasons["temperature"] = why
    else:
        temperature = Temperature(best_temperature(probability_NC, label_N), num)
    return Chosen(threshold, temperature, reasons)


def best_threshold(score_N: Floats, positive_N: npt.NDArray[np.bool_]) -> float | None:
    """The threshold of highest sensitivity + specificity (Youden), halfway between two scores.

    Of equals it is the one nearest to 0.5, then the lower; None if none is above chance. A row at the threshold counts
    as positive.
    """
    levels, group_N = np.unique(score_N, return_inverse=True)
    positive_G, negative_G = (
        np.bincount(group_N, weights=kind, minlength=len(levels)) for kind in (positive_N, ~positive_N)
    )
    youden_G = negative_G.cumsum() / negative_G.sum() - positive_G.cumsum() / positive_G.sum()  # cut above level g
    cuts = np.maximum((levels[:-1] + levels[1:]) / 2, np.nextafter(levels[:-1], 2))
    if not len(cuts) or (best := youden_G[:-1].max()) <= 1e-12:
        return None
    equals = cuts[youden_G[:-1] >= best - 1e-12]
    return float(min(equals, key=lambda cut: (abs(cut - 0.5), cut)))


def why_no_temperature(probability_NC: Floats, label_N: npt.NDArray[np.intp]) -> str | None:
    """Why log loss has no minimum at a temperature between 0 and infinity, if it has none."""
    log_NC = np.log(np.maximum(probability_NC, TINY))
    of_label_N = np.take_along_axis(log_NC, label_N[:, None], axis=1)[:, 0]
    if (of_label_N >= log_NC.max(axis=1)).all():
        return "every validation case is predicted right, so the best temperature would be 0"
    if (of_label_N - log_NC.mean(axis=1)).sum() <= 0:
        return "probabilities of validation cases are no better than equal shares, so the best temperature is infinite"
    return None


def best_temperature(probability_NC: Floats, label_N: npt.NDArray[np.intp]) -> float:
    """The temperature of lowest log loss, where there is one.

    Log loss is convex in the inverse of the temperature, so its slope is zero at one place.
    """
    from scipy.optimize import brentq
    from scipy.special import softmax

    log_NC = np.log(np.maximum(probability_NC, TINY))
    of_label = float(np.take_along_axis(log_NC, label_N[:, None], axis=1).sum())

    def slope(log_inverse: float) -> float:
        return float((softmax(math.exp(log_inverse) * log_NC, axis=1) * log_NC).sum()) - of_label

    low, high = -1.0, 1.0
    while slope(low) > 0:
        low -= 1
    while slope(high) < 0:
        high += 1
    return math.exp(-brentq(slope, low, high, xtol=1e-12))


def parts(predictions: Predictions, validation: Predictions | None) -> tuple[Predictions, Predictions | None]:
    """What is evaluated, and what threshold and temperature are chosen on.

    Of predictions that have both, the rows of split test are evaluated, and those of split val are validation if none
    is given. Of a given validation the rows of split val are taken, or all if there are none.
    """
    splits = {row.split for row in predictions.cases}
    evaluated = predictions
    if {"test", "val"} <= splits:
        evaluated, own = _of_split(predictions, "test"), _of_split(predictions, "val")
        validation = own if validation is None else validation
    if validation is not None and any(row.split == "val" for row in validation.cases):
        validation = _of_split(validation, "val")
    return evaluated, validation


def _of_split(predictions: Predictions, split: str) -> Predictions:
    slides, cases = (tuple(r for r in rows if r.split == split) for rows in (predictions.slides, predictions.cases))
    return replace(predictions, slides=slides, cases=cases)


def check_validation(evaluated: Predictions, validation: Predictions) -> None:
    """Refuse validation that would mislead.

    Raises:
        PredictionError: If its classes are others, or it shares a case with what is evaluated.
    """
    if validation.classes != evaluated.classes:
        raise PredictionError(
            f"validation has the classes {', '.join(validation.classes)}, the predictions have "
            f"{', '.join(evaluated.classes)}; they must be the same, in the same order"
        )
    if shared := {row.case_id for row in validation.cases} & {row.case_id for row in evaluated.cases}:
        raise PredictionError(
            f"{_some(sorted(shared))} in validation and among the evaluated cases; a threshold or temperature must be "
            "chosen on other cases than it is judged on"
        )


def _some(case_ids: Sequence[str]) -> str:
    if len(case_ids) == 1:
        return f"case {case_ids[0]} is"
    return f"{len(case_ids)} cases ({', '.join(case_ids[:3])}{' ...' if len(case_ids) > 3 else ''}) are"
