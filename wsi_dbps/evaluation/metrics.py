"""How good predictions are, by case and by slide, with bootstrap intervals.

N: rows, K: cases, B: bootstrap samples, C: classes, G: groups of rows with the same score. Of two classes the second
is positive.

An interval is the range of the same metric over samples of cases, drawn with replacement. Cases are drawn within their
class (stratified), so that every sample has the class counts of the data and each metric exists in all of them; a slide
comes and goes with its case. A sample is a weight per row, how often its case was drawn: all samples are computed at
once, and the value itself is the sample in which every row counts once.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.config import settings
from wsi_dbps.errors import PredictionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from wsi_dbps.records import Prediction, Predictions

FEW_CASES: Final = 20
"""A class with fewer cases than this is named in the caveats."""
_CHUNK: Final = 4_000_000
"""Weights in memory at once."""


@settings
class MetricsConfig:
    """How metrics are computed."""

    num_bootstrap: int = 2000
    """Samples of cases behind each interval."""
    confidence: float = 0.95
    """Share of the samples that lies within the interval."""
    num_calibration_bins: int = 10
    """Bins of equal width from 0 to 1 in the calibration curve."""
    seed: int = 0
    """Of the random samples."""

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        if self.num_bootstrap < 1 or self.num_calibration_bins < 1 or not 0 < self.confidence < 1:
            raise ValueError("num_bootstrap and num_calibration_bins are at least 1, confidence between 0 and 1")


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; the interval is None where a class has a single case."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class RocCurve:
    """Points from (0, 0) to (1, 1), one per threshold that changes the direction of the curve."""

    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]


@dataclass(frozen=True)
class CalibrationBin:
    """The rows whose probability lies in one bin; empty bins are left out."""

    num: int
    mean_probability: float
    """Of the positive class; of the predicted class where there are more than two."""
    observed_share: float
    """Share of the rows that are positive; of those predicted correctly where there are more than two classes."""


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
    balanced_accuracy, f1 (of the positive class, or macro), brier (of the positive class, or summed over the classes),
    and for two classes sensitivity and specificity."""
    class_auroc: Mapping[str, Estimate]
    """One class against the rest; empty for two classes."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows: the label; columns: the predicted class; in the order of the classes."""
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
    folds: Mapping[str, LevelMetrics] = field(default_factory=dict)
    """The cases of each fold, where several were pooled."""
    subgroups: Mapping[str, Mapping[str, LevelMetrics]] = field(default_factory=dict)
    """By column of the manifest and its value: the cases that have it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is None is left out."""

        def known(items: list[tuple[str, Any]]) -> dict[str, Any]:
            return {name: value for name, value in items if value is not None}

        return dataclasses.asdict(self, dict_factory=known)


def evaluate(predictions: Predictions, config: MetricsConfig | None = None) -> Metrics:
    """Metrics by case and by slide of every row that has a label, whatever its split.

    The order of the rows changes nothing, nor does running it again.

    Raises:
        PredictionError: If a label is not one of the classes.
    """
    config = config or MetricsConfig()
    return Metrics(
        classes=predictions.classes,
        config=config,
        cases=_level(predictions.cases, predictions.classes, config),
        slides=_level(predictions.slides, predictions.classes, config),
        caveats=_caveats(predictions),
    )


def _caveats(predictions: Predictions) -> tuple[str, ...]:
    rows, found = predictions.cases, []
    splits = Counter(row.split for row in rows)
    for split, why in (("train", "the model has learnt from them"), ("val", "the checkpoint was chosen on them")):
        if splits[split]:
            found.append(
                f"{splits[split]} of {len(rows)} cases are of split {split}: {why}, so the results flatter it."
            )
    counts = Counter(row.label for row in rows)
    if counts[None]:
        found.append(f"{counts[None]} of {len(rows)} cases have no label and are left out.")
    for name in predictions.classes:
        if 0 < counts[name] < FEW_CASES:
            cases = "1 case is" if counts[name] == 1 else f"{counts[name]} cases are"
            found.append(f"Only {cases} labelled {name}: every number is uncertain, and so are the intervals.")
    return tuple(found)


def _level(predictions: Sequence[Prediction], classes: Sequence[str], config: MetricsConfig) -> LevelMetrics:
    rows = _rows(predictions, classes)
    counts = np.bincount(rows.label_N, minlength=len(classes)).tolist()
    metrics = _metrics(classes)
    reasons = {name: why for name, metric in metrics.items() if (why := _why_absent(metric, counts, classes))}
    estimates = _estimates({name: metric for name, metric in metrics.items() if name not in reasons}, rows, config)
    if lone := _lone_classes(rows, classes):
        reasons["intervals"] = f"{', '.join(lone)}: a single case; an interval needs two or more in each class"
    by_class = {name: value for name, value in estimates.items() if name.startswith(_BY_CLASS)}
    return LevelMetrics(
        num=len(rows.label_N),
        num_unlabelled=len(predictions) - len(rows.label_N),
        num_cases=len(rows.case_label_K),
        class_counts=dict(zip(classes, counts, strict=True)),
        scores={name: value for name, value in estimates.items() if name not in by_class},
        class_auroc={name.removeprefix(_BY_CLASS): value for name, value in by_class.items()},
        confusion=_confusion(rows, len(classes)),
        roc=_roc_curves(rows, classes),
        calibration=_calibration(rows, config.num_calibration_bins),
        reasons=reasons,
    )


@dataclass(frozen=True)
class _Rows:
    """Labelled predictions as arrays, in an order of their own."""

    label_N: npt.NDArray[np.intp]
    probability_NC: npt.NDArray[np.float64]
    predicted_N: npt.NDArray[np.intp]
    """The first of equally probable classes."""
    case_N: npt.NDArray[np.intp]
    case_label_K: npt.NDArray[np.intp]


def _rows(predictions: Sequence[Prediction], classes: Sequence[str]) -> _Rows:
    known = [row for row in predictions if row.label is not None]
    known.sort(key=lambda row: (row.case_id, row.slide_id or ""))
    for row in known:
        if row.label not in classes:
            raise PredictionError(f"{row.case_id}: label {row.label!r} is not one of the classes {', '.join(classes)}")
    label_N = np.array([classes.index(str(row.label)) for row in known], np.intp)
    probability_NC = np.array([row.probabilities for row in known], np.float64).reshape(len(known), len(classes))
    _, first, case_N = np.unique([row.case_id for row in known], return_index=True, return_inverse=True)
    return _Rows(label_N, probability_NC, probability_NC.argmax(axis=1), case_N.astype(np.intp), label_N[first])


# ---- which metrics, and whether they exist


@dataclass(frozen=True)
class _Metric:
    needs: tuple[int, ...]
    """Classes that need a row each."""
    compute: Callable[[npt.NDArray[np.float64], _Rows], npt.NDArray[np.float64]]
    """From (B, N) weights to (B,) values."""
    needs_rest: bool = False
    """Whether a row of another class is needed too."""


_BY_CLASS: Final = "class_auroc."


def _metrics(classes: Sequence[str]) -> dict[str, _Metric]:
    """What there is to compute, by the name it has in `reasons`."""
    binary, every = len(classes) == 2, tuple(range(len(classes)))
    ranked = (1,) if binary else every  # the classes whose one-against-the-rest values are averaged
    metrics = {
        "auroc": _Metric(every, partial(_mean_over, ranked, _auroc)),
        "auprc": _Metric(every, partial(_mean_over, ranked, _auprc)),
        "accuracy": _Metric((), lambda w_BN, rows: _share(w_BN, rows.predicted_N == rows.label_N)),
        "balanced_accuracy": _Metric(every, partial(_mean_over, every, _recall)),
        "f1": _Metric(every, partial(_mean_over, ranked, _f1)),
        "brier": _Metric((), lambda w_BN, rows: _share(w_BN, _squared_error(rows, binary=binary))),
    }
    if binary:
        metrics["sensitivity"] = _Metric((1,), partial(_recall, c=1))
        metrics["specificity"] = _Metric((0,), partial(_recall, c=0))
        return metrics
    for c, name in enumerate(classes):
        metrics[_BY_CLASS + name] = _Metric((c,), partial(_auroc, c=c), needs_rest=True)
    return metrics


def _why_absent(metric: _Metric, counts: Sequence[int], classes: Sequence[str]) -> str | None:
    if not sum(counts):
        return "no row has a label"
    if missing := [classes[c] for c in metric.needs if not counts[c]]:
        return f"no row is labelled {', '.join(missing)}"
    if metric.needs_rest and counts[metric.needs[0]] == sum(counts):
        return f"every row is labelled {classes[metric.needs[0]]}"
    return None


def _lone_classes(rows: _Rows, classes: Sequence[str]) -> list[str]:
    cases_of_class = np.bincount(rows.case_label_K, minlength=len(classes))
    return [name for name, count in zip(classes, cases_of_class, strict=True) if count == 1]


# ---- values and intervals


def _estimates(metrics: Mapping[str, _Metric], rows: _Rows, config: MetricsConfig) -> dict[str, Estimate]:
    every_row_once = np.ones((1, len(rows.label_N)))
    values = {name: float(metric.compute(every_row_once, rows)[0]) for name, metric in metrics.items()}
    if not len(rows.label_N) or (np.bincount(rows.case_label_K) == 1).any():
        return {name: Estimate(value) for name, value in values.items()}
    samples: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in metrics}
    for weights_BN in _samples(rows, config):
        for name, metric in metrics.items():
            samples[name].append(metric.compute(weights_BN, rows))
    tail = (1 - config.confidence) / 2
    ends = {name: np.quantile(np.concatenate(found), [tail, 1 - tail]).tolist() for name, found in samples.items()}
    return {name: Estimate(value, *ends[name]) for name, value in values.items()}


def _samples(rows: _Rows, config: MetricsConfig) -> Iterator[npt.NDArray[np.float64]]:
    """(B, N) weights, some samples at a time: in each, a class's K cases are drawn K times with replacement."""
    random = np.random.default_rng(config.seed)
    at_once = max(1, _CHUNK // len(rows.label_N))
    for start in range(0, config.num_bootstrap, at_once):
        num = min(at_once, config.num_bootstrap - start)
        drawn_BK = np.zeros((num, len(rows.case_label_K)))
        for c in np.unique(rows.case_label_K):
            cases = np.flatnonzero(rows.case_label_K == c)
            drawn_BK[:, cases] = random.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=num)
        yield drawn_BK[:, rows.case_N]


def _share(weights_BN: npt.NDArray[np.float64], amount_N: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The weighted mean."""
    mean: npt.NDArray[np.float64] = weights_BN @ amount_N.astype(np.float64) / weights_BN.sum(axis=1)
    return mean


def _mean_over(
    classes: Sequence[int],
    compute: Callable[[npt.NDArray[np.float64], _Rows, int], npt.NDArray[np.float64]],
    weights_BN: npt.NDArray[np.float64],
    rows: _Rows,
) -> npt.NDArray[np.float64]:
    mean_B: npt.NDArray[np.float64] = np.mean([compute(weights_BN, rows, c) for c in classes], axis=0)
    return mean_B


def _recall(weights_BN: npt.NDArray[np.float64], rows: _Rows, c: int) -> npt.NDArray[np.float64]:
    labelled_N = rows.label_N == c
    return _share(weights_BN[:, labelled_N], rows.predicted_N[labelled_N] == c)


def _f1(weights_BN: npt.NDArray[np.float64], rows: _Rows, c: int) -> npt.NDArray[np.float64]:
    labelled_N, predicted_N = rows.label_N == c, rows.predicted_N == c
    both_B = weights_BN @ (labelled_N & predicted_N).astype(np.float64)
    f1_B: npt.NDArray[np.float64] = 2 * both_B / (weights_BN @ (labelled_N.astype(np.float64) + predicted_N))
    return f1_B


def _squared_error(rows: _Rows, *, binary: bool) -> npt.NDArray[np.float64]:
    error_NC = rows.probability_NC - np.eye(rows.probability_NC.shape[1])[rows.label_N]
    error_N: npt.NDArray[np.float64] = error_NC[:, 1] ** 2 if binary else (error_NC**2).sum(axis=1)
    return error_N


def _auroc(weights_BN: npt.NDArray[np.float64], rows: _Rows, c: int) -> npt.NDArray[np.float64]:
    """The share of pairs of a row of class c and another in which the first scores higher, equals counting half."""
    positive_BG, negative_BG = _by_score(weights_BN, rows, c)
    below_BG = negative_BG.cumsum(axis=1) - negative_BG / 2
    pairs_B = positive_BG.sum(axis=1) * negative_BG.sum(axis=1)
    auroc_B: npt.NDArray[np.float64] = (positive_BG * below_BG).sum(axis=1) / pairs_B
    return auroc_B


def _auprc(weights_BN: npt.NDArray[np.float64], rows: _Rows, c: int) -> npt.NDArray[np.float64]:
    """Average precision: the mean over the rows of class c of the precision at their score."""
    positive_BG, negative_BG = (groups[:, ::-1] for groups in _by_score(weights_BN, rows, c))
    above_BG = positive_BG.cumsum(axis=1)
    called_BG = above_BG + negative_BG.cumsum(axis=1)
    precision_BG = np.divide(above_BG, called_BG, out=np.zeros_like(called_BG), where=called_BG > 0)
    auprc_B: npt.NDArray[np.float64] = (positive_BG * precision_BG).sum(axis=1) / positive_BG.sum(axis=1)
    return auprc_B


def _by_score(
    weights_BN: npt.NDArray[np.float64], rows: _Rows, c: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(B, G) weight of the rows of class c, and of the others, with each distinct probability of c, lowest first."""
    score_N = rows.probability_NC[:, c]
    order = np.argsort(score_N, kind="stable")
    first_of_group = np.flatnonzero(np.diff(score_N[order], prepend=-1.0))
    sorted_BN, labelled_N = weights_BN[:, order], (rows.label_N == c)[order]
    positive_BG = np.add.reduceat(sorted_BN * labelled_N, first_of_group, axis=1)
    return positive_BG, np.add.reduceat(sorted_BN * ~labelled_N, first_of_group, axis=1)


# ---- tables and curves


def _confusion(rows: _Rows, num_classes: int) -> tuple[tuple[int, ...], ...]:
    cells = np.bincount(rows.label_N * num_classes + rows.predicted_N, minlength=num_classes**2)
    return tuple(tuple(row) for row in cells.reshape(num_classes, num_classes).tolist())


def _roc_curves(rows: _Rows, classes: Sequence[str]) -> dict[str, RocCurve]:
    from sklearn.metrics import roc_curve

    curves = {}
    for c in (1,) if len(classes) == 2 else range(len(classes)):
        positive_N = rows.label_N == c
        if positive_N.any() and not positive_N.all():
            false_rate, true_rate, _ = roc_curve(positive_N, rows.probability_NC[:, c])
            curves[classes[c]] = RocCurve(tuple(false_rate.tolist()), tuple(true_rate.tolist()))
    return curves


def _calibration(rows: _Rows, num_bins: int) -> tuple[CalibrationBin, ...]:
    if rows.probability_NC.shape[1] == 2:
        probability_N, observed_N = rows.probability_NC[:, 1], rows.label_N == 1
    else:
        probability_N, observed_N = rows.probability_NC.max(axis=1, initial=0), rows.label_N == rows.predicted_N
    bin_N = np.minimum((probability_N * num_bins).astype(np.intp), num_bins - 1)
    return tuple(
        CalibrationBin(int(inside.sum()), float(probability_N[inside].mean()), float(observed_N[inside].mean()))
        for b in np.unique(bin_N)
        if (inside := bin_N == b).any()
    )
