"""`wsi-dbps export`: cached patches become files for other tools."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.options import Columns, Split, cohort_part, num_cores


class Format(StrEnum):
    """What is written for each slide."""

    JPEG = "jpeg"
    PNG = "png"
    TAR = "tar"


def command(
    caches: Annotated[
        list[Path], typer.Argument(metavar="CACHES ...", help="Patch caches, or folders of them, of `wsi-dbps tile`.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for a folder or TAR per slide.")],
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            help="jpeg: the cached JPEG files, unchanged. png: their pixels. tar: a WebDataset of the JPEG files.",
        ),
    ],
    max_: Annotated[
        int | None, typer.Option("--max", metavar="N", help="At most N patches of each slide, drawn at random.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for that draw.", min=0)] = 0,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="COHORT.csv", help="Manifest, whose case, label and split of each slide go into labels.csv."
        ),
    ] = None,
    columns: Columns = [],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Export again what is there already.")] = False,
) -> None:
    """Write cached patches to files that other tools read.

    Each keeps its place on the slide.

    A slide that is exported already, from the same cache with the same settings, is kept; a killed run goes on.
    """
    from wsi_dbps.core.ownership import refuse_to_replace
    from wsi_dbps.core.progress import Progress
    from wsi_dbps.core.settings import build
    from wsi_dbps.formats.export import LABELS, ExportSpec, export_caches, find_caches, records_of, write_labels

    spec = build(ExportSpec, {"format": format_.value, "max_patches": max_, "seed": seed}, "export")
    paths, outcomes = find_caches(caches), []
    cohort = None if labels is None else cohort_part(labels, columns, Split.ALL)
    records = None if cohort is None else records_of(paths, cohort)
    if records is not None:
        refuse_to_replace(out / LABELS)
    with Progress("exporting", len(paths), "slides") as progress:
        for outcome in export_caches(paths, out, spec, records=records, overwrite=overwrite, threads=num_cores()):
            outcomes.append(outcome)
            if outcome.error is not None:
                progress.say(outcome.error)
            elif outcome.target is None:
                progress.say(f"{outcome.path}: no patches, nothing to export")
            progress.advance(extra=f"{sum(o.num_patches for o in outcomes)} patches")
    written = [o for o in outcomes if o.target is not None and not o.skipped]
    kept, failed = sum(o.skipped for o in outcomes), sum(o.error is not None for o in outcomes)
    print(
        f"{len(written)} slides exported ({sum(o.num_patches for o in written)} patches), "
        f"{kept} kept as they were, {failed} failed: {out}"
    )
    if cohort is not None and any(o.target is not None for o in outcomes):
        print(f"labels: {write_labels(out, cohort)}")
    if failed:
        raise typer.Exit(1)
