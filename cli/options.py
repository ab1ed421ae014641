"""Arguments, options and what else several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

# until the commands that take these from here are workflows
from wsi_dbps.core.cores import num_cores  # noqa: F401
from wsi_dbps.workflows.cohorts import cohort_part  # noqa: F401
from wsi_dbps.workflows.runs import (  # noqa: F401
    check_same_model,
    check_truth_of,
    fold_runs,
    member_runs,
    one_fold,
    prediction_folders,
    warn_of_more_to_come,
    warn_of_seen,
)

CohortCsv = Annotated[Path, typer.Argument(metavar="COHORT.csv", help="Cohort manifest; see docs/formats/manifest.md.")]
Caches = Annotated[Path, typer.Option(help="Folder of patch caches, as `wsi-dbps tile` wrote them.")]
Bags = Annotated[Path, typer.Option("--caches", help="Folder of patch caches, or of features, a file per slide.")]
Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN ...", help="Run folders of `wsi-dbps train`, also one that holds folds.")
]
Columns = Annotated[
    list[str], typer.Option(help="Read the manifest with a column renamed: slide_id=FILENAME. May be repeated.")
]
Slides = Annotated[
    Path | None, typer.Option(help="Folder in which slide files are found by slide_id, where the manifest has no path.")
]
Device = Annotated[str, typer.Option(help="auto (the first GPU, else the CPU), cpu, cuda, cuda:1, mps ...")]
Fold = Annotated[int | None, typer.Option(help="Take splits from the fold column, with this fold as test.")]


class Split(StrEnum):
    """Which slides of a cohort."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    ALL = "all"


class Score(StrEnum):
    """What a tile is scored by."""

    ATTENTION = "attention"
    EVIDENCE = "evidence"
