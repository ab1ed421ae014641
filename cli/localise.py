"""`wsi-dbps localise`: how well heatmaps lie on what a person has drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish
from wsi_dbps_cli.options import CohortCsv

from wsi_dbps.workflows.localise import LocaliseOptions, localise


@derived()
def command(
    pred: Annotated[
        Path, typer.Argument(metavar="PRED", help="Folder of predictions, as `wsi-dbps predict` wrote it.")
    ],
    cohort: CohortCsv,
    options: LocaliseOptions,
    out: Annotated[
        Path | None, typer.Option(help="Folder for localisation.json; the predictions' own if not given.")
    ] = None,
) -> None:
    """Measure how well heatmaps agree with annotations.

    Writes localisation.json: patch AUROC, Dice, and FROC by the rule of CAMELYON16, with 95 % intervals by case.

    The manifest's `annotations` column names what was drawn; slides of the first class need none.
    """
    finish(localise(pred, cohort, out, options))
