"""`wsi-dbps inspect`: says what a file or folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import finish

from wsi_dbps.workflows.inspect import inspect


def command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE ...", help="Slides, manifests, caches, checkpoints, run folders ...")
    ],
) -> None:
    """Say what a file or folder is, and what is in it.

    Slides, manifests, caches, files of features, attention and coordinates (also of TRIDENT, CLAM, hs2p and STAMP),
    checkpoints, folders of runs and of predictions.
    """
    finish(inspect(files))
