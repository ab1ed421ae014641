"""`wsi-dbps plan`: estimate what a run needs in memory and time, and find settings that fit."""

from __future__ import annotations

from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish
from wsi_dbps_cli.options import Caches, CohortCsv

from wsi_dbps.workflows.plan import PlanOptions, plan


@derived()
def command(
    cohort: CohortCsv,
    caches: Caches,
    vram: Annotated[str, typer.Option(help="Memory that training may use: 12G, 800M.")],
    options: PlanOptions,
) -> None:
    """Estimate time and memory of a run, and settings that fit.

    The cost of a patch is measured on the device, for a few seconds.
    """
    finish(plan(cohort, caches, vram, options=options))
