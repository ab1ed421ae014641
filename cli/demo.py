"""`wsi-dbps demo`: the whole way from slides to heatmaps, on slides that it makes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish

from wsi_dbps.workflows.demo import DemoOptions, demo


@derived()
def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to fill.")],
    options: DemoOptions,
) -> None:
    """Run every step on a synthetic cohort.

    Makes a cohort of synthetic slides, tiles it, trains, predicts, draws heatmaps and tests them: CPU, offline,
    minutes.

    Each step is a command of its own, and is printed as you would type it. Run again, it goes on where it was stopped.
    """
    finish(demo(out, options, say=lambda line: print(line, flush=True)))
