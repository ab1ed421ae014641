"""How good predictions are, by case and by slide, with intervals.

What the numbers are made of: `scores` (the values), `bootstrap` and `delong` (their intervals), `reliability`
(calibration), and `thresholds` (threshold and temperature). Of two classes the second is positive.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.metrics.bootstrap import Estimate, MetricsConfig, estimates, log_odds_interval, plain
from wsi_dbps.metrics.caveats import caveats, caveats_of_parts
from wsi_dbps.metrics.delong import auroc_covariance, reason_key, testable_classes
from wsi_dbps.metrics.perfect import why_no_interval, with_bounds
from wsi_dbps.metrics.pooling import pool_folds
from wsi_dbps.metrics.reliability import CalibrationBin, calibration_curve
from wsi_dbps.metrics.scores import (
    CLASS_AUPRC,
    CLASS_AUROC,
    NO_INTERVAL,
    OF_PROBABILITIES,
    Rows,
    rows_of,
    scores_of,
    why_absent,
)
from wsi_dbps.metrics.thresholds import Chosen, Temperature, Threshold, check_validation, choose, parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from wsi_dbps.formats.predictions import Prediction, Predictions

__all__ = [
    "CalibrationBin",
    "Estimate",
    "LevelMetrics",
    "Metrics",
    "MetricsConfig",
    "RocCurve",
    "Temperature",
    "Threshold",
    "evaluate",
    "evaluate_folds",
]


@dataclass(frozen=True)
class RocCurve:
    """Points from (0, 0) to (1, 1), one per threshold that changes the direction of the curve."""

    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]


@dataclass(frozen=True)
class LevelMetrics:
    """Metrics over cases, or over slides. What does not exist is absent here and has its reason in `reasons`."""

    num: int
    """Labelled rows; all else here is about these."""
    num_unlabelled: int
    """Rows left out."""
    num_cases: int
    """Cases the labelled rows come from."""
    class_counts: Mapping[str, int]
    scores: Mapping[str, Estimate]
    """By name: auroc (macro where there are more than two classes), auprc (average precision, likewise), accuracy,
    balanced_accuracy, f1 (of the positive class, or macro), kappa (Cohen's), brier (of the positive class, or summed
    over the classes), log_loss, ece (expected calibration error, over the bins of the curve; it has no interval); for
    two classes sensitivity and specificity; for more kappa_linear and kappa_quadratic, in which an error counts by how
    far apart the classes are."""
    class_auroc: Mapping[str, Estimate]
    """One class against the rest; empty for two classes."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows: the label; columns: the predicted class, by the threshold if there is one; in the order of the classes."""
    roc: Mapping[str, RocCurve]
    """By class; the positive one alone for two classes."""
    calibration: tuple[CalibrationBin, ...]
    reasons: Mapping[str, str]
    """What is absent, and why."""
    class_auprc: Mapping[str, Estimate] = field(default_factory=dict)
    """Average precision of one class against the rest; empty for two classes."""
    delong: Mapping[str, Estimate] = field(default_factory=dict)
    """The AUROC with DeLong's interval: `auroc` for two classes, else one against the rest by class. Cases only."""
    calibrated: Mapping[str, Estimate] = field(default_factory=dict)
    """ece, brier and log_loss after temperature scaling; empty where there is no temperature."""
    calibration_scaled: tuple[CalibrationBin, ...] = ()
    """The calibration curve after temperature scaling."""


@dataclass(frozen=True)
class Metrics:
    """How good predictions are. Cases come first: patients are what a label belongs to."""

    classes: tuple[str, ...]
    config: MetricsConfig
    cases: LevelMetrics
    slides: LevelMetrics
    caveats: tuple[str, ...]
    """What a reader of the numbers has to know, in sentences."""
    threshold: Threshold | None = None
    """None without validation: the most probable class is the predicted one."""
    temperature: Temperature | None = None
    fold_thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    """Where several folds were pooled, each with its own validation."""
    fold_temperatures: Mapping[str, Temperature] = field(default_factory=dict)
    folds: Mapping[str, LevelMetrics] = field(default_factory=dict)
    """The cases of each fold, where several were pooled."""
    subgroups: Mapping[str, Mapping[str, LevelMetrics]] = field(default_factory=dict)
    """By column of the manifest and its value: the cases that have it."""

    failed_slides: tuple[str, ...] = ()
    """A line for each slide that could not be predicted, beginning with its id: no number here knows of them."""
    leaked_cases: tuple[str, ...] = ()
    """Evaluated cases that a model which predicted them had in train or val, as far as was checked."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is None is left out."""
        return plain(self)

    @property
    def flaws(self) -> tuple[str, ...]:
        """The caveats without which the headline must not be read: leaked cases and slides that failed."""
        found = []
        if self.leaked_cases:
            found.append(
                f"Leak: {len(self.leaked_cases)} of the {self.cases.num + self.cases.num_unlabelled} evaluated cases "
                "had been seen by the model in training or model selection, so these results are no test."
            )
        if self.failed_slides:
            num, shown = len(self.failed_slides), self.failed_slides[:_MAX_NAMED]
            more = f"; and {num - len(shown)} more, see predict.json" if num > len(shown) else ""
            found.append(
                f"{num} slide{'s' if num > 1 else ''} could not be predicted and {'are' if num > 1 else 'is'} missing "
                f"from every number: {'; '.join(shown)}{more}."
            )
        return tuple(found)


_MAX_NAMED: Final = 5
"""Most failed slides that a caveat names."""


def with_flaws(metrics: Metrics, *, failed: Iterable[str] = (), leaked: Iterable[str] = ()) -> Metrics:
    """The same metrics with slides that failed and cases that leaked; both come first in the caveats.

    Args:
        metrics: From `evaluate`.
        failed: A line for each slide that could not be predicted, beginning with its id.
        leaked: Case ids.
    """
    found = dataclasses.replace(metrics, failed_slides=tuple(failed), leaked_cases=tuple(dict.fromkeys(leaked)))
    return dataclasses.replace(found, caveats=(*found.flaws, *metrics.caveats))


def evaluate(
    predictions: Predictions,
    config: MetricsConfig | None = None,
    *,
    validation: Predictions | None = None,
    subgroups: Mapping[str, Mapping[str, str]] | None = None,
) -> Metrics:
    """Metrics by case and by slide of every row that has a label.

    Where there are rows of split test and of split val, the test rows are evaluated. Threshold and temperature come
    from `validation`, or else from those val rows. The order of the rows changes nothing, nor does running it again.

    Args:
        predictions: What is evaluated.
        config: How.
        validation: Predictions of other cases by the same model; its rows of split val, or all if there are none.
        subgroups: Names of columns to the value of each case.

    Raises:
        PredictionError: If a label is not one of the classes, or validation has other classes or shares a case.
    """
    return _evaluate({"": predictions}, config, {} if validation is None else {"": validation}, subgroups)


def evaluate_folds(
    folds: Mapping[str, Predictions],
    config: MetricsConfig | None = None,
    *,
    validation: Mapping[str, Predictions] | None = None,
    subgroups: Mapping[str, Mapping[str, str]] | None = None,
) -> Metrics:
    """Metrics of several models' cases together, as of cross-validation, and of each fold's.

    Args:
        folds: Predictions of disjoint cases, by name of the fold.
        config: How.
        validation: By name of the fold. Each has its own threshold and temperature.
        subgroups: Names of columns to the value of each case.

    Raises:
        PredictionError: As `evaluate`; also if the folds have different classes or share a case.
    """
    return _evaluate(folds, config, validation or {}, subgroups)


def _evaluate(
    folds: Mapping[str, Predictions],
    config: MetricsConfig | None,
    validations: Mapping[str, Predictions],
    subgroups: Mapping[str, Mapping[str, str]] | None,
) -> Metrics:
    config = config or MetricsConfig()
    evaluated: dict[str, Predictions] = {}
    chosen: dict[str, Chosen] = {}
    fold_of_case: dict[str, str] = {}
    num_learnt_from = 0
    for name, fold in folds.items():
        evaluated[name], validation = parts(fold, validations.get(name))
        chosen[name] = Chosen()
        if validation is not None:
            check_validation(evaluated[name], validation)
            chosen[name] = choose(validation)
            num_learnt_from += sum(row.split == "train" for row in validation.cases)
        fold_of_case |= {row.case_id: name for row in evaluated[name].cases}
    pooled = pool_folds(evaluated)
    of_case = {case_id: chosen[name] for case_id, name in fold_of_case.items()}
    level = partial(_level, classes=pooled.classes, config=config, chosen=of_case)
    one = next(iter(chosen.values())) if len(folds) == 1 else Chosen()
    thresholds = {name: own.threshold for name, own in chosen.items() if own.threshold}
    temperatures = {name: own.temperature for name, own in chosen.items() if own.temperature}
    cases = level(pooled.cases)
    failed = _reasons_of_validation(chosen)
    return Metrics(
        classes=pooled.classes,
        config=config,
        cases=dataclasses.replace(cases, reasons={**cases.reasons, **failed}),
        slides=level(pooled.slides, by_slide=True),
        caveats=(
            *caveats(pooled),
            *caveats_of_parts(
                folds, evaluated, subgroups or {}, validated=bool(validations), num_learnt_from=num_learnt_from
            ),
        ),
        threshold=one.threshold,
        temperature=one.temperature,
        fold_thresholds=thresholds if len(folds) > 1 else {},
        fold_temperatures=temperatures if len(folds) > 1 else {},
        folds={name: level(fold.cases) for name, fold in evaluated.items()} if len(folds) > 1 else {},
        subgroups={
            column: {
                value: level([row for row in pooled.cases if of.get(row.case_id) == value])
                for value in sorted({of[row.case_id] for row in pooled.cases if row.case_id in of})
            }
            for column, of in (subgroups or {}).items()
        },
    )


def _reasons_of_validation(chosen: Mapping[str, Chosen]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for name, own in chosen.items():
        for key, why in own.reasons.items():
            found.setdefault(key, []).append(f"{name}: {why}" if len(chosen) > 1 else why)
    return {key: "; ".join(whys) for key, whys in found.items()}


def _level(
    predictions: Sequence[Prediction],
    *,
    classes: Sequence[str],
    config: MetricsConfig,
    chosen: Mapping[str, Chosen],
    by_slide: bool = False,
) -> LevelMetrics:
    rows = rows_of(predictions, classes, chosen)
    counts = np.bincount(rows.label_N, minlength=len(classes)).tolist()
    scores = scores_of(classes, config.num_calibration_bins)
    reasons = {name: why for name, score in scores.items() if (why := why_absent(score, counts, classes))}
    compute = {name: score.on(rows) for name, score in scores.items() if name not in reasons}
    if rows.scaled_NC is not None:
        after = dataclasses.replace(rows, probability_NC=rows.scaled_NC)
        compute |= {_CALIBRATED + name: scores[name].on(after) for name in OF_PROBABILITIES}
    precisions = [name for name in compute if "auprc" in name]
    found = estimates(compute, rows.case_N, rows.case_label_K, config, no_interval=NO_INTERVAL, on_log_odds=precisions)
    if lone := _lone_classes(rows, classes):
        reasons["intervals"] = f"{', '.join(lone)}: a single case; an interval needs two or more in each class"
    else:
        found = with_bounds(found, rows.case_label_K, classes, config.confidence)
        reasons |= why_no_interval(found)
    delong, why_not = _delong(rows, classes, config, by_slide=by_slide)
    return LevelMetrics(
        num=len(rows.label_N),
        num_unlabelled=len(predictions) - len(rows.label_N),
        num_cases=len(rows.case_label_K),
        class_counts=dict(zip(classes, counts, strict=True)),
        scores={name: value for name, value in found.items() if not name.startswith(_PREFIXES)},
        class_auroc=_with_prefix(CLASS_AUROC, found),
        confusion=_confusion(rows, len(classes)),
        roc=_roc_curves(rows, classes),
        calibration=calibration_curve(rows.probability_NC, rows.label_N, config.num_calibration_bins),
        reasons={**reasons, **why_not},
        class_auprc=_with_prefix(CLASS_AUPRC, found),
        delong=delong,
        calibrated=_with_prefix(_CALIBRATED, found),
        calibration_scaled=()
        if rows.scaled_NC is None
        else calibration_curve(rows.scaled_NC, rows.label_N, config.num_calibration_bins),
    )


_CALIBRATED: Final = "calibrated."
_PREFIXES: Final = (CLASS_AUROC, CLASS_AUPRC, _CALIBRATED)


def _with_prefix(prefix: str, found: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def _lone_classes(rows: Rows, classes: Sequence[str]) -> list[str]:
    cases_of_class = np.bincount(rows.case_label_K, minlength=len(classes))
    return [name for name, count in zip(classes, cases_of_class, strict=True) if count == 1]


def _delong(
    rows: Rows, classes: Sequence[str], config: MetricsConfig, *, by_slide: bool
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """By `auroc`, or by class where there are more; and why some are absent, by `delong` or `delong.<class>`."""
    if not len(rows.label_N):
        return {}, {"delong": "no row has a label"}
    if by_slide:
        return {}, {"delong": "slides of one case are not independent of each other; see it by case"}
    testable, reasons = testable_classes(rows.label_N, classes)
    found = {}
    for name, (c, positive_N) in testable.items():
        (auroc,), ((variance,),) = auroc_covariance(rows.probability_NC[None, :, c], positive_N)
        if ends := log_odds_interval(auroc, variance, config.confidence):
            found[name] = Estimate(float(auroc), *ends)
        else:
            reasons[reason_key(name)] = "the AUROC's variance is 0: every case of a class ranks alike against the rest"
    return found, reasons


# ---- tables and curves


def _confusion(rows: Rows, num_classes: int) -> tuple[tuple[int, ...], ...]:
    cells = np.bincount(rows.label_N * num_classes + rows.predicted_N, minlength=num_classes**2)
    return tuple(tuple(row) for row in cells.reshape(num_classes, num_classes).tolist())


def _roc_curves(rows: Rows, classes: Sequence[str]) -> dict[str, RocCurve]:
    from sklearn.metrics import roc_curve

    curves = {}
    for c in (1,) if len(classes) == 2 else range(len(classes)):
        positive_N = rows.label_N == c
        if positive_N.any() and not positive_N.all():
            false_rate, true_rate, _ = roc_curve(positive_N, rows.probability_NC[:, c])
            curves[classes[c]] = RocCurve(tuple(false_rate.tolist()), tuple(true_rate.tolist()))
    return curves
