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
) -> None:
    """Write metrics.json and report.html, by case and by slide, with 95 % intervals resampled by case."""
    from wsi_dbps.config import build
    from wsi_dbps.evaluation.metrics import MetricsConfig, evaluate
    from wsi_dbps.evaluation.report import write_metrics, write_report
    from wsi_dbps.records import read_predictions

    config = build(MetricsConfig, {"num_bootstrap": bootstrap, "seed": seed}, "evaluate")
    predictions = read_predictions(pred / "predictions.csv")
    metrics = evaluate(predictions, config)
    folder = out or pred
    write_metrics(metrics, folder / "metrics.json")
    write_report(folder / "report.html", predictions, metrics, title=pred.resolve().name, facts=_facts(pred))
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
