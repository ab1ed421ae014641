"""The figures of a report, as SVG within data URLs. Each has one pair of axes, to stand in a row or a column."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wsi_dbps.formats.predictions import Predictions
    from wsi_dbps.metrics.bootstrap import Estimate
    from wsi_dbps.metrics.metrics import Metrics
    from wsi_dbps.metrics.reliability import CalibrationBin
    from wsi_dbps.report.runs import RunRecord
    from wsi_dbps.report.truth import Curve

ACCENT: Final = "#1f5fa8"
"""Colour of the page's headings, and of the only or the first curve of a figure."""
_INK, _SOFT, _LINE, _OTHER = "#1c2330", "#5d6675", "#c9d0d9", "#d55e00"
_CLASS_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, told apart under every colour blindness; dashes tell a second round of them."""
_DASHES: Final = ("-", "--", "-.", ":")
_LONGEST_NAME: Final = 22


def roc_figure(metrics: Metrics) -> str:
    """ROC curve of the positive class, or of each class against the rest."""
    figure, axes = _square_axes("False positive rate", "True positive rate")
    axes.plot([0, 1], [0, 1], color=_LINE, lw=1.2, ls="--")
    curves = {name: (c.false_positive_rate, c.true_positive_rate) for name, c in metrics.cases.roc.items()}
    cases = metrics.cases
    values = {name: cases.scores.get("auroc") if len(curves) == 1 else cases.class_auroc.get(name) for name in curves}
    _plot_classes(axes, curves, values)
    _legend(axes, "AUROC", "lower right")
    return _inline(figure)


def pr_figure(predictions: Predictions, metrics: Metrics) -> str:
    """Precision over recall of the positive class, or of each class against the rest, by case."""
    from sklearn.metrics import precision_recall_curve

    figure, axes = _square_axes("Recall (sensitivity)", "Precision (share of calls that are right)")
    rows = [row for row in predictions.cases if row.label is not None]
    names = list(metrics.cases.roc)
    curves = {}
    for name in names:
        c = predictions.classes.index(name)
        labelled = [row.label == name for row in rows]
        precision, recall, _ = precision_recall_curve(labelled, [row.probabilities[c] for row in rows])
        curves[name] = (recall.tolist(), precision.tolist())
        if len(names) == 1:
            axes.axhline(sum(labelled) / len(labelled), color=_LINE, lw=1.2, ls="--")
    cases = metrics.cases
    values = {name: cases.scores.get("auprc") if len(names) == 1 else cases.class_auprc.get(name) for name in names}
    _plot_classes(axes, curves, values, steps=True)
    _legend(axes, "Average precision", "lower left")
    return _inline(figure)


def calibration_figure(metrics: Metrics) -> str:
    """Observed share over predicted probability; after temperature scaling too, where there is a temperature."""
    binary = len(metrics.classes) == 2
    figure, axes = _square_axes(
        f"Predicted probability of {_short(metrics.classes[1])}" if binary else "Probability of the predicted class",
        f"Share labelled {_short(metrics.classes[1])}" if binary else "Share predicted correctly",
    )
    axes.plot([0, 1], [0, 1], color=_LINE, lw=1.2, ls="--")
    if after := metrics.cases.calibration_scaled:
        _plot_bins(axes, metrics.cases.calibration, _SOFT, "as predicted", marker="o", counted=False)
        _plot_bins(axes, after, ACCENT, "after temperature scaling", marker="s", counted=True)
        _legend(axes, None, "upper left")
    else:
        _plot_bins(axes, metrics.cases.calibration, ACCENT, None, marker="o", counted=True)
    return _inline(figure)


def loss_figure(run: RunRecord) -> str:
    """Loss of train and val by epoch, the chosen epoch marked."""
    figure, axes = _axes("Epoch", "Loss")
    epochs = [row.epoch for row in run.history]
    axes.plot(epochs, [row.train_loss for row in run.history], color=ACCENT, lw=1.8, marker=_dot(epochs), label="train")
    losses = [row.val_loss for row in run.history]
    axes.plot(epochs, losses, color=_OTHER, lw=1.8, ls="--", marker=_dot(epochs), label="val")
    _mark_chosen(axes, run)
    axes.set_ylim(bottom=0)
    _legend(axes, None, "best")
    return _inline(figure)


def val_auroc_figure(run: RunRecord) -> str | None:
    """AUROC on the validation slides by epoch, the chosen epoch marked; None where it was never computed."""
    known = [(row.epoch, row.val_auroc) for row in run.history if row.val_auroc is not None]
    if not known:
        return None
    figure, axes = _axes("Epoch", "AUROC on the val slides")
    epochs = [epoch for epoch, _ in known]
    axes.plot(epochs, [auroc for _, auroc in known], color=ACCENT, lw=1.8, marker=_dot(epochs), clip_on=False)
    axes.set_ylim(min(0.45, *(auroc for _, auroc in known)), 1)
    axes.axhline(0.5, color=_LINE, lw=1.2, ls="--")
    _mark_chosen(axes, run)
    _legend(axes, None, "lower right")
    return _inline(figure)


def froc_figure(curve: Curve) -> str:
    """Share of lesions found over false alarms per slide."""
    figure, axes = _axes("False alarms per slide", "Share of lesions found")
    axes.plot(curve.x, curve.y, color=ACCENT, lw=2, marker="o", clip_on=False)
    if min(curve.x) > 0:
        axes.set_xscale("log", base=2)
        axes.set_xticks(curve.x, [f"{x:g}" for x in curve.x], minor=False)
    axes.set_ylim(0, 1)
    return _inline(figure)


def order_figure(curve: Curve, kind: str) -> str:
    """The model's confidence as patches go (deletion) or come (insertion): the top first, beside a random order."""
    figure, axes = _axes(f"Share of the patches {kind}", "Probability of the predicted class")
    axes.plot(curve.x, curve.y, color=ACCENT, lw=2, label="highest score first", clip_on=False)
    if curve.random:
        axes.plot(curve.x, curve.random, color=_OTHER, lw=2, ls="--", label="random order", clip_on=False)
        axes.fill_between(curve.x, curve.y, curve.random, color=ACCENT, alpha=0.12, lw=0)
    axes.set(xlim=(0, max(curve.x)), ylim=(min(0.0, *curve.y), max(1.0, *curve.y)))
    _legend(axes, None, "best")
    return _inline(figure)


# ---- parts


def _plot_classes(
    axes: Axes,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    values: Mapping[str, Estimate | None],
    *,
    steps: bool = False,
) -> None:
    one = len(curves) == 1
    for i, (name, (x, y)) in enumerate(curves.items()):
        value = values[name]
        label = (
            f" {_short(name)}  {value.value:.3f}" if value else f" {_short(name)}"
        )  # labels with _ first are dropped
        line = ACCENT if one else _CLASS_COLOURS[i % len(_CLASS_COLOURS)]
        dash = _DASHES[i // len(_CLASS_COLOURS) % len(_DASHES)]
        style: dict[str, Any] = {"drawstyle": "steps-post"} if steps else {}
        axes.plot(x, y, color=line, lw=2, ls=dash, label=label, clip_on=False, **style)
        if one:
            axes.fill_between(x, y, color=line, alpha=0.08, lw=0, step="post" if steps else None)


def _plot_bins(
    axes: Axes, bins: Sequence[CalibrationBin], colour: str, label: str | None, *, marker: str, counted: bool
) -> None:
    from matplotlib.patheffects import withStroke

    x, y = [b.mean_probability for b in bins], [b.observed_share for b in bins]
    most = max(b.num for b in bins)
    sizes = [25 + 150 * b.num / most for b in bins]
    axes.plot(x, y, color=colour, lw=1.2, alpha=0.5, clip_on=False)
    axes.scatter(
        x, y, s=sizes, color=colour, edgecolor="white", lw=1, zorder=3, clip_on=False, marker=marker, label=label
    )
    for b, size in zip(bins, sizes, strict=True):
        if not counted:
            break
        above = b.observed_share < 0.9
        away_pt = 3 + math.sqrt(size / math.pi)
        axes.annotate(
            f"{b.num:,}", (b.mean_probability, b.observed_share), xytext=(0, away_pt if above else -away_pt),
            textcoords="offset points", ha="center", va="bottom" if above else "top", fontsize=8.5, color=_SOFT,
            zorder=4, path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _mark_chosen(axes: Axes, run: RunRecord) -> None:
    if run.chosen is not None:
        axes.axvline(run.chosen, color=_SOFT, lw=1.2, ls=":", label=f"chosen: epoch {run.chosen}")


def _dot(epochs: Sequence[int]) -> str:
    """A marker where a line would be too short to see."""
    return "o" if len(epochs) < 8 else ""


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


_Corner = Literal["best", "upper left", "lower left", "lower right"]


def _legend(axes: Axes, title: str | None, where: _Corner) -> None:
    from matplotlib.collections import PathCollection

    handles, _ = axes.get_legend_handles_labels()
    if not handles:
        return
    size = 10 if len(handles) < 6 else 8
    legend = axes.legend(
        loc=where, framealpha=0.8, edgecolor="none", fontsize=size, labelcolor=_INK, title=title, title_fontsize=size
    )
    legend.get_title().set(color=_SOFT, parse_math=False)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes(np.array([45]))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _square_axes(x_name: str, y_name: str) -> tuple[Figure, Axes]:
    figure, axes = _axes(x_name, y_name, height_inch=4.4)
    axes.set(aspect="equal", xlim=(0, 1), ylim=(0, 1))
    axes.set(xticks=[0, 0.25, 0.5, 0.75, 1], yticks=[0, 0.25, 0.5, 0.75, 1])
    return figure, axes


def _axes(x_name: str, y_name: str, height_inch: float = 3.4) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.6, height_inch), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_xlabel(x_name, color=_INK, fontsize=10, parse_math=False)
    axes.set_ylabel(y_name, color=_INK, fontsize=10, parse_math=False)
    axes.tick_params(colors=_SOFT, labelsize=9, length=3)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=x_name == "Epoch"))
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
