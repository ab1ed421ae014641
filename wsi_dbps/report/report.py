"""Metrics for machines (metrics.json) and for people (report.html, one file that needs nothing else)."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING, Any

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.core.files import write_json, write_text
from wsi_dbps.drawing.placement import drawn_path
from wsi_dbps.report import figures, tables
from wsi_dbps.report.pictures import atlas_pictures, inline_picture
from wsi_dbps.report.runs import find_leaks
from wsi_dbps.report.truth import read_truth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from wsi_dbps.formats.predictions import Predictions
    from wsi_dbps.metrics.metrics import Metrics
    from wsi_dbps.report.runs import RunRecord
    from wsi_dbps.report.tables import SlideRow
    from wsi_dbps.report.truth import Truth


def write_metrics(metrics: Metrics, path: Path) -> None:
    """Write metrics.json atomically; what does not exist is absent, with its reason under `reasons`."""
    write_json(path, {"format": "wsi-dbps metrics", "format_version": 1, **metrics.to_dict()})


def write_report(
    path: Path,
    predictions: Predictions,
    metrics: Metrics,
    *,
    title: str,
    facts: Mapping[str, str],
    runs: Sequence[RunRecord] = (),
    fold_of_case: Mapping[str, str] = {},
    heatmaps: Path | None = None,
    truth: Path | None = None,
    atlas: Path | None = None,
) -> None:
    """Write report.html; a section that has nothing to show is left out.

    Args:
        path: File to write.
        predictions: What the metrics were computed from.
        metrics: From `evaluate`; what `with_flaws` has added stands in the first box of the page.
        title: Heading of the page.
        facts: Where the numbers come from, name to value, in the order to show.
        runs: The runs that made the predictions, from `runs_behind`: for the leak check, the cohort and the training.
        fold_of_case: Name of the fold of each case, where several were pooled: each fold has its own threshold.
        heatmaps: Folder of `wsi-dbps heatmap`, for pictures of the worst errors (<slide_id>.png).
        truth: Folder with any of localisation.json, faithfulness.json and stability.json.
        atlas: Folder of PNG files on what was selected while training.

    Raises:
        PredictionError: If a file under `truth`, `heatmaps` or `atlas` is not what it should be.
        OutputError: If the file cannot be written.
    """
    if heatmaps and not heatmaps.is_dir():
        raise PredictionError(f"{heatmaps}: no such folder of heatmaps; draw them with `wsi-dbps heatmap`")
    found = read_truth(truth) if truth else None
    slides = tables.slide_rows(predictions, _thresholds(predictions, metrics, fold_of_case))
    pictures = _pictures(slides, metrics.classes, heatmaps, found) if heatmaps else []
    shown = {slide_id: i for i, (slide_id, _, image) in enumerate(pictures) if image}
    data = {
        "leaks": _leaks(predictions, runs),
        "cohort": {"classes": metrics.classes, "rows": tables.cohort_rows(predictions, runs)},
        "metrics": _metrics(metrics),
        "classes": tables.class_rows(metrics),
        "curves": _curves(predictions, metrics),
        "confusion": {"classes": metrics.classes, "rows": rows} if (rows := tables.confusion_rows(metrics)) else None,
        "folds": [("Fold", *tables.level_table({"pooled": metrics.cases, **metrics.folds}))] if metrics.folds else None,
        "subgroups": [(column, *tables.level_table(levels)) for column, levels in metrics.subgroups.items()],
        "training": _training(runs),
        "pictures": {"of": pictures, "said": _num_wrong(slides)} if heatmaps else None,
        "truth": _truth(found) if found else None,
        "atlas": atlas_pictures(atlas) if atlas else None,
        "slides": _slides(slides, shown),
        "facts": list(facts.items()),
    }
    write_text(path, _render(title=title, colour=figures.ACCENT, data=data, **_head(predictions, metrics)))


def _thresholds(predictions: Predictions, metrics: Metrics, fold_of_case: Mapping[str, str]) -> dict[str, float]:
    """The threshold of each case that has one."""
    found = {}
    for row in predictions.cases:
        if own := metrics.fold_thresholds.get(fold_of_case.get(row.case_id, ""), metrics.threshold):
            found[row.case_id] = own.value
    return found


def _render(**context: Any) -> str:
    import jinja2
    from markupsafe import Markup

    folder = importlib.resources.files("wsi_dbps.report")
    page, style, script = (
        folder.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("html.j2", "css", "js")
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(page).render(style=Markup(style), script=Markup(script), **context)


# ---- what stands at the top


def _head(predictions: Predictions, metrics: Metrics) -> dict[str, Any]:
    scores = metrics.cases.scores
    names = ("sensitivity", "specificity") if len(metrics.classes) == 2 else ("balanced_accuracy",)
    return {
        "classes": metrics.classes,
        "positive": metrics.classes[1] if len(metrics.classes) == 2 else None,
        "auroc": tables.cell(scores.get("auroc"), metrics.cases.delong.get("auroc")),
        "no_auroc": metrics.cases.reasons.get("auroc", ""),
        "confidence": f"{metrics.config.confidence * 100:g} %",
        "flaws": metrics.flaws,
        "caveats": [caveat for caveat in metrics.caveats if caveat not in metrics.flaws],
        "headline": [
            (f"{metrics.cases.num:,}", "labelled case" + "s" * (metrics.cases.num != 1)),
            (f"{len(predictions.slides):,}", "slide" + "s" * (len(predictions.slides) != 1)),
            *((f"{scores[name].value:.3f}", tables.NAMES[name].lower()) for name in names if name in scores),
        ],
    }


# ---- what the sections show


def _leaks(predictions: Predictions, runs: Sequence[RunRecord]) -> dict[str, Any] | None:
    if not runs:
        return None
    leaks = find_leaks(predictions, runs)
    by_case: dict[str, list[str]] = {}
    for leak in leaks:
        by_case.setdefault(leak.case_id, []).append(f"{leak.split} of {leak.run}" if len(runs) > 1 else leak.split)
    return {
        "num_cases": f"{len(predictions.cases):,}",
        "checked": [run.name for run in runs if run.cohort],
        "unchecked": [run.name for run in runs if not run.cohort],
        "counts": [(split, len({leak.case_id for leak in leaks if leak.split == split})) for split in ("train", "val")],
        "cases": [(case, ", ".join(seen)) for case, seen in by_case.items()],
    }


def _metrics(metrics: Metrics) -> dict[str, Any] | None:
    cases, slides = metrics.cases, metrics.slides
    estimates = (*cases.scores.values(), *slides.scores.values())
    intervals = [estimate for estimate in estimates if estimate.low is not None]
    return {
        "scores": tables.score_rows(cases, slides),
        "reasons": tables.reason_rows(cases, slides),
        "intervals": bool(intervals),
        "perfect": any(estimate.value in (0, 1) for estimate in intervals),
        "delong": bool(cases.delong),
        "confidence": f"{metrics.config.confidence * 100:g} %",
        "num_bootstrap": f"{metrics.config.num_bootstrap:,}",
        "positive": metrics.classes[1],
        "thresholds": {"": metrics.threshold} if metrics.threshold else metrics.fold_thresholds,
        "temperatures": {"": metrics.temperature} if metrics.temperature else metrics.fold_temperatures,
    }


Figure = tuple[str, str, str]
"""The image, words for those who cannot see it, the caption."""


def _curves(predictions: Predictions, metrics: Metrics) -> list[Figure]:
    found = []
    if metrics.cases.roc:
        found.append((figures.roc_figure(metrics), "ROC curve", "ROC: the dashed diagonal is chance."))
        words = "Precision and recall" + (": the dashed line is chance." if len(metrics.cases.roc) == 1 else ".")
        found.append((figures.pr_figure(predictions, metrics), "Precision-recall curve", words))
    if metrics.cases.calibration:
        words = "Calibration: on the diagonal, probabilities can be taken at their word. Numbers: cases."
        found.append((figures.calibration_figure(metrics), "Calibration curve", words))
    return found


def _training(runs: Sequence[RunRecord]) -> list[tuple[str, list[Figure]]]:
    panels = []
    for run in runs:
        if not run.history:
            continue
        found = [(figures.loss_figure(run), "Loss by epoch", "Loss: lower is better.")]
        if auroc := figures.val_auroc_figure(run):
            found.append((auroc, "AUROC on the val slides by epoch", "AUROC on the val slides; 0.5 is chance."))
        panels.append((run.name, found))
    return panels


def _pictures(
    slides: Sequence[SlideRow], classes: Sequence[str], folder: Path, truth: Truth | None
) -> list[tuple[str, str, str | None]]:
    """(slide id, words, image or None) of the slides to look at."""
    found = []
    for why, slide in tables.worth_seeing(slides, classes):
        row, slide_id = slide.row, slide.row.slide_id or ""
        words = f"{why}: label {row.label}, predicted {slide.predicted} ({slide.probability:.3f})"
        if slide.threshold is not None:  # the picture itself names the more probable class
            words = f"{why}: label {row.label}, called {slide.predicted}, as the probability of {classes[1]} is "
            words += " and the threshold ".join(tables.told_apart(row.probabilities[1], slide.threshold))
        if truth and slide_id in truth.slide_auroc:
            words += f", patch AUROC {truth.slide_auroc[slide_id]:.3f}"
        found.append((slide_id, words, inline_picture(drawn_path(folder, slide_id, "png"))))
    return found


def _num_wrong(slides: Sequence[SlideRow]) -> str:
    judged = [slide.right for slide in slides if slide.right is not None]
    if not judged:
        return "No slide has a label, so none is known to be right or wrong."
    return f"{judged.count(False):,} of {len(judged):,} labelled slides are called wrong."


def _truth(truth: Truth) -> dict[str, Any]:
    drawn: list[Figure] = []
    if curve := truth.curves.get("froc"):
        words = "FROC: lesions found, against false alarms."
        drawn.append((figures.froc_figure(curve), "FROC curve", words))
    for name, kind in (("deletion", "taken away"), ("insertion", "put in")):
        if curve := truth.curves.get(name):
            area = tables.cell(curve.summary)
            between = f" Area between: {area['value']}" if area else ""
            between += f" ({area['interval']})." if area and area["interval"] else "." * bool(between)
            words = f"{name.capitalize()}: patches {kind}.{between}"
            drawn.append((figures.order_figure(curve, kind), f"{name.capitalize()} curve", words))
    rows = [(name, tables.cell(estimate), words) for name, estimate, words in truth.rows]
    return {"rows": rows, "figures": drawn, "reasons": truth.reasons}


def _slides(slides: Sequence[SlideRow], pictures: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "slide_id": slide.row.slide_id or "",
            "picture": pictures.get(slide.row.slide_id or ""),
            "case_id": slide.row.case_id,
            "split": slide.row.split or "–",
            "label": slide.row.label or "–",
            "predicted": slide.predicted,
            "verdict": {None: "–", True: "✓ right", False: "✗ wrong"}[slide.right],
            "probability": f"{slide.probability:.3f}",
            "percent": f"{100 * slide.probability:.0f}",
            "num_patches": f"{slide.row.num_patches:,}",
        }
        for slide in slides
    ]
