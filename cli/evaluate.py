"""`wsi-dbps evaluate`: predictions become metrics and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish

from wsi_dbps.workflows.evaluate import EvaluateOptions, evaluate


@derived(cohort={"metavar": "COHORT.csv"})
def command(
    preds: Annotated[
        list[Path],
        typer.Argument(
            metavar="PRED...",
            help="Folder of predictions, as `wsi-dbps predict` wrote it; several, or one of folds: they are pooled.",
        ),
    ],
    options: EvaluateOptions,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; the predictions' own if not given.")] = None,
) -> None:
    """Compute metrics of predictions and write a report.

    Writes metrics.json and report.html, by case and by slide, with 95 % intervals from resampling cases. A folder of
    `predict --folds all` is taken as its folds, whose cases are pooled.

    The report holds a leak check and the training curves where the run of the predictions is still there.
    """
    finish(evaluate(preds, out, options))
