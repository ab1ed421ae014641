"""`wsi-dbps predict`: a run and caches become predictions and attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.options import Caches, CohortCsv, Columns, Device, Fold, Split, cohort_part


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as `wsi-dbps train` wrote it.")],
    cohort: CohortCsv,
    caches: Caches,
    out: Annotated[Path, typer.Option(help="Folder for predictions.csv and the attention of every slide.")],
    split: Annotated[Split, typer.Option(help="Which slides.")] = Split.TEST,
    fold: Fold = None,
    device: Device = "auto",
    columns: Columns = [],
) -> None:
    """Predict slides and cases, with or without labels, and keep every patch's attention."""
    from wsi_dbps.evaluation.predict import predict
    from wsi_dbps.training.checkpoint import load_checkpoint

    slides = cohort_part(cohort, columns, split, fold)
    result = predict(load_checkpoint(run / "best.pt"), slides, caches, out, device=device)
    done = result.predictions
    print(
        f"{len(done.slides)} slides of {len(done.cases)} cases predicted, {len(result.failed)} failed: "
        f"{out / 'predictions.csv'}"
    )
    if result.failed:
        raise typer.Exit(1)
