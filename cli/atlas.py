"""`wsi-dbps atlas`: how a run's buffers moved over training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish
from wsi_dbps_cli.options import Bags

from wsi_dbps.workflows.atlas import AtlasOptions, atlas


@derived()
def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as `wsi-dbps train` wrote it.")],
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Folder for the atlas.")],
    options: AtlasOptions,
) -> None:
    """Draw which patches were selected during training.

    From the record of the run: churn and entropy over the epochs, and per
    slide how often, when first and when last each patch was salient. Numbers in atlas.csv and atlas.json.
    """
    finish(atlas(run, caches, out, options))
