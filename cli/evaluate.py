"""`wsi-dbps evaluate`: predictions become metrics and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wsi_dbps.evaluation.metrics import Metrics


def command(
    pred: Annotated[
        Path, typer.Argument(metavar="PRED", help="Folder of predictions, as `wsi-dbps predict` wrote it.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; the predictions' own if not given.")] = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples of the cases for each interval.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    run: Annotated[
        list[Path], typer.Option(help="Run that made the predictions, if it has moved since. May be repeated.")
    ] = [],
    heatmaps: Annotated[Path | None, typer.Option(help="Folder of `wsi-dbps heatmap`: pictures of the errors.")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Folder with localisation.json, faithfulness.json, stability.json, or some.")
    ] = None,
    atlas: Annotated[Path | None, typer.Option(help="Folder of pictures of what was selected in training.")] = None,
) -> None:
    """Write metrics.json and report.html, by case and by slide, with 95 % intervals resampled by case.

    The report holds a leak check and the training curves where the run of the predictions is still there.
    """
    from wsi_dbps.config import build
    from wsi_dbps.evaluation.metrics import MetricsConfig, evaluate
    from wsi_dbps.evaluation.report import write_metrics, write_report
    from wsi_dbps.evaluation.report_runs import runs_behind
    from wsi_dbps.records import read_predictions

    config = build(MetricsConfig, {"num_bootstrap": bootstrap, "seed": seed}, "evaluate")
    predictions = read_predictions(pred / "predictions.csv")
    metrics = evaluate(predictions, config)
    folder = out or pred
    runs, why_none = runs_behind(pred, {row.case_id for row in predictions.cases}, run)
    facts = _facts(pred) | ({"Leak check": f"not made: {why_none}"} if why_none else {})
    write_metrics(metrics, folder / "metrics.json")
    write_report(
        folder / "report.html",
        predictions,
        metrics,
        title=pred.resolve().name,
        facts=facts,
        runs=runs,
        heatmaps=heatmaps,
        truth=truth,
        atlas=atlas,
    )
    print(f"{headline(metrics)}: {folder / 'report.html'}")


def headline(metrics: Metrics) -> str:
    """The case-level AUROC with its interval, or why there is none."""
    cases = metrics.cases
    if (auroc := cases.scores.get("auroc")) is None:
        return f"{cases.num} labelled cases, no AUROC ({cases.reasons['auroc']})"
    interval = "" if auroc.low is None else f" ({auroc.low:.3f} to {auroc.high:.3f})"
    return f"AUROC {auroc.value:.3f}{interval} over {cases.num} cases"


def _facts(pred: Path) -> dict[str, str]:
    """What predict.json knows of the making of the predictions, where it is there."""
    import json

    try:
        made = json.loads((pred / "predict.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    selection = made["settings"]["selection"]
    return {
        "Checkpoint": f"{made['checkpoint']} ({made['checkpoint_fingerprint']}), epoch {made['epoch']}",
        "Encoder": made["settings"]["encoder"]["name"],
        "Selection": f"{selection['preset']}, M = {selection['num_salient']}, S = {selection['num_subsalient']}",
        "Seed": str(made["settings"]["training"]["seed"]),
        "wsi-dbps": made["wsi_dbps_version"],
    }
