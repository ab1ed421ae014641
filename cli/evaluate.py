"""`wsi-dbps evaluate`: predictions become metrics and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

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

    def each(say: Callable[[dict[str, Any]], str]) -> str:
        return "; ".join(dict.fromkeys(say(member) for member in made.get("members", [made])))

    def selection(member: dict[str, Any]) -> str:
        of = member["settings"]["selection"]
        return f"{of['preset']}, M = {of['num_salient']}, S = {of['num_subsalient']}"

    return {
        "Checkpoint": each(lambda m: f"{m['checkpoint']} ({m['checkpoint_fingerprint']}), epoch {m['epoch']}"),
        "Encoder": each(lambda m: m["settings"]["encoder"]["name"]),
        "Selection": each(selection),
        "Seed": each(lambda m: str(m["settings"]["training"]["seed"])),
        "wsi-dbps": made["wsi_dbps_version"],
    }
