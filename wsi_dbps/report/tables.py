"""The tables of a report as rows of words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wsi_dbps.cohort.cohort import SPLITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wsi_dbps.formats.predictions import Prediction, Predictions
    from wsi_dbps.metrics.bootstrap import Estimate
    from wsi_dbps.metrics.metrics import LevelMetrics, Metrics
    from wsi_dbps.report.runs import RunRecord

NAMES: Final = {
    "auroc": "AUROC",
    "auprc": "Average precision",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "f1": "F1",
    "kappa": "Cohen's kappa",
    "kappa_linear": "Cohen's kappa, linear weights",
    "kappa_quadratic": "Cohen's kappa, quadratic weights",
    "brier": "Brier score (lower is better)",
    "log_loss": "Log loss (lower is better)",
    "ece": "Expected calibration error (lower is better)",
    "intervals": "Intervals",
    "delong": "DeLong's interval",
    "threshold": "Threshold from validation",
    "temperature": "Temperature from validation",
}
_AVERAGED: Final = ("auroc", "auprc", "f1")
_COMPARED: Final = ("auroc", "auprc", "balanced_accuracy", "sensitivity", "specificity", "brier")
"""Columns of the tables of folds and subgroups, those that exist."""
_INK: Final = "#1c2330"
Cell = dict[str, str]


def cell(estimate: Estimate | None, delong: Estimate | None = None) -> Cell | None:
    """A value and its interval in words; None where there is no value."""
    if estimate is None:
        return None
    return {
        "value": f"{estimate.value:.3f}".replace("-", "−"),
        "interval": _interval(estimate),
        "delong": _interval(delong),
    }


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    between = "–" if estimate.low >= 0 else " to "
    return f"{estimate.low:.3f}{between}{estimate.high:.3f}".replace("-", "−")


def score_rows(cases: LevelMetrics, slides: LevelMetrics) -> list[tuple[str, list[Cell | None]]]:
    """Name, value by case and value by slide of every score that exists at either level."""
    rows: list[tuple[str, list[Cell | None]]] = []
    averaged = _AVERAGED if len(cases.class_counts) > 2 else ()
    for key, name in NAMES.items():
        found = [cell(level.scores.get(key), level.delong.get(key)) for level in (cases, slides)]
        if any(found):
            rows.append((name + (", mean of the classes" if key in averaged else ""), found))
        if key in cases.calibrated or key in slides.calibrated:
            scaled = [cell(level.calibrated.get(key)) for level in (cases, slides)]
            rows.append((name.partition(" (")[0] + " after temperature scaling", scaled))
    return rows


def class_rows(metrics: Metrics) -> list[tuple[str, int, Cell | None, Cell | None]]:
    """Of more than two classes each against the rest: name, cases, AUROC, average precision."""
    cases = metrics.cases
    if not cases.class_auroc and not cases.class_auprc:
        return []
    return [
        (name, num, cell(cases.class_auroc.get(name), cases.delong.get(name)), cell(cases.class_auprc.get(name)))
        for name, num in cases.class_counts.items()
    ]


def level_table(levels: Mapping[str, LevelMetrics]) -> tuple[list[str], list[tuple[str, int, list[Cell | None]]]]:
    """Columns, and per level its name, labelled cases and values: for folds and subgroups."""
    keys = [key for key in _COMPARED if any(key in level.scores for level in levels.values())]
    rows = [(name, level.num, [cell(level.scores.get(key)) for key in keys]) for name, level in levels.items()]
    return [NAMES[key].partition(" (")[0] for key in keys], rows


def reason_rows(cases: LevelMetrics, slides: LevelMetrics) -> list[tuple[str, str]]:
    """Each reason once: by case, and by slide where that differs."""
    rows: dict[str, list[str]] = {}
    for level, reasons in (("", cases.reasons), (" by slide", slides.reasons)):
        for key, why in reasons.items():
            if level and (cases.reasons.get(key) == why or key.startswith("delong")):  # DeLong's is for cases
                continue
            rows.setdefault(why, []).append(_reason_name(key) + level)
    return [(", ".join(names), why) for why, names in rows.items()]


def _reason_name(key: str) -> str:
    kind, _, name = key.partition(".")
    if kind == "interval":
        return f"Interval of {_reason_name(name)}"
    kinds = {"class_auroc": "AUROC", "class_auprc": "Average precision", "delong": "DeLong's interval"}
    if kind in kinds and name:
        return f"{kinds[kind]}, {name} against the rest"
    return NAMES.get(key, key).partition(" (")[0]


def confusion_rows(metrics: Metrics) -> list[tuple[str, list[Cell]]]:
    """Per label its name, and how many cases were predicted as each class."""
    if not metrics.cases.num:
        return []
    rows = []
    for name, counts in zip(metrics.classes, metrics.cases.confusion, strict=True):
        shares = [count / max(1, sum(counts)) for count in counts]
        cells = [
            {
                "count": f"{count:,}",
                "share": f"{share:.0%}" if sum(counts) else "–",
                "background": f"color-mix(in srgb, var(--accent) {8 + 80 * share:.0f}%, white)",
                "ink": "#ffffff" if share > 0.85 else _INK,
            }
            for count, share in zip(counts, shares, strict=True)
        ]
        rows.append((name, cells))
    return rows


def cohort_rows(predictions: Predictions, runs: Sequence[RunRecord] = ()) -> list[tuple[str, list[str]]]:
    """Cases, and in brackets slides, by split and label: first what each run saw, then what was predicted."""
    labels = (*predictions.classes, None)
    rows = []
    for run in runs:
        records = run.cohort.records if run.cohort else ()
        for part in ("train", "val"):
            seen = [record for record in records if record.split == part]
            label_of = {r.case_id: r.label for r in sorted(seen, key=lambda r: r.label is not None)}
            if seen:
                said = f"{part} of {run.name}" if len(runs) > 1 else f"{part}, seen by the model"
                rows.append((said, _counts(Counter(label_of.values()), Counter(r.label for r in seen), labels)))
    counted = [Counter((row.split, row.label) for row in of) for of in (predictions.cases, predictions.slides)]
    predicted = [split for split in (*SPLITS, None) if any(key[0] == split for of in counted for key in of)]
    for split in predicted:
        cases, slides = (Counter({label: n for (its, label), n in of.items() if its == split}) for of in counted)
        rows.append((f"{split or 'no split'}, predicted", _counts(cases, slides, labels)))
    if len(predicted) > 1:
        cases, slides = (Counter(row.label for row in of) for of in (predictions.cases, predictions.slides))
        rows.append(("all predicted", _counts(cases, slides, labels)))
    return rows


def _counts(cases: Counter[str | None], slides: Counter[str | None], labels: Sequence[str | None]) -> list[str]:
    cells = [f"{cases[label]:,} ({slides[label]:,})" for label in labels]
    return [*cells, f"{cases.total():,} ({slides.total():,})"]


# ---- slides


@dataclass(frozen=True)
class SlideRow:
    """A slide and what was said of it."""

    row: Prediction
    predicted: str
    right: bool | None
    """None without a label."""
    probability: float
    """Of the predicted class."""
    sureness: float
    """The probability of the predicted class; with a threshold, stretched so that it is 0.5 there and 1 at the end."""
    threshold: float | None
    """Of two classes, the probability from which the second is predicted, if not 0.5."""


def told_apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers with three digits after the point, or with as many more, up to eight, as it takes to tell them apart.

    Examples:
        >>> told_apart(0.13104, 0.13141)
        ('0.1310', '0.1314')
    """
    digits = next((d for d in range(3, 8) if f"{a:.{d}f}" != f"{b:.{d}f}" or a == b), 8)
    return f"{a:.{digits}f}", f"{b:.{digits}f}"


def slide_rows(predictions: Predictions, threshold_of_case: Mapping[str, float]) -> list[SlideRow]:
    """Wrong slides first, the surest of them at the top; then right ones, the least sure first; then unlabelled.

    Args:
        predictions: All of them.
        threshold_of_case: Of two classes, the probability from which the second is predicted; of a case that is not in
            it the more probable class is.
    """

    def judged(row: Prediction) -> SlideRow:
        threshold = threshold_of_case.get(row.case_id)
        if threshold is None:
            predicted, sureness = predictions.predicted(row), max(row.probabilities)
        else:
            p = row.probabilities[1]
            predicted = predictions.classes[int(p >= threshold)]
            above, room = p - threshold, max(1 - threshold, 1e-12)
            sureness = 0.5 + 0.5 * (above / room if above >= 0 else -above / threshold)
        right = None if row.label is None else predicted == row.label
        return SlideRow(
            row, predicted, right, row.probabilities[predictions.classes.index(predicted)], sureness, threshold
        )

    def rank(slide: SlideRow) -> tuple[int, float, str]:
        name = slide.row.slide_id or ""
        if slide.right is None:
            return 2, -slide.sureness, name
        return (1, slide.sureness, name) if slide.right else (0, -slide.sureness, name)

    return sorted((judged(row) for row in predictions.slides), key=rank)


def worth_seeing(slides: Sequence[SlideRow], classes: Sequence[str], num_worst: int = 6) -> list[tuple[str, SlideRow]]:
    """The worst errors, and of each class the surest slide that is right; each with why it is shown."""
    wrong = [slide for slide in slides if slide.right is False][:num_worst]
    found = [("wrong", slide) for slide in wrong]
    for name in classes:
        right = [slide for slide in slides if slide.right and slide.row.label == name]
        if right:
            found.append((f"the surest {name} that is right", max(right, key=lambda slide: slide.sureness)))
    return found
