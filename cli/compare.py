"""`wsi-dbps compare`: is one model better than another on the same cases?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish

from wsi_dbps.workflows.compare import CompareOptions, compare


@derived()
def command(
    a: Annotated[Path, typer.Argument(metavar="PRED_A", help="Folder of predictions to compare with.")],
    b: Annotated[Path, typer.Argument(metavar="PRED_B", help="Folder of predictions in question.")],
    options: CompareOptions,
    out: Annotated[
        Path | None, typer.Option(help="Folder for compare.json; without it the table is only printed.")
    ] = None,
) -> None:
    """Compare two models on the same cases.

    Prints, by case, the difference B - A of every score with its interval, DeLong's paired test and McNemar's. Of a
    folder of `predict --folds all` the test cases of all folds are taken together.
    """
    finish(compare(a, b, out, options))
