"""Metrics for machines (metrics.json) and for people (report.html, one file that needs nothing else)."""

from __future__ import annotations

import base64
import importlib.resources
import io
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from wsi_dbps.files import write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wsi_dbps.evaluation.metrics import Estimate, LevelMetrics, Metrics
    from wsi_dbps.records import Prediction, Predictions

_NAMES: Final = {
    "auroc": "AUROC",
    "auprc": "Average precision",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "kappa": "Cohen's kappa",
    "kappa_linear": "Cohen's kappa, linear",
    "kappa_quadratic": "Cohen's kappa, quadratic",
    "brier": "Brier score (lower is better)",
    "log_loss": "Log loss (lower is better)",
    "ece": "Expected calibration error (lower is better)",
    "intervals": "Intervals",
    "delong": "DeLong's interval",
    "threshold": "Threshold from validation",
    "temperature": "Temperature from validation",
}
_SHOWN_SLIDES: Final = 30
"""Rows of the table of slides before the fold."""
_INK, _SOFT, _LINE = "#1c2330", "#5d6675", "#c9d0d9"
_CLASS_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES: Final = ("-", "--", "-.", ":")


def write_metrics(metrics: Metrics, path: Path) -> None:
    """Write metrics.json, whole or not at all; what does not exist is absent, with its reason under `reasons`."""
    write_json(path, {"format": "wsi-dbps metrics", "format_version": 1, **metrics.to_dict()})


def write_report(
    path: Path,
    predictions: Predictions,
    metrics: Metrics,
    *,
    title: str,
    facts: Mapping[str, str],
    colour: str = "#1f5fa8",
) -> None:
    """Write report.html: headline, metrics, curves, confusion, cohort, and slides from the worst error on.

    Args:
        path: File to write.
        predictions: What the metrics were computed from.
        metrics: From `evaluate`.
        title: Heading of the page.
        facts: Where the numbers come from, name to value, in the order to show.
        colour: Accent, as #rrggbb.

    Raises:
        OutputError: If the file cannot be written.
    """
    import jinja2

    page = importlib.resources.files("wsi_dbps.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    slides = _slide_rows(predictions)
    text = environment.from_string(page).render(
        title=title,
        colour=colour,
        facts=list(facts.items()),
        caveats=metrics.caveats,
        cohort=_cohort_rows(predictions),
        slides=slides[:_SHOWN_SLIDES],
        more_slides=slides[_SHOWN_SLIDES:],
        figures=_figures(metrics, colour),
        confusion=_confusion_rows(metrics),
        **_words(metrics),
        headline=_headline(predictions, metrics),
    )
    write_text(path, text)


def _words(metrics: Metrics) -> dict[str, Any]:
    cases, slides = metrics.cases, metrics.slides
    auroc = cases.scores.get("auroc")
    estimates = (*cases.scores.values(), *slides.scores.values())
    intervals = [(estimate.low, estimate.high) for estimate in estimates if estimate.low is not None]
    return {
        "classes": metrics.classes,
        "positive": metrics.classes[1] if len(metrics.classes) == 2 else None,
        "auroc": _cell(auroc) if auroc else None,
        "no_auroc": cases.reasons.get("auroc", ""),
        "confidence": f"{metrics.config.confidence * 100:g} %",
        "num_bootstrap": f"{metrics.config.num_bootstrap:,}",
        "scores": _score_rows(cases, slides),
        "intervals": bool(intervals),
        "no_width": any(low == high for low, high in intervals),
        "reasons": _reason_rows(cases, slides),
    }


def _cell(estimate: Estimate) -> dict[str, str]:
    interval = "" if estimate.low is None or estimate.high is None else f"{estimate.low:.3f}–{estimate.high:.3f}"
    return {"value": f"{estimate.value:.3f}", "interval": interval}


def _headline(predictions: Predictions, metrics: Metrics) -> list[tuple[str, str]]:
    def some(count: int, noun: str) -> tuple[str, str]:
        return f"{count:,}", noun if count == 1 else noun + "s"

    numbers = [some(metrics.cases.num, "labelled case"), some(len(predictions.slides), "slide")]
    names = ("sensitivity", "specificity") if len(metrics.classes) == 2 else ("balanced_accuracy",)
    scores = metrics.cases.scores
    return [*numbers, *((f"{scores[name].value:.3f}", _NAMES[name].lower()) for name in names if name in scores)]


def _score_rows(cases: LevelMetrics, slides: LevelMetrics) -> list[tuple[str, list[dict[str, str] | None]]]:
    rows = []
    averaged = ("auroc", "auprc", "f1") if len(cases.class_counts) > 2 else ()
    for key in _NAMES:
        found = [level.scores.get(key) for level in (cases, slides)]
        if any(found):
            label = _NAMES[key] + (", mean of the classes" if key in averaged else "")
            rows.append((label, [_cell(estimate) if estimate else None for estimate in found]))
        if key == "auroc":
            for name in cases.class_counts:
                found = [level.class_auroc.get(name) for level in (cases, slides)]
                if any(found):
                    label = f"AUROC, {name} against the rest"
                    rows.append((label, [_cell(estimate) if estimate else None for estimate in found]))
    return rows


def _reason_rows(cases: LevelMetrics, slides: LevelMetrics) -> list[tuple[str, str]]:
    """Each reason once: by case, and by slide where that differs."""
    rows: dict[str, list[str]] = {}
    for level, reasons in (("", cases.reasons), (" by slide", slides.reasons)):
        for key, why in reasons.items():
            if level and cases.reasons.get(key) == why:
                continue
            score, _, of = key.partition(".")
            one = {"class_auprc": _NAMES["auprc"], "delong": _NAMES["delong"]}.get(score, _NAMES["auroc"])
            name = _NAMES.get(key) or f"{one}, {of} against the rest"
            rows.setdefault(why, []).append(name + level)
    return [(", ".join(names), why) for why, names in rows.items()]


def _confusion_rows(metrics: Metrics) -> list[tuple[str, list[dict[str, str]]]]:
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
                "ink": "#ffffff" if share > 0.8 else _INK,
            }
            for count, share in zip(counts, shares, strict=True)
        ]
        rows.append((name, cells))
    return rows


def _cohort_rows(predictions: Predictions) -> list[tuple[str, list[str]]]:
    """Cases and slides by split and label, and all together."""
    cases, slides = (Counter((row.split, row.label) for row in of) for of in (predictions.cases, predictions.slides))
    order = ["train", "val", "test", *sorted({row.split for row in predictions.slides if row.split}), None]
    splits = [split for split in dict.fromkeys(order) if any(key[0] == split for key in (*cases, *slides))]
    labels = (*predictions.classes, None)

    def cells(wanted: Sequence[str | None]) -> list[str]:
        pairs = [[(split, label) for split in wanted] for label in labels]
        pairs.append([pair for some in pairs for pair in some])
        return [f"{sum(cases[p] for p in some):,} ({sum(slides[p] for p in some):,})" for some in pairs]

    rows = [(split or "no split", cells([split])) for split in splits]
    return rows if len(rows) == 1 else [*rows, ("all", cells(splits))]


def _slide_rows(predictions: Predictions) -> list[dict[str, str]]:
    """Wrong slides first, the surest of them at the top; then right ones, the least sure first; then unlabelled."""

    def rank(row: Prediction) -> tuple[int, float, str]:
        sureness, name = max(row.probabilities), row.slide_id or ""
        if row.label is None:
            return 2, -sureness, name
        return (1, sureness, name) if predictions.predicted(row) == row.label else (0, -sureness, name)

    rows = []
    for row in sorted(predictions.slides, key=rank):
        predicted = predictions.predicted(row)
        verdict = "" if row.label is None else "right" if predicted == row.label else "wrong"
        rows.append(
            {
                "slide_id": row.slide_id or "",
                "case_id": row.case_id,
                "split": row.split or "–",
                "label": row.label or "–",
                "predicted": predicted,
                "verdict": verdict,
                "probability": f"{max(row.probabilities):.3f}",
                "percent": f"{100 * max(row.probabilities):.1f}",
                "num_patches": f"{row.num_patches:,}",
            }
        )
    return rows


# ---- figures


def _figures(metrics: Metrics, colour: str) -> list[tuple[str, str, str]]:
    """(image, words for those who cannot see it, caption) of each figure there is."""
    found = []
    if metrics.cases.roc:
        found.append((_roc_figure(metrics, colour), "ROC curve", "ROC: the dashed diagonal is chance."))
    if metrics.cases.calibration:
        words = "Calibration: on the diagonal, probabilities can be taken at their word. Numbers: cases."
        found.append((_calibration_figure(metrics, colour), "Calibration curve", words))
    return found


def _roc_figure(metrics: Metrics, colour: str) -> str:
    figure, axes = _square_axes("False positive rate", "True positive rate")
    axes.plot([0, 1], [0, 1], color=_LINE, lw=1.2, ls="--")
    one = len(metrics.cases.roc) == 1
    for i, (name, curve) in enumerate(metrics.cases.roc.items()):
        auroc = metrics.cases.scores.get("auroc") if one else metrics.cases.class_auroc.get(name)
        label = f" {name}  {auroc.value:.3f}" if auroc else f" {name}"  # matplotlib drops labels that start with _
        line = colour if one else _CLASS_COLOURS[i % len(_CLASS_COLOURS)]
        dash = _DASHES[i // len(_CLASS_COLOURS) % len(_DASHES)]
        x, y = curve.false_positive_rate, curve.true_positive_rate
        axes.plot(x, y, color=line, lw=2, ls=dash, label=label, clip_on=False)
        if one:
            axes.fill_between(x, y, color=line, alpha=0.08, lw=0)
    legend = axes.legend(loc="lower right", frameon=False, fontsize=10, labelcolor=_INK, title="AUROC")
    legend.get_title().set_color(_SOFT)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _inline(figure)


def _calibration_figure(metrics: Metrics, colour: str) -> str:
    from matplotlib.patheffects import withStroke

    binary = len(metrics.classes) == 2
    figure, axes = _square_axes(
        f"Predicted probability of {metrics.classes[1]}" if binary else "Probability of the predicted class",
        f"Share labelled {metrics.classes[1]}" if binary else "Share predicted correctly",
    )
    bins = metrics.cases.calibration
    axes.plot([0, 1], [0, 1], color=_LINE, lw=1.2, ls="--")
    x, y = [b.mean_probability for b in bins], [b.observed_share for b in bins]
    most = max(b.num for b in bins)
    axes.plot(x, y, color=colour, lw=1.2, alpha=0.5, clip_on=False)
    sizes = [25 + 150 * b.num / most for b in bins]
    axes.scatter(x, y, s=sizes, color=colour, edgecolor="white", lw=1, zorder=3, clip_on=False)
    for b in bins:
        above = b.observed_share < 0.9
        away_pt = 3 + math.sqrt((25 + 150 * b.num / most) / math.pi)
        axes.annotate(
            f"{b.num:,}", (b.mean_probability, b.observed_share), xytext=(0, away_pt if above else -away_pt),
            textcoords="offset points", ha="center", va="bottom" if above else "top", fontsize=8.5, color=_SOFT,
            zorder=4, path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    return _inline(figure)


def _square_axes(x_name: str, y_name: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), layout="constrained", facecolor="white")
    axes = figure.add_subplot(aspect="equal", xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel(x_name, color=_INK, fontsize=10, parse_math=False)
    axes.set_ylabel(y_name, color=_INK, fontsize=10, parse_math=False)
    axes.tick_params(colors=_SOFT, labelsize=9, length=3)
    axes.set(xticks=[0, 0.25, 0.5, 0.75, 1], yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.grid(color="#eef1f4", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return figure, axes


def _inline(figure: Figure) -> str:
    """The figure as an SVG that an `img` holds: its ids cannot clash with those of another."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "wsi-dbps"}):  # the same figure, the same bytes
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode("ascii")
