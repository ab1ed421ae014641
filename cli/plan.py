"""`wsi-dbps plan`: what a run would need in memory and time, and settings that fit."""

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

    Measures for a few seconds what patches cost on the device.
    """
    finish(plan(cohort, caches, vram, options=options))
