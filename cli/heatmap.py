"""`wsi-dbps heatmap`: attention becomes pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish
from wsi_dbps_cli.options import Bags, CohortCsv, Runs

from wsi_dbps.workflows.heatmap import HeatmapOptions, heatmap


@derived()
def command(
    runs: Runs,
    cohort: CohortCsv,
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Folder for the heatmaps.")],
    options: HeatmapOptions,
) -> None:
    """Draw attention and evidence of a model over each slide.

    Several runs are drawn together, as an ensemble.

    The slides themselves are opened for --overlay-level and --crops only: for all else the caches, or features of
    `wsi-dbps embed`, hold all it takes. Other tools' features do not: size and thumbnail come from the slides.

    Attention that is there already, from the same checkpoint and cache, is not computed again.
    """
    finish(heatmap(runs, cohort, caches, out, options))
