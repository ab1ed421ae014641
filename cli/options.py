"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CohortCsv = Annotated[Path, typer.Argument(metavar="COHORT.csv", help="Cohort manifest; see docs/formats/manifest.md.")]
Caches = Annotated[Path, typer.Option(help="Folder of patch caches, as `wsi-dbps tile` wrote them.")]
Bags = Annotated[Path, typer.Option("--caches", help="Folder of patch caches, or of features, a file per slide.")]
Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN ...", help="Run folders of `wsi-dbps train`, also one that holds folds.")
]
