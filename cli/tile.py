"""`wsi-dbps tile`: slides become patch caches."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import CohortCsv, Columns, Slides, num_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.patches.spec import CacheSpec
    from wsi_dbps.patches.tile import SlideOutcome


_CHOOSING_TILES = ("mpp", "mag", "size", "overlap", "tissue", "drop_pen", "min_tissue")
"""Options that `--coords` leaves nothing to say for."""


class Tissue(StrEnum):
    """How tissue is found."""

    OTSU = "otsu"
    HSV = "hsv"
    ENTROPY = "entropy"
    NONE = "none"


class Codec(StrEnum):
    """How patches are stored."""

    AUTO = "auto"
    COPY = "copy"
    JPEG = "jpeg"
    READER = "reader"


class Icc(StrEnum):
    """What colours patches have."""

    KEEP = "keep"
    SRGB = "srgb"


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
    mag: Annotated[
        float | None, typer.Option(help="The same as a magnification: 10 / mpp, so that 20 is 0.5.", min=0.1)
    ] = None,
    size: Annotated[int, typer.Option(help="Patch side in pixels.")] = 256,
    overlap: Annotated[int, typer.Option(help="Pixels that neighbouring patches share.")] = 0,
    tissue: Annotated[
        Tissue, typer.Option(help="Tissue is what is coloured, has the hues of stains, is structured, or everything.")
    ] = Tissue.OTSU,
    drop_pen: Annotated[
        bool, typer.Option("--drop-pen/--keep-pen", help="Leave out strokes of green, blue and black pens.")
    ] = True,
    min_tissue: Annotated[float, typer.Option(help="Least share of a tile that must be tissue.")] = 0.25,
    coords: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Cut the tiles that TRIDENT, CLAM, hs2p or another run of this chose, in place of looking for tissue: "
            "the folder it wrote. Their size and resolution come from there.",
        ),
    ] = None,
    codec: Annotated[
        Codec,
        typer.Option(
            help="copy: the scanner's own JPEG tiles, unchanged. jpeg: decoded and encoded. auto: copied where patches "
            "are the scanner's tiles. reader: through the reader alone, without the fast path."
        ),
    ] = Codec.AUTO,
    native_tolerance: Annotated[
        float, typer.Option(help="How far, as a share, a level's mpp may be from --mpp to be copied.")
    ] = 0.02,
    quality: Annotated[int, typer.Option(help="JPEG quality of what is encoded, 1 to 100.")] = 90,
    max_damaged: Annotated[
        float, typer.Option(help="Largest share of a slide's tiles that may be left out as damaged.")
    ] = 0.01,
    icc: Annotated[
        Icc, typer.Option(help="keep: colours as stored. srgb: the slide's ICC profile is applied, where it has one.")
    ] = Icc.KEEP,
    qc: Annotated[
        bool, typer.Option("--qc", help="Measure each patch: sharpness, share of white, share of pen. Slower.")
    ] = False,
    reader: Annotated[
        Reader, typer.Option(help="What opens the slides; auto goes by each file's format.")
    ] = Reader.AUTO,
    workers: Annotated[
        int, typer.Option(help="Slides tiled at once, shared out over the cores; 0: one per core.", min=0)
    ] = 0,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only every Nth slide, from the Ith: for job arrays; I from 1.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Tile on a dask.distributed cluster, in place of this machine."),
    ] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds after which a slide fails; 0: no limit.", min=0)] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and write nothing.")] = False,
    sheet: Annotated[bool, typer.Option(help="Also draw contact-sheet.html, where every slide is seen.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Tile again what is there already.")] = False,
    columns: Columns = [],
    slides: Slides = None,
    ctx: typer.Context = None,  # type: ignore[assignment]  # typer's own, which `demo` has no use for
) -> None:
    """Find tissue on each slide, cut it into patches, and cache them.

    A cache made from the same slide with the same settings is kept; a killed run goes on where it was.
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest
    from wsi_dbps.config import build
    from wsi_dbps.patches.spec import CacheSpec

    tiling = {
        "mpp_um": mpp if mag is None else 10 / mag,
        "size_px": size,
        "overlap_px": overlap,
        "tissue": tissue.value,
        "drop_pen": drop_pen,
        "min_tissue": min_tissue,
    }
    made = {"codec": codec.value, "native_tolerance": native_tolerance, "max_damaged": max_damaged}
    made |= {"icc": icc.value, "qc": qc}
    spec = build(CacheSpec, {"tiling": tiling, "quality": quality, "reader": reader.value, **made}, "tile")
    records = read_manifest(cohort, columns=parse_columns(columns), need_path=True, slides=slides).records
    if coords is not None:
        _check_coords(ctx, coords)
        records = tuple(replace(record, coords=coords) for record in records)
    if shard is not None:
        index, count = _shard(shard)
        records = records[index - 1 :: count]
    if dry_run:
        failed = print_plan(records, spec)
    else:
        outcomes = tile_all(
            records, spec, out, workers, overwrite=overwrite, time_limit_s=time_limit or None, dask=dask
        )
        failed = sum(outcome.error is not None for outcome in outcomes)
        if sheet:
            from wsi_dbps.patches.contact_sheet import write_contact_sheet

            write_contact_sheet([record.slide_id for record in records], out)
    if failed:
        raise typer.Exit(1)


def tile_all(
    records: Sequence[SlideRecord],
    spec: CacheSpec,
    out: Path,
    workers: int,
    *,
    overwrite: bool = False,
    time_limit_s: float | None = None,
    dask: str | None = None,
) -> list[SlideOutcome]:
    """Tile a cohort in local processes or on a cluster, saying how it goes."""
    from wsi_dbps.patches.table import add_to_table
    from wsi_dbps.patches.tile import tile_cohort
    from wsi_dbps.progress import Progress

    cores = num_cores()
    workers = max(1, min(workers or cores, len(records)))
    threads = max(1, cores // workers)
    if dask is not None:
        new_executor = _cluster(dask)
    elif len(records) == 1 and time_limit_s is None:
        new_executor = _here
    else:
        new_executor = _local
    start, outcomes = time.monotonic(), []
    with Progress("tiling", len(records), "slides") as progress:
        for outcome in tile_cohort(
            records,
            spec,
            out,
            new_executor=new_executor,
            workers=workers,
            threads=threads,
            time_limit_s=time_limit_s,
            overwrite=overwrite,
        ):
            outcomes.append(outcome)
            lines = [outcome.error, outcome.traceback, *(f"{outcome.slide_id}: {note}" for note in outcome.notes)]
            for line in filter(None, lines):
                progress.say(line)
            progress.advance(extra=f"{sum(o.num_patches for o in outcomes)} patches")
    add_to_table(out, outcomes)
    seconds = time.monotonic() - start
    written = [o for o in outcomes if o.error is None and not o.skipped]
    patches = sum(o.num_patches for o in written)
    kept, failed = sum(o.skipped for o in outcomes), sum(o.error is not None for o in outcomes)
    print(
        f"{len(written)} slides tiled ({patches} patches, {patches / seconds:.0f}/s), "
        f"{kept} kept as they were, {failed} failed: {out}"
    )
    return outcomes


def _check_coords(ctx: typer.Context, coords: Path) -> None:
    """Refuse a folder that is not there, and what the command line says of tiles beside it."""
    from wsi_dbps.errors import ConfigError

    if not coords.is_dir():
        raise ConfigError(f"--coords {coords}: no such folder; name the one that the tool wrote its coordinates to")
    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if option.name in _CHOOSING_TILES and source is not None and source.name != "DEFAULT":
            said = "/".join((*option.opts, *option.secondary_opts))
            raise ConfigError(f"--coords {coords}: which tiles, and how large, its files say; leave out {said}")


def _shard(text: str) -> tuple[int, int]:
    """(I, N) of `I/N`."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        from wsi_dbps.errors import ConfigError

        raise ConfigError(f"--shard {text}: expected I/N with I from 1 to N, for instance 3/8")
    return int(index), int(count)


def _here(workers: int) -> Executor:
    """This process: a lone slide has no others to protect, and need not wait for a second interpreter."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(workers)


def _local(workers: int) -> Executor:
    """Processes on this machine: a decoder that crashes takes one down, not the run."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_all_start_methods, get_context

    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["wsi_dbps.patches.tile"])
    return ProcessPoolExecutor(workers, mp_context=context)


def _cluster(address: str) -> Callable[[int], Executor]:
    """What gives the workers of a dask cluster as an executor, however many there are."""
    from wsi_dbps.errors import ConfigError

    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("--dask needs dask.distributed: pip install 'wsi-dbps[dask]'") from None
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except OSError as error:
        raise ConfigError(f"--dask {address}: no scheduler answers ({' '.join(str(error).split())})") from None
    return lambda _workers: client.get_executor(pure=False)


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
        mpp, level = f"{plan.mpp_lv0_um:.4g}", decided.pixels.level
        cells = (decided.info.vendor, str(plan.slide_lv0), mpp, source, level, len(plan), f"{size:.1f}")
        print(row.format(record.slide_id, *cells))
        for note in notes(decided, spec):
            print(f"  {note}")
        tiles, megabytes = tiles + len(plan), megabytes + size
    print(f"{len(records)} slides, {failed} would fail; {tiles} tiles, about {megabytes:.0f} MB; nothing was written")
    return failed
