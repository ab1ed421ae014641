"""`wsi-dbps predict`: a run and caches become predictions and attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import Bags, CohortCsv, Columns, Device, Fold, Split, cohort_part

if TYPE_CHECKING:
    from wsi_dbps.cohort.cohort import Cohort


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as `wsi-dbps train` wrote it.")],
    cohort: CohortCsv,
    caches: Bags,
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
    warn_of_seen(run, slides)
    result = predict(load_checkpoint(run / "best.pt"), slides, caches, out, device=device)
    done = result.predictions
    print(
        f"{len(done.slides)} slides of {len(done.cases)} cases predicted, {len(result.failed)} failed: "
        f"{out / 'predictions.csv'}"
    )
    if result.failed:
        raise typer.Exit(1)


def warn_of_seen(run: Path, slides: Cohort) -> None:
    """Say how many slides are of cases that the run has learnt from, or was chosen on, without being marked so."""
    import sys

    from wsi_dbps.cohort.manifest import read_manifest

    if not (run / "cohort.csv").is_file():
        return
    seen = {record.case_id for record in read_manifest(run / "cohort.csv").records}
    known = [r.slide_id for r in slides.records if r.case_id in seen and r.split not in ("train", "val")]
    if known:
        print(
            f"wsi-dbps: {len(known)} of {len(slides)} slides, the first {known[0]}, are of cases that {run} was "
            "trained or chosen on, and are not marked so; results on them are no test",
            file=sys.stderr,
        )
