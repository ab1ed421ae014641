"""From slide files to patch caches: one slide is one function, a cohort is a map over it that collects outcomes."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
import traceback
from concurrent.futures import BrokenExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from wsi_dbps.core.digests import file_digest
from wsi_dbps.core.errors import (
    ForeignFileError,
    OutputError,
    SlideError,
    UnreadableSlideError,
    WsiDbpsError,
    one_line,
)
from wsi_dbps.core.files import BusyError, claimed, put_in_place
from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.core.ownership import refuse_another_kind, refuse_to_replace
from wsi_dbps.core.settings import build, to_dict
from wsi_dbps.formats.cache_writer import CacheHead, CacheWriter, PixelSource, Provenance, encode_jpeg
from wsi_dbps.formats.patch_cache import CacheFacts, PatchCache
from wsi_dbps.formats.reuse import differences, refuse_others
from wsi_dbps.formats.spec import FORMAT, CacheSpec
from wsi_dbps.slides.icc import in_colours, profile_name, to_srgb
from wsi_dbps.slides.jpeg_tiles import JpegLevel, jpeg_levels
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.readers.tiles import TileReader, steps
from wsi_dbps.slides.sampling import best_level, thumbnail
from wsi_dbps.slides.source import check_unchanged
from wsi_dbps.tiling.doubts import colour_doubts, tissue_doubts
from wsi_dbps.tiling.given_coords import find_coords, read_coords
from wsi_dbps.tiling.masks import read_mask
from wsi_dbps.tiling.pixels import Patch, copied, encoded
from wsi_dbps.tiling.plan import TilePlan, is_plausible, plan_tiles, resolve_mpp
from wsi_dbps.tiling.quality import as_arrays
from wsi_dbps.tiling.tissue import METHODS, Method, TissueMask, everywhere, segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.slides.base import SlideInfo, SlideReader
    from wsi_dbps.slides.source import SlideFile
    from wsi_dbps.tiling.given_coords import GivenCoords
    from wsi_dbps.tiling.pixels import Outcome


_WORKER_DIED = ("KilledWorker", "CancelledError")
"""What dask's executor raises where `concurrent.futures` raises `BrokenExecutor`."""
_CHANGED = "the file was changed or removed while it was tiled; tile the slide again"
MPP_DISAGREEMENT = 0.10
"""A manifest's mpp further than this share from the file's is said, as it is as often a slip as a correction."""


@dataclass(frozen=True)
class SlideOutcome:
    """What became of one slide."""

    slide_id: str
    path: Path | None
    """The cache; None if the slide failed."""
    error: str | None = None
    """Why it failed, in one line, with the slide and its file."""
    traceback: str | None = None
    """Where it failed, if that was not foreseen: a bug, here or in a decoder."""
    notes: tuple[str, ...] = ()
    """What a user should know about a slide that was tiled: that there is nothing on it, or that two mpp disagree."""
    num_patches: int = 0
    skipped: bool = False
    """Whether the cache was there already, made from the same slide with the same settings."""
    busy: bool = False
    """Whether another process was at it; it was left alone."""
    num_bytes: int = 0
    num_dropped: int = 0
    """Tiles that could not be decoded."""
    reader: str = ""
    pixel_path: str = ""
    """`copy`, `tiles` or `reader`; see `PixelSource`."""
    level: int | None = None
    """Stored level that was read."""
    mpp_um: float | None = None
    """Of the patches."""
    seconds: float = 0.0


@dataclass(frozen=True)
class SlidePlan:
    """All that is decided about a slide before its patches are read."""

    info: SlideInfo
    plan: TilePlan
    provenance: Provenance
    thumbnail_HWC: npt.NDArray[np.uint8]
    mask: TissueMask
    tiles: list[JpegLevel | str]
    """Each level's JPEG tiles, or why they cannot be had."""
    pixels: PixelSource


def cache_path(caches: PathLike, slide_id: str) -> Path:
    """Where a slide's cache lies."""
    return Path(caches) / f"{slide_id}.h5"


def tile_slide(
    record: SlideRecord,
    spec: CacheSpec,
    caches: PathLike,
    *,
    overwrite: bool = False,
    threads: int = 1,
    wait: bool = True,
) -> SlideOutcome:
    """Write one slide's cache, or say why not; only what is wrong with the output folder is raised.

    A cache made from the same slide with the same settings is left as it is. A slide whose failure was not foreseen
    fails alone too, with its traceback in the outcome.

    Args:
        record: The slide.
        spec: What to make.
        caches: Folder to write to.
        overwrite: Tile again what is there already.
        threads: How many decode and encode at a time.
        wait: If another process is at this slide, wait for it and keep what it made; else `busy`.

    Raises:
        OutputError: If the cache cannot be written, for instance for want of space.
    """
    start, stamp = time.monotonic(), _stamp(record.file)
    path = cache_path(caches, record.slide_id)
    try:
        with _open(record, spec) as reader:
            given, spec = _given(reader.info, record, spec)
            if path.exists() and not overwrite:
                return _reuse(path, reader, record, spec, given)
            with claimed(path, wait=wait) as beside:
                if path.exists() and not overwrite:  # finished by another process just now
                    return _reuse(path, reader, record, spec, given)
                refuse_to_replace(path)
                refuse_another_kind(path, FORMAT)
                decided = _decide(reader, record, spec, given)
                done = _write(beside, reader, decided, spec, threads)
                _check_unchanged(record.file, stamp, decided.info)
                put_in_place(beside, path)
    except BusyError:
        return SlideOutcome(record.slide_id, None, busy=True)
    except WsiDbpsError as error:
        if isinstance(error, OutputError) and not isinstance(error, ForeignFileError):
            raise
        return SlideOutcome(record.slide_id, None, named(record, error))
    except Exception as error:
        changed = _stamp(record.file) != stamp
        said = _CHANGED if changed else f"unforeseen {type(error).__name__}: {one_line(error)}"
        said = f"{record.slide_id}: {record.file}: {said}"
        return SlideOutcome(record.slide_id, None, said, None if changed else traceback.format_exc())
    return SlideOutcome(
        record.slide_id,
        path,
        notes=(*notes(decided, spec), *done.notes),
        num_patches=len(decided.plan) - done.num_dropped,
        num_bytes=done.num_bytes,
        num_dropped=done.num_dropped,
        reader=decided.info.reader,
        pixel_path=decided.pixels.path,
        level=decided.pixels.level,
        mpp_um=decided.plan.spec.mpp_um,
        seconds=time.monotonic() - start,
    )


def tile_cohort(
    records: Sequence[SlideRecord],
    spec: CacheSpec,
    caches: PathLike,
    *,
    new_executor: Callable[[int], AbstractContextManager[Executor]],
    workers: int,
    threads: int = 1,
    time_limit_s: float | None = None,
    overwrite: bool = False,
) -> Iterator[SlideOutcome]:
    """Outcomes of `tile_slide` over a cohort, as they come.

    A worker process that dies (killed for its memory, crashed in a decoder, over the time limit) takes its executor
    with it. The slides that may have been in work then get one executor each, which tells the one that kills it; the
    rest go on in a new one. Slides that another run is at are left for the end, and then waited for.

    Args:
        records: The slides.
        spec: What to make.
        caches: Folder to write to.
        new_executor: An executor of as many workers as it is told, as a context manager. With a time limit the workers
            must be processes.
        workers: How many slides are tiled at a time.
        threads: How many decode and encode within each.
        time_limit_s: A slide that takes longer ends its process, and fails.
        overwrite: Tile again what is there already.

    Raises:
        OutputError: If a cache cannot be written; slides not yet begun are then left alone.
    """
    work = partial(_in_time, time_limit_s, spec=spec, caches=caches, overwrite=overwrite, threads=threads)
    waiting, busy = list(records), []
    while waiting:
        done = set()
        with new_executor(workers) as executor:
            for record, outcome in _mapped(executor, waiting, partial(work, wait=False)):
                if outcome is None:
                    continue
                done.add(record.slide_id)
                if outcome.busy:
                    busy.append(record)
                else:
                    yield outcome
        waiting = [record for record in waiting if record.slide_id not in done]
        suspects, waiting = waiting[:workers], waiting[workers:]  # work is begun in order
        yield from _one_by_one(suspects, new_executor, work, time_limit_s)
    work = partial(_in_time, None, spec=spec, caches=caches, threads=threads)
    yield from _one_by_one(busy, new_executor, work, None)


def _one_by_one(
    records: Sequence[SlideRecord],
    new_executor: Callable[[int], AbstractContextManager[Executor]],
    work: Callable[[SlideRecord], SlideOutcome],
    time_limit_s: float | None,
) -> Iterator[SlideOutcome]:
    """Each slide in an executor of its own, which it alone can break."""
    for record in records:
        start = time.monotonic()
        with new_executor(1) as executor:
            outcomes = [outcome for _, outcome in _mapped(executor, [record], work)]
        for outcome in outcomes:  # only now: on leaving, a cluster that is gone says so, and no slide is blamed
            if outcome is not None:
                yield outcome
                continue
            why = (
                "the process that tiled it was killed, perhaps for want of memory, or crashed in the slide's "
                "decoder; try it alone, or with another --reader"
            )
            if time_limit_s is not None and time.monotonic() - start >= time_limit_s:
                why = f"it took longer than {time_limit_s:g} s; raise --time-limit, or try another --reader"
            yield SlideOutcome(record.slide_id, None, f"{record.slide_id}: {record.file}: {why}")


def end_with_parent() -> None:
    """Have this worker process end as soon as the process that started it is gone, whatever it is doing then.

    Ctrl-C, which a terminal sends to all processes of a command, is left to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_time(time_limit_s: float | None, record: SlideRecord, **settings: Any) -> SlideOutcome:
    """`tile_slide`, ended with its whole process after the time limit: a decoder that hangs heeds nothing less."""
    if time_limit_s is None:
        return tile_slide(record, **settings)
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(time_limit_s, exit=True, file=nowhere)
        try:
            return tile_slide(record, **settings)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _mapped(
    executor: Executor, records: Sequence[SlideRecord], work: Callable[[SlideRecord], SlideOutcome]
) -> Iterator[tuple[SlideRecord, SlideOutcome | None]]:
    """Each slide with its outcome, as they come; None where its worker died before there was one."""
    futures = {}
    try:
        for record in records:
            try:
                futures[executor.submit(work, record)] = record
            except BrokenExecutor:
                yield record, None
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except WsiDbpsError:
                raise
            except Exception as error:  # of the executor: what goes wrong with a slide is an outcome
                if not isinstance(error, BrokenExecutor) and type(error).__name__ not in _WORKER_DIED:
                    raise
                outcome = None
            yield futures[future], outcome
    finally:
        for future in futures:
            future.cancel()


def plan_slide(record: SlideRecord, spec: CacheSpec) -> SlidePlan:
    """Decide a slide's tiles without writing anything.

    Raises:
        SlideError: If the slide cannot be opened or tiled.
    """
    with _open(record, spec) as reader:
        given, spec = _given(reader.info, record, spec)
        return _decide(reader, record, spec, given)


def estimate_bytes(record: SlideRecord, spec: CacheSpec, decided: SlidePlan, *, sample: int = 8) -> int:
    """Bytes that the slide's patches will take, from `sample` of them."""
    if not len(decided.plan):
        return 0
    some = decided.plan.take(np.unique(np.linspace(0, len(decided.plan) - 1, sample).astype(int)))
    with _open(record, spec) as reader:
        sizes = [len(p.jpeg) for p in _patches(reader, replace(decided, plan=some), spec, 1) if isinstance(p, Patch)]
    return round(float(np.mean(sizes or 0)) * len(decided.plan))


def notes(decided: SlidePlan, spec: CacheSpec) -> Iterator[str]:
    """What a user should know about a slide before relying on its patches."""
    plan, file_um = decided.plan, decided.info.mpp_um
    known_um = file_um if file_um is not None and is_plausible(file_um) else plan.grid.mpp_lv0_um
    if abs(plan.grid.mpp_lv0_um / known_um - 1) > MPP_DISAGREEMENT:
        yield f"the manifest says {plan.grid.mpp_lv0_um:g} µm/px and the file {file_um:.4g}; the manifest is believed"
    method = decided.provenance.mask_fingerprint or plan.spec.tissue  # the manifest's word for the slide, or a mask's
    yield from colour_doubts(decided.thumbnail_HWC, decided.mask.mask_HW if method in METHODS else None)
    if method in METHODS:
        yield from tissue_doubts(
            decided.thumbnail_HWC,
            plan.grid.slide_lv0,
            plan.grid.mpp_lv0_um,
            method,
            drop_pen=plan.spec.drop_pen,
        )
    elif "none" not in (method, plan.spec.tissue) and decided.mask.mask_HW.all():
        yield "its mask takes the whole slide for tissue; is it the mask, and not a picture of the slide?"
    if spec.icc == "srgb" and not decided.info.icc_profile:
        yield "no ICC profile that can be read; its colours are taken for sRGB"
    if past := int(plan.past_edge.sum()):
        yield f"{past} of {len(plan)} given tiles reach past the slide's edge; their patches are white there"
    if len(plan):
        return
    if min(plan.grid.slide_lv0.width, plan.grid.slide_lv0.height) < plan.grid.tile_lv0:
        yield f"smaller ({plan.grid.slide_lv0} px) than one tile of {plan.grid.tile_lv0:g} px; no patches"
    elif not decided.mask.mask_HW.any():
        yield "no tissue found; no patches"
    else:
        yield f"no tile holds a share of {plan.spec.min_tissue:g} of tissue; no patches"


def named(record: SlideRecord, error: WsiDbpsError) -> str:
    """What went wrong with a slide, in one line, the slide and its file at the front, once."""
    text = str(error)
    if isinstance(error, SlideError) and record.file is not None and str(record.file) not in text:
        text = f"{record.file}: {text}"
    return f"{record.slide_id}: {text}"


def _open(record: SlideRecord, spec: CacheSpec) -> SlideReader:
    if record.file is None:
        raise UnreadableSlideError("no path in the manifest")
    return open_slide(record.file, spec.reader)


def _stamp(file: SlideFile | None) -> tuple[int, ...]:
    """What the file system says of a local file that changes with its content; nothing of a URL."""
    if not isinstance(file, Path):
        return ()
    try:
        found = file.stat()
    except OSError:  # opening it will say what is wrong with it
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_unchanged(file: SlideFile | None, stamp: tuple[int, ...], info: SlideInfo) -> None:
    """Refuse a slide that was replaced or written to since `stamp` was taken: pixels and fingerprint may not match."""
    if file is None:
        return
    if _stamp(file) != stamp:
        raise SlideError(f"{file}: {_CHANGED}")
    check_unchanged(info, file)


def _given(info: SlideInfo, record: SlideRecord, spec: CacheSpec) -> tuple[GivenCoords | None, CacheSpec]:
    """The tiles that another tool chose, and the spec with their resolution and size; none, and the spec as it is."""
    if record.coords is None:
        return None, spec
    given = read_coords(find_coords(record.coords, record.slide_id), info)
    mpp_um, _ = resolve_mpp(record.slide_id, record.mpp_um, info.mpp_um)
    return given, replace(spec, tiling=given.tiling(mpp_um))


def _decide(reader: SlideReader, record: SlideRecord, spec: CacheSpec, given: GivenCoords | None) -> SlidePlan:
    info = reader.info
    mpp_um, provenance = _provenance(info, record, given)
    tiles = jpeg_levels(record.file, info) if record.file is not None and spec.codec != "reader" else []
    picture = _thumbnail(reader, tiles, spec)
    grid, tissue = Size(picture.shape[1], picture.shape[0]), _tissue(record, spec)
    if given is not None:
        mask = given.covered(info.size_lv0, grid)
    elif record.mask is not None:
        mask = read_mask(record.mask, info.size_lv0, grid)
    elif tissue == "none":
        mask = everywhere(info.size_lv0)
    else:
        mask = segment(picture, info.size_lv0, mpp_um, tissue, drop_pen=spec.tiling.drop_pen)
    native, why = _native_level(tiles, info, mpp_um, spec, given)
    tiling = spec.tiling
    if native is not None:
        tiling = replace(tiling, mpp_um=mpp_um * info.levels[native].downsample)
    elif spec.codec == "copy":
        raise SlideError(f"the scanner's tiles cannot be copied: {why}; tile with --codec auto")
    if given is None:
        plan = plan_tiles(mask, mpp_um, tiling)
    else:
        plan = TilePlan(
            tiling,
            TileGrid(given.origins_lv0, given.tile_lv0, info.size_lv0, mpp_um, tiling.size_px, tiling.mpp_um),
            given.tissue_N,
        )
    pixels = PixelSource("copy", native) if native is not None else _resampled(tiles, info, plan, why)
    level = info.levels[pixels.level]
    if abs(plan.grid.tile_lv0 - tiling.size_px * level.downsample) < 1e-6 * plan.grid.tile_lv0:
        pixels = replace(pixels, level_px=level.size)
    return SlidePlan(info, plan, provenance, picture, mask, tiles, pixels)


def _thumbnail(reader: SlideReader, tiles: Sequence[JpegLevel | str], spec: CacheSpec) -> npt.NDArray[np.uint8]:
    """The slide's picture; out of its own tiles, at a fraction of their size, where they can be had."""
    if not any(isinstance(level, JpegLevel) for level in tiles):
        return thumbnail(in_colours(reader, spec.icc), spec.thumbnail_px)
    with TileReader(reader, tiles) as fast:
        return thumbnail(in_colours(fast, spec.icc), spec.thumbnail_px)


def _tissue(record: SlideRecord, spec: CacheSpec) -> Method | Literal["none"]:
    """How the slide's tissue is found: the manifest's word for it, or the spec's."""
    asked = record.extra.get("tissue") or spec.tiling.tissue
    if asked not in (*METHODS, "none"):
        raise SlideError(f"the manifest's tissue is {asked!r}; it must be {', '.join(METHODS)} or none")
    return cast("Method | Literal['none']", asked)


def _native_level(
    tiles: Sequence[JpegLevel | str], info: SlideInfo, mpp_um: float, spec: CacheSpec, given: GivenCoords | None
) -> tuple[int | None, str]:
    """The level whose stored tiles are the patches asked for; or None, and why not."""
    if spec.codec in ("jpeg", "reader"):
        return None, f"--codec {spec.codec}"
    if spec.icc == "srgb" and info.icc_profile and to_srgb(info.icc_profile):
        return None, "its ICC profile is to be applied"
    asked, found = spec.tiling, [level.downsample * mpp_um for level in info.levels]
    near = [i for i, um in enumerate(found) if abs(um / asked.mpp_um - 1) <= spec.native_tolerance]
    if not near:
        return None, f"no level has {asked.mpp_um:g} µm/px, they have {', '.join(f'{um:.4g}' for um in found)}"
    level = min(near, key=lambda i: abs(found[i] / asked.mpp_um - 1))
    stored, why = tiles[level], ""
    if isinstance(stored, str):
        why = stored
    elif asked.overlap_px:
        why = "patches overlap"
    elif stored.tile_px != asked.size_px:
        why = f"the scanner's tiles have {stored.tile_px} px, the patches {asked.size_px}"
    elif info.levels[level].downsample % 1:
        why = f"level {level} is {info.levels[level].downsample:.6g} times smaller, not a whole number"
    elif given is not None and not given.are_cells(stored.tile_px * info.levels[level].downsample):
        why = "the given tiles are not the scanner's"
    return (None, why) if why else (level, "")


def _resampled(tiles: Sequence[JpegLevel | str], info: SlideInfo, plan: TilePlan, why: str) -> PixelSource:
    """What to read for patches that have to be decoded."""
    downsample = plan.grid.tile_lv0 / plan.spec.size_px
    if any(isinstance(level, JpegLevel) for level in tiles):
        levels, sources = steps(info, tiles)
        source = sources[best_level(levels, downsample)]
        if source.tiles is not None:
            return PixelSource("tiles", source.level, source.scale, why)
    return PixelSource("reader", best_level(info.levels, downsample), why=why)


def _provenance(info: SlideInfo, record: SlideRecord, given: GivenCoords | None) -> tuple[float, Provenance]:
    mpp_um, source = resolve_mpp(record.slide_id, record.mpp_um, info.mpp_um)
    try:
        if given is not None:
            mask_fingerprint = given.fingerprint
        else:
            mask_fingerprint = file_digest(record.mask) if record.mask is not None else record.extra.get("tissue", "")
    except OSError as error:
        raise SlideError(f"mask {record.mask}: cannot be read: {error.strerror}") from None
    return mpp_um, Provenance(record.slide_id, info.fingerprint, info.vendor, info.reader, source, mask_fingerprint)


@dataclass(frozen=True)
class _Written:
    num_bytes: int
    num_dropped: int
    notes: tuple[str, ...]


def _write(beside: Path, reader: SlideReader, decided: SlidePlan, spec: CacheSpec, threads: int) -> _Written:
    """Write the whole cache to `beside` as the patches come."""
    plan, bad, measures = decided.plan, {}, []
    head = CacheHead(
        plan.grid,
        plan.tissue_N,
        decided.provenance,
        to_dict(spec),
        decided.pixels,
        encode_jpeg(decided.thumbnail_HWC, 90),
        decided.mask.mask_HW,
        decided.info.icc_profile,
        profile_name(decided.info.icc_profile),
        bool(decided.info.icc_profile) and spec.icc == "srgb",
    )
    writer = CacheWriter(beside, head)
    try:
        for i, patch in enumerate(_patches(reader, decided, spec, threads)):
            if isinstance(patch, Patch):
                writer.add(patch.jpeg, patch.crc32)
                if spec.qc:
                    measures.append(patch.measures)
                continue
            bad[i] = patch
            if len(bad) > max(spec.max_damaged * len(plan), 0):
                raise UnreadableSlideError(_too_damaged(bad, plan, spec))
        keep_N = np.ones(len(plan), np.bool_)
        keep_N[list(bad)] = False
        kept = plan.take(keep_N)
        writer.finish(
            replace(
                head,
                grid=kept.grid,
                tissue_N=kept.tissue_N,
                quality=as_arrays(measures) if spec.qc else {},
                dropped_N2=plan.grid.origins_lv0[~keep_N],
            )
        )
    finally:
        writer.close()
    said = f"{len(bad)} of {len(plan)} tiles could not be decoded and were left out; the first:"
    return _Written(writer.num_bytes, len(bad), tuple(f"{said} {error}" for error in [*bad.values()][:1]))


def _too_damaged(bad: dict[int, UnreadableSlideError], plan: TilePlan, spec: CacheSpec) -> str:
    first = next(iter(bad.values()))
    if not spec.max_damaged:
        return str(first)
    most = f"more than {spec.max_damaged:.3g} of its {len(plan)} tiles"
    return f"{most} cannot be decoded (--max-damaged); the first: {first}"


def _patches(reader: SlideReader, decided: SlidePlan, spec: CacheSpec, threads: int) -> Iterator[Outcome]:
    """The plan's patches, by the path that was decided."""
    plan, pixels = decided.plan, decided.pixels
    if pixels.path == "copy":
        tiles = decided.tiles[pixels.level]
        assert isinstance(tiles, JpegLevel)
        yield from copied(reader, pixels.level, tiles, plan, spec.quality, threads, qc=spec.qc)
    elif pixels.path == "tiles":
        with TileReader(reader, decided.tiles) as fast:
            level = fast.level_of(pixels.level, pixels.scale)
            yield from encoded(in_colours(fast, spec.icc), level, plan, spec.quality, threads, qc=spec.qc)
    else:
        many = threads if reader.info.reader == "openslide" else 1  # OpenSlide alone promises to bear threads
        yield from encoded(in_colours(reader, spec.icc), pixels.level, plan, spec.quality, many, qc=spec.qc)


def _reuse(
    path: Path, reader: SlideReader, record: SlideRecord, spec: CacheSpec, given: GivenCoords | None
) -> SlideOutcome:
    """The outcome for a cache that is there and fits; one that does not fit is an error naming what differs."""
    cache = PatchCache(path)
    mpp_um, provenance = _provenance(reader.info, record, given)
    made_with = to_dict(
        build(CacheSpec, dict(cache.facts.spec), str(path))
    )  # settings that came later have their defaults
    now = record.mask or record.extra.get("tissue") or "none"
    mask_said = f"the manifest's mask or tissue was another one than {now}"
    differ = differences(
        _flat(made_with) | _inputs(cache.slide_id, cache.grid.mpp_lv0_um, cache.facts),
        _flat(to_dict(spec)) | _inputs(record.slide_id, mpp_um, provenance),
        words={
            "slide_fingerprint": f"the slide file was another one than {record.file}",
            "mask_fingerprint": mask_said if given is None else f"its tiles are not those of {given.path}",
        },
    )
    refuse_others(f"{path} was made otherwise", differ, "pass --overwrite, or another --out folder")
    return SlideOutcome(record.slide_id, path, num_patches=len(cache), skipped=True)


def _inputs(slide_id: str, mpp_lv0_um: float, of: Provenance | CacheFacts) -> dict[str, Any]:
    fingerprints = {"slide_fingerprint": of.slide_fingerprint, "mask_fingerprint": of.mask_fingerprint}
    return {"slide_id": slide_id, "mpp_level0": mpp_lv0_um} | fingerprints


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat
