"""`wsi-dbps tile`: slides become patch caches."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import CohortCsv, Columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.patches.spec import CacheSpec
    from wsi_dbps.patches.tile import SlideOutcome


class Tissue(StrEnum):
    """How tissue is found."""

    OTSU = "otsu"
    NONE = "none"


class Codec(StrEnum):
    """How patches are stored."""

    AUTO = "auto"
    JPEG = "jpeg"


class Reader(StrEnum):
    """What opens the slides."""

    AUTO = "auto"
    OPENSLIDE = "openslide"
    TIFFSLIDE = "tiffslide"
    IMAGE = "image"


def command(
    cohort: CohortCsv,
    out: Annotated[Path, typer.Option(help="Folder for the caches, one HDF5 file per slide.")],
    mpp: Annotated[float, typer.Option(help="Resolution of the patches, µm per pixel.")] = 0.5,
    size: Annotated[int, typer.Option(help="Patch side in pixels.")] = 256,
    overlap: Annotated[int, typer.Option(help="Pixels that neighbouring patches share.")] = 0,
    tissue: Annotated[
        Tissue, typer.Option(help="Tissue from Otsu's threshold on saturation, or everywhere.")
    ] = Tissue.OTSU,
    min_tissue: Annotated[float, typer.Option(help="Least share of a tile that must be tissue.")] = 0.25,
    codec: Annotated[Codec, typer.Option(help="How patches are stored; auto chooses jpeg.")] = Codec.AUTO,  # noqa: ARG001 - one way so far, and `auto` is it
    quality: Annotated[int, typer.Option(help="JPEG quality, 1 to 100.")] = 90,
    reader: Annotated[
        Reader, typer.Option(help="What opens the slides; auto goes by each file's format.")
    ] = Reader.AUTO,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.", min=0)] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Tile again what is there already.")] = False,
    columns: Columns = [],
) -> None:
    """Find tissue on each slide, cut it into patches, and cache them.

    A cache made from the same slide with the same settings is kept; a killed run goes on where it was.
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest
    from wsi_dbps.config import build
    from wsi_dbps.patches.spec import CacheSpec

    tiling = {
        "mpp_um": mpp,
        "size_px": size,
        "overlap_px": overlap,
        "tissue": tissue.value,
        "min_tissue": min_tissue,
    }
    spec = build(CacheSpec, {"tiling": tiling, "quality": quality, "reader": reader.value}, "tile")
    records = read_manifest(cohort, columns=parse_columns(columns), need_path=True).records
    if dry_run:
        failed = print_plan(records, spec)
    else:
        outcomes = tile_all(records, spec, out, workers or _num_cores(), overwrite=overwrite)
        failed = sum(outcome.error is not None for outcome in outcomes)
    if failed:
        raise typer.Exit(1)


def tile_all(
    records: Sequence[SlideRecord], spec: CacheSpec, out: Path, workers: int, *, overwrite: bool = False
) -> list[SlideOutcome]:
    """Tile a cohort in local processes, saying how it goes."""
    from concurrent.futures import ProcessPoolExecutor
    from functools import partial
    from multiprocessing import get_context

    from wsi_dbps.patches.tile import tile_cohort
    from wsi_dbps.progress import Progress

    start, outcomes = time.monotonic(), []
    pool = partial(ProcessPoolExecutor, mp_context=get_context("spawn"))
    workers = max(1, min(workers, len(records)))
    with Progress("tiling", len(records), "slides") as progress:
        for outcome in tile_cohort(records, spec, out, new_executor=pool, workers=workers, overwrite=overwrite):
            outcomes.append(outcome)
            lines = [outcome.error, outcome.traceback, *(f"{outcome.slide_id}: {note}" for note in outcome.notes)]
            for line in filter(None, lines):
                progress.say(line)
            progress.advance(extra=f"{sum(o.num_patches for o in outcomes)} patches")
    seconds = time.monotonic() - start
    written = [o for o in outcomes if o.error is None and not o.skipped]
    patches = sum(o.num_patches for o in written)
    kept, failed = sum(o.skipped for o in outcomes), sum(o.error is not None for o in outcomes)
    print(
        f"{len(written)} slides tiled ({patches} patches, {patches / seconds:.0f}/s), "
        f"{kept} kept as they were, {failed} failed: {out}"
    )
    return outcomes


def _num_cores() -> int:
    """Cores this process may use, which a cluster's scheduler makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def print_plan(records: Sequence[SlideRecord], spec: CacheSpec) -> int:
    """Print what tiling would do, a row a slide; the number of slides that would fail."""
    from wsi_dbps.errors import WsiDbpsError
    from wsi_dbps.patches.tile import estimate_bytes, named, notes, plan_slide

    row = "{:<28} {:<14} {:>15} {:>8} {:<8} {:>5} {:>7} {:>9}"
    print(row.format("slide", "vendor", "size", "mpp", "from", "level", "tiles", "size MB"))
    failed, tiles, megabytes = 0, 0, 0.0
    for record in records:
        try:
            decided = plan_slide(record, spec)
            size = estimate_bytes(record, spec, decided) / 1e6
        except WsiDbpsError as error:
            failed += 1
            print(f"fails: {named(record, error)}")
            continue
        except Exception as error:
            error.add_note(f"while planning slide {record.slide_id}: {record.path}")
            raise
        plan, source = decided.plan, decided.provenance.mpp_source
        mpp, level = f"{plan.mpp_lv0_um:.4g}", decided.read_level
        cells = (decided.info.vendor, str(plan.slide_lv0), mpp, source, level, len(plan), f"{size:.1f}")
        print(row.format(record.slide_id, *cells))
        for note in notes(decided):
            print(f"  {note}")
        tiles, megabytes = tiles + len(plan), megabytes + size
    print(f"{len(records)} slides, {failed} would fail; {tiles} tiles, about {megabytes:.0f} MB; nothing was written")
    return failed
