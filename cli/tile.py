"""`wsi-dbps tile`: slides become patch caches."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import CohortCsv, Columns, Slides, num_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from types import FrameType

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.formats.spec import CacheSpec
    from wsi_dbps.tiling.tile_slide import SlideOutcome


_CHOOSING_TILES = ("mpp", "mag", "size", "overlap", "tissue", "drop_pen", "min_tissue")
"""Options that `--coords` leaves nothing to say for."""
_TIME_LIMIT_S = 3600.0
"""For each slide, where none is given: the slowest decoder on a slow disk needs a part of it."""
_MOST_SECONDS = 30 * 24 * 3600.0
_ENDINGS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Tissue(StrEnum):
    """How tissue is found."""

    STAIN = "stain"
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
        Tissue,
        typer.Option(
            help="How tissue is found. stain: more colour than the slide's glass. otsu: colour, by Otsu's threshold. "
            "hsv: the hues of H&E and common immunostains. entropy: structure. none: everything is tissue."
        ),
    ] = Tissue.STAIN,
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
        int, typer.Option(help="Slides tiled at once, shared out over the cores; 0: one per core.", min=0, max=1024)
    ] = 0,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only every Nth slide, from the Ith: for job arrays; I from 1.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Tile on a dask.distributed cluster, in place of this machine."),
    ] = None,
    slide: Annotated[
        list[str], typer.Option(metavar="ID", help="Only this slide of the manifest. May be repeated.")
    ] = [],
    time_limit: Annotated[
        float | None,
        typer.Option(
            help="Seconds after which a slide fails; 0: no limit. Unless given: 3600; none for a lone slide or --dask."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and write nothing.")] = False,
    sheet: Annotated[bool, typer.Option(help="Also draw contact-sheet.html, where every slide is seen.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Tile again what is there already.")] = False,
    columns: Columns = [],
    slides: Slides = None,
    ctx: typer.Context = None,  # type: ignore[assignment]  # typer's own, which `demo` has no use for
) -> None:
    """Find tissue on each slide and cache its patches.

    A cache made from the same slide with the same settings is kept; a killed run goes on where it was.
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest
    from wsi_dbps.core.settings import build
    from wsi_dbps.formats.spec import CacheSpec

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
    _check_time_limit(time_limit)
    records = whole = read_manifest(cohort, columns=parse_columns(columns), need_path=True, slides=slides).records
    if slide:
        records = _named_slides(records, slide, cohort)
    if coords is not None:
        _check_coords(ctx, coords)
        records = tuple(replace(record, coords=coords) for record in records)
    if shard is not None:
        index, count = _shard(shard)
        records = records[index - 1 :: count]
    if dry_run:
        failed = print_plan(records, spec)
    else:
        with _ending_in_one_line():
            outcomes = tile_all(records, spec, out, workers, overwrite=overwrite, time_limit_s=time_limit, dask=dask)
            if sheet:
                from wsi_dbps.tiling.contact_sheet import write_contact_sheet
                from wsi_dbps.tiling.overview import read_table
                from wsi_dbps.tiling.tile_slide import cache_path

                rows, ids = read_table(out), [record.slide_id for record in whole]  # with --shard some are yet to come
                write_contact_sheet([id_ for id_ in ids if id_ in rows or cache_path(out, id_).exists()], out)
        failed = sum(outcome.error is not None for outcome in outcomes)
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
    """Tile a cohort in local processes or on a cluster, saying how it goes.

    A time limit of None is the default one where each slide has a process of its own, which alone can be ended without
    the others; 0 is none.
    """
    from wsi_dbps.core.ownership import refuse_to_replace
    from wsi_dbps.core.progress import Progress
    from wsi_dbps.tiling import contact_sheet
    from wsi_dbps.tiling import overview as table
    from wsi_dbps.tiling.tile_slide import tile_cohort

    for name in (table.NAME, contact_sheet.NAME):
        refuse_to_replace(out / name)
    cores = num_cores()
    workers = max(1, min(workers or cores, len(records)))
    threads = max(1, cores // workers)
    if dask is not None:
        new_executor = _cluster(dask)
    elif len(records) == 1 and not time_limit_s:
        new_executor = _here
    else:
        new_executor = _local
        time_limit_s = _TIME_LIMIT_S if time_limit_s is None else time_limit_s
    start, outcomes = time.monotonic(), []
    with Progress("tiling", len(records), "slides") as progress:
        for outcome in tile_cohort(
            records,
            spec,
            out,
            new_executor=new_executor,
            workers=workers,
            threads=threads,
            time_limit_s=time_limit_s or None,
            overwrite=overwrite,
        ):
            outcomes.append(outcome)
            lines = [outcome.error, outcome.traceback, *(f"{outcome.slide_id}: {note}" for note in outcome.notes)]
            for line in filter(None, lines):
                progress.say(line)
            progress.advance(extra=f"{sum(o.num_patches for o in outcomes)} patches")
    table.add_to_table(out, outcomes)
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
    from wsi_dbps.core.errors import ConfigError

    if not coords.is_dir():
        raise ConfigError(f"--coords {coords}: no such folder; name the one that the tool wrote its coordinates to")
    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if option.name in _CHOOSING_TILES and source is not None and source.name != "DEFAULT":
            said = "/".join((*option.opts, *option.secondary_opts))
            raise ConfigError(f"--coords {coords}: which tiles, and how large, its files say; leave out {said}")


def _check_time_limit(time_limit_s: float | None) -> None:
    """Refuse what no clock can keep."""
    from wsi_dbps.core.errors import ConfigError

    if time_limit_s is not None and time_limit_s != 0 and not 1 <= time_limit_s <= _MOST_SECONDS:
        raise ConfigError(
            f"--time-limit {time_limit_s:g}: expected 1 to {_MOST_SECONDS:.0f} seconds (30 days), or 0 for no limit"
        )


def _named_slides(records: Sequence[SlideRecord], ids: list[str], cohort: Path) -> tuple[SlideRecord, ...]:
    """The records of these slides, in the manifest's order."""
    from wsi_dbps.core.errors import ConfigError

    known = {record.slide_id for record in records}
    if unknown := [name for name in ids if name not in known]:
        raise ConfigError(f"--slide {unknown[0]}: {cohort} has no slide of this id; name one of its column slide_id")
    return tuple(record for record in records if record.slide_id in ids)


@contextmanager
def _ending_in_one_line() -> Iterator[None]:
    """While it lasts, Ctrl-C, SIGTERM and SIGHUP end the command and its worker processes, in one line, at once."""
    from multiprocessing import active_children

    def end(number: int, _frame: FrameType | None) -> None:
        said = f"wsi-dbps: ended by {signal.Signals(number).name}; finished slides are kept; "
        os.write(2, f"{said}the same command goes on\n".encode())
        workers = active_children()
        for worker in workers:
            worker.kill()
        if not workers:  # the slide is tiled by a thread of this process, for which an exit would wait
            os._exit(128 + number)
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in _ENDINGS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # `nohup` and shells have some signals ignored
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shard(text: str) -> tuple[int, int]:
    """(I, N) of `I/N`."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        from wsi_dbps.core.errors import ConfigError

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

    from wsi_dbps.tiling.tile_slide import end_with_parent

    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["wsi_dbps.tiling.tile_slide"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)


def _cluster(address: str) -> Callable[[int], AbstractContextManager[Executor]]:
    """What gives the workers of a dask cluster as an executor, however many there are, while it has a scheduler."""
    from wsi_dbps.core.errors import ConfigError, one_line

    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("--dask needs dask.distributed: pip install 'wsi-dbps[dask]'") from None
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except OSError as error:
        raise ConfigError(f"--dask {address}: no scheduler answers ({one_line(error)})") from None

    def check_scheduler() -> None:
        if client.status != "running":
            raise ConfigError(
                f"--dask {address}: the scheduler no longer answers; finished slides are kept; start it again, and the "
                "same command goes on"
            )

    @contextmanager
    def executor(_workers: int) -> Iterator[Executor]:
        check_scheduler()
        with client.get_executor(pure=False) as workers:
            yield workers
        check_scheduler()  # without it all that is under way is cancelled, as if each slide had killed its worker

    return executor


def print_plan(records: Sequence[SlideRecord], spec: CacheSpec) -> int:
    """Print what tiling would do, a row a slide; the number of slides that would fail."""
    from wsi_dbps.core.errors import WsiDbpsError
    from wsi_dbps.tiling.tile_slide import estimate_bytes, named, notes, plan_slide

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
        mpp, level = f"{plan.grid.mpp_lv0_um:.4g}", decided.pixels.level
        cells = (decided.info.vendor, str(plan.grid.slide_lv0), mpp, source, level, len(plan), f"{size:.1f}")
        print(row.format(record.slide_id, *cells))
        for note in notes(decided, spec):
            print(f"  {note}")
        tiles, megabytes = tiles + len(plan), megabytes + size
    print(f"{len(records)} slides, {failed} would fail; {tiles} tiles, about {megabytes:.0f} MB; nothing was written")
    return failed
