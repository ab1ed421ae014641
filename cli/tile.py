"""`wsi-dbps tile`: slides become patch caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish
from wsi_dbps_cli.ending import ending_in_one_line
from wsi_dbps_cli.options import CohortCsv

from wsi_dbps.workflows.tile import CHOOSING_TILES, TileOptions, plan_tiling, tile


@derived(
    drop_pen=CHOOSING_TILES["drop_pen"],
    coords={"metavar": "DIR"},
    shard={"metavar": "I/N"},
    dask={"metavar": "ADDRESS"},
    slide={"metavar": "ID"},
)
def command(
    cohort: CohortCsv,
    out: Annotated[Path, typer.Option(help="Folder for the caches, one HDF5 file per slide.")],
    options: TileOptions,
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and write nothing.")] = False,
) -> None:
    """Find tissue on each slide and cache its patches.

    A cache made from the same slide with the same settings is kept; a killed run continues where it was.
    """
    sources = {name: ctx.get_parameter_source(name) for name in CHOOSING_TILES}
    given = {name: getattr(options, name) for name, source in sources.items() if source and source.name != "DEFAULT"}
    if dry_run:
        finish(plan_tiling(cohort, options, say=print, **given))
        return
    with ending_in_one_line():
        result = tile(cohort, out, options, **given)
    finish(result)
