"""`wsi-dbps predict`: a run and caches become predictions and attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish
from wsi_dbps_cli.options import Bags, CohortCsv, Runs

from wsi_dbps.workflows.predict import PredictOptions, predict


@derived()
def command(
    runs: Runs,
    cohort: CohortCsv,
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Folder for predictions.csv and the attention of every slide.")],
    options: PredictOptions,
) -> None:
    """Predict slides and cases with a trained model.

    Labels are not needed. Every patch's attention and evidence is kept.

    Several runs, or a run of folds, are an ensemble: the mean of their probabilities.
    """
    finish(predict(runs, cohort, caches, out, options))
