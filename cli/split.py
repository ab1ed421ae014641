"""`wsi-dbps split`: divide the cases of a cohort into train, val and test, or into folds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish
from wsi_dbps_cli.options import CohortCsv

from wsi_dbps.workflows.split import SplitOptions, split


@derived()
def command(
    cohort: CohortCsv,
    out: Annotated[Path, typer.Option(help="Manifest to write, with its split or fold column filled.")],
    options: SplitOptions,
) -> None:
    """Split a cohort by patient into train, val and test.

    The split is stratified by label. The same seed and cases give the same split in any order of the rows.
    """
    finish(split(cohort, out, options))
