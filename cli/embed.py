"""`wsi-dbps embed`: compute features of cached patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish
from wsi_dbps_cli.options import Caches, CohortCsv

from wsi_dbps.workflows.embed import EmbedOptions, embed


@derived()
def command(
    cohort: CohortCsv,
    caches: Caches,
    out: Annotated[Path, typer.Option(help="Folder for an HDF5 file of features per slide.")],
    options: EmbedOptions,
) -> None:
    """Compute features of every cached patch.

    They are written in a layout that TRIDENT and CLAM read and `wsi-dbps train` takes.

    Features of a slide that are there already, from the same cache, encoder, precision and batch, are kept; a run
    that was killed continues.
    """
    finish(embed(cohort, caches, out, options))
