"""`wsi-dbps predict`: a run and caches become predictions and attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)

if TYPE_CHECKING:
    from wsi_dbps.cohort.cohort import Cohort


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
    """Predict slides and cases, with or without labels, and keep every patch's attention and evidence.

    Several runs, or a run of folds, are an ensemble: the mean of their probabilities.
    """
    if folds is None:
        failed = predicted(runs, cohort, caches, out, split, fold, device, columns)
    else:
        from wsi_dbps.errors import ConfigError

        if folds != "all" or len(runs) > 1 or fold is not None or not fold_runs(runs[0]):
            raise ConfigError("--folds takes `all`, one folder of `train --folds all`, and no --fold beside it")
        failed = sum(
            predicted([run], cohort, caches, out / run.name, split, k, device, columns)
            for k, run in enumerate(fold_runs(runs[0]))
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
    from wsi_dbps.evaluation.predict import predict
    from wsi_dbps.training.checkpoint import load_checkpoint

    slides = cohort_part(cohort, columns, split, fold)
    members = member_runs(runs, fold)
    for run in members:
        warn_of_seen(run, slides)
    checkpoints = [load_checkpoint(run / "best.pt") for run in members]
    result = predict(checkpoints, slides, caches, out, device=device)
    done = result.predictions
    of = f" by {len(members)} runs together" if len(members) > 1 else ""
    print(
        f"{len(done.slides)} slides of {len(done.cases)} cases predicted{of}, {len(result.failed)} failed: "
        f"{out / 'predictions.csv'}"
    )
    return len(result.failed)


def warn_of_seen(run: Path, slides: Cohort) -> None:
    """Say how many slides are of cases that the run has learnt from, or was chosen on, without being marked so."""
    import sys

    from wsi_dbps.cohort.manifest import read_manifest

    if not (run / "cohort.csv").is_file():
        return
    used = read_manifest(run / "cohort.csv").records
    cases, ids = {r.case_id for r in used}, {r.slide_id for r in used}
    known = [
        r.slide_id
        for r in slides.records
        if (r.case_id in cases or r.slide_id in ids) and r.split not in ("train", "val")
    ]
    if known:
        print(
            f"wsi-dbps: {len(known)} of {len(slides)} slides, the first {known[0]}, are of cases that {run} was "
            "trained or chosen on, and are not marked so; results on them are no test",
            file=sys.stderr,
        )
