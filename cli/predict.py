"""`wsi-dbps predict`: a run and caches become predictions and attention."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.options import (
    Bags,
    CohortCsv,
    Columns,
    Device,
    Fold,
    Runs,
    Split,
    cohort_part,
    fold_runs,
    member_runs,
    warn_of_more_to_come,
    warn_of_seen,
)


def command(
    runs: Runs,
    cohort: CohortCsv,
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Folder for predictions.csv and the attention of every slide.")],
    split: Annotated[Split, typer.Option(help="Which slides.")] = Split.TEST,
    fold: Fold = None,
    folds: Annotated[
        str | None, typer.Option(help="all: each fold's test slides by its own run, into OUT/fold0, OUT/fold1 ...")
    ] = None,
    device: Device = "auto",
    columns: Columns = [],
) -> None:
    """Predict slides and cases with a trained model.

    Labels are not needed. Every patch's attention and evidence is kept.

    Several runs, or a run of folds, are an ensemble: the mean of their probabilities.
    """
    if folds is None:
        failed = predicted(runs, cohort, caches, out, split, fold, device, columns)
    else:
        from wsi_dbps.core.errors import ConfigError

        if folds != "all" or len(runs) > 1 or fold is not None or not fold_runs(runs[0]):
            raise ConfigError("--folds takes `all`, one folder of `train --folds all`, and no --fold beside it")
        failed = sum(
            predicted([run], cohort, caches, out / run.name, split, k, device, columns)
            for k, run in fold_runs(runs[0]).items()
        )
    if failed:
        raise typer.Exit(1)


def predicted(
    runs: list[Path],
    cohort: Path,
    caches: Path,
    out: Path,
    split: Split,
    fold: int | None,
    device: str,
    columns: list[str],
) -> int:
    """Predict, print what was written, and say how many slides failed."""
    from wsi_dbps.cohort.labels import mixed_cases
    from wsi_dbps.inference.predict import predict
    from wsi_dbps.training.checkpoint import load_checkpoint

    slides = cohort_part(cohort, columns, split, fold)
    if mixed := mixed_cases(slides.records):
        print(
            f"wsi-dbps: {len(mixed)} cases, the first {next(iter(mixed))}, have slides with different labels; they are "
            "predicted, and written as cases without a label, which `evaluate` leaves out",
            file=sys.stderr,
        )
    members = member_runs(runs, fold)
    checkpoints = [load_checkpoint(run / "best.pt") for run in members]
    for run, checkpoint in zip(members, checkpoints, strict=True):
        warn_of_seen(run, slides)
        warn_of_more_to_come(run, checkpoint)
    result = predict(checkpoints, slides, caches, out, device=device)
    done = result.predictions
    of = f" by {len(members)} runs together" if len(members) > 1 else ""
    print(
        f"{len(done.slides)} slides of {len(done.cases)} cases predicted{of}, {len(result.failed)} failed: "
        f"{out / 'predictions.csv'}"
    )
    return len(result.failed)
