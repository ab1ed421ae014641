"""`wsi-dbps export`: write cached patches to files for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish

from wsi_dbps.workflows.export import ExportFormat, ExportOptions, export


@derived(max={"metavar": "N"})
def command(
    caches: Annotated[
        list[Path], typer.Argument(metavar="CACHES ...", help="Patch caches, or folders of them, of `wsi-dbps tile`.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for a folder or TAR per slide.")],
    format_: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="jpeg: the cached JPEG files, unchanged. png: their pixels. tar: a WebDataset of the JPEG files.",
        ),
    ],
    options: ExportOptions,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="COHORT.csv", help="Manifest, whose case, label and split of each slide go into labels.csv."
        ),
    ] = None,
) -> None:
    """Write cached patches to files that other tools read.

    The place of each patch on its slide is written too.

    A slide that is exported already, from the same cache with the same settings, is kept; a run that was killed
    continues.
    """
    finish(export(caches, out, format_, options, labels=labels))
