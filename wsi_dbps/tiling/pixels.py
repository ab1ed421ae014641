"""The patches of a plan as JPEG files, in order: the scanner's own tiles, or read, resampled and encoded in threads."""

from __future__ import annotations

import math
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np

from wsi_dbps.core.errors import UnreadableSlideError
from wsi_dbps.core.geometry import Size
from wsi_dbps.formats.cache_writer import encode_jpeg
from wsi_dbps.slides.icc import in_colours
from wsi_dbps.slides.jpeg_tiles import Damaged, JpegLevel
from wsi_dbps.slides.readers.tiles import TileReader
from wsi_dbps.slides.sampling import read_box
from wsi_dbps.slides.source import ByteRanges
from wsi_dbps.tiling.quality import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from wsi_dbps.slides.base import SlideReader
    from wsi_dbps.tiling.plan import TilePlan
    from wsi_dbps.tiling.slide_plan import SlidePlan

RUN: Final = 16
"""Neighbouring patches that one thread reads and encodes: enough to share scanner tiles, few enough to hold."""

S = TypeVar("S")
T = TypeVar("T")


class Patch(NamedTuple):
    """A patch as it is stored."""

    jpeg: bytes
    crc32: int
    measures: tuple[float, ...]
    """`quality.MEASURES`, if they were asked for."""


def slide_patches(reader: SlideReader, decided: SlidePlan, threads: int) -> Iterator[Patch | Damaged]:
    """A slide's patches in the order of its plan, each decoded or copied as was decided.

    Args:
        reader: The open slide.
        decided: Its plan.
        threads: How many decode and encode at a time.

    Raises:
        SlideError: If the file cannot be read.
    """
    plan, pixels, spec = decided.plan, decided.pixels, decided.spec
    if pixels.path == "copy":
        tiles = decided.tiles[pixels.level]
        assert isinstance(tiles, JpegLevel)
        yield from copied(reader, pixels.level, tiles, plan, spec.quality, threads, qc=spec.qc)
    elif pixels.path == "tiles":
        with TileReader(reader, decided.tiles) as fast:
            level = fast.level_of(pixels.level, pixels.scale)
            yield from encoded(in_colours(fast, spec.icc), level, plan, spec.quality, threads, qc=spec.qc)
    else:
        yield from encoded(in_colours(reader, spec.icc), pixels.level, plan, spec.quality, threads, qc=spec.qc)


def _patch(jpeg: bytes, *, qc: bool) -> Patch:
    return Patch(jpeg, zlib.crc32(jpeg), measure(jpeg) if qc else ())


def copied(
    reader: SlideReader, level: int, tiles: JpegLevel, plan: TilePlan, quality: int, threads: int, *, qc: bool = False
) -> Iterator[Patch | Damaged]:
    """The scanner's tiles, unchanged but for the tables and the colour space that each lacks.

    Args:
        reader: The slide, for tiles that the scanner left out, and for those past its edge.
        level: The level whose grid the plan is on.
        tiles: Its tiles.
        plan: Tiles of that grid.
        quality: JPEG quality for what is not copied.
        threads: How many read at a time.
        qc: Measure each patch.

    Raises:
        SlideError: If the file cannot be read.
    """
    cells_N2 = np.rint(plan.grid.origins_lv0 / plan.grid.tile_lv0).astype(np.int64)
    stored_N = ~plan.past_edge
    stored_N[stored_N] = tiles.counts[cells_N2[stored_N, 1], cells_N2[stored_N, 0]] > 0
    stored_cells_N2 = cells_N2[stored_N]
    with ByteRanges(tiles.path) as file:

        def read(run: slice) -> list[Patch | Damaged]:
            found = tiles.jpegs(file, stored_cells_N2[run])
            return [_patch(jpeg, qc=qc) if isinstance(jpeg, bytes) else jpeg for jpeg in found]

        patches = chain.from_iterable(in_threads(read, tiles.runs(stored_cells_N2), threads))
        for i, stored in enumerate(stored_N.tolist()):
            patch = next(patches) if stored else _encoded(reader, level, plan, quality, i, qc=qc)
            if stored and isinstance(patch, Damaged):
                x, y = (cells_N2[i] * tiles.tile_px).tolist()
                patch = Damaged(f"{tiles.path}: cannot copy level {level} at ({x}, {y}): {patch.why}")
            yield patch


def encoded(
    reader: SlideReader, level: int, plan: TilePlan, quality: int, threads: int, *, qc: bool = False
) -> Iterator[Patch | Damaged]:
    """Patches read from one level, resampled where they must be, and encoded.

    Args:
        reader: The slide; read by one thread at a time unless it is `thread_safe`.
        level: Level of `reader` to read.
        plan: The tiles.
        quality: JPEG quality.
        threads: How many work at a time; a few runs of patches are held in memory for each.
        qc: Measure each patch.
    """

    def work(run: range) -> list[Patch | Damaged]:
        return [_encoded(reader, level, plan, quality, i, qc=qc) for i in run]

    return chain.from_iterable(in_threads(work, _runs(plan), threads if reader.thread_safe else 1))


def in_threads(work: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """`work` of each item, in order; with more threads than one, at most two results for each of them wait."""
    if threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def patch_pixels(reader: SlideReader, level: int, plan: TilePlan, i: int) -> npt.NDArray[np.uint8]:
    """(P, P, 3) pixels of one patch, white beyond the slide's edge."""
    x, y = (float(v) for v in plan.grid.origins_lv0[i])
    side = plan.spec.size_px
    if not plan.past_edge[i]:
        return read_box(reader, level, (x, y, x + plan.grid.tile_lv0, y + plan.grid.tile_lv0), Size(side, side))
    stored, pixel_lv0 = reader.info.levels[level], plan.grid.tile_lv0 / side
    width, height = (
        min(side, max(0, math.floor((length_px * stored.downsample - start) / pixel_lv0 + 1e-6)))
        for length_px, start in ((stored.size.width, x), (stored.size.height, y))
    )
    patch_HWC = np.full((side, side, 3), 255, np.uint8)
    if width and height:
        box_lv0 = (x, y, x + width * pixel_lv0, y + height * pixel_lv0)
        patch_HWC[:height, :width] = read_box(reader, level, box_lv0, Size(width, height))
    return patch_HWC


def _encoded(reader: SlideReader, level: int, plan: TilePlan, quality: int, i: int, *, qc: bool) -> Patch | Damaged:
    try:
        return _patch(encode_jpeg(patch_pixels(reader, level, plan, i), quality), qc=qc)
    except UnreadableSlideError as error:
        return Damaged(str(error))


def _runs(plan: TilePlan) -> Iterator[range]:
    """Ranges of patches that follow each other in one row of the grid."""
    y_N = plan.grid.origins_lv0[:, 1]
    ends = np.flatnonzero(np.diff(y_N)) + 1
    for first, last in zip((0, *ends), (*ends, len(y_N)), strict=True):
        for start in range(int(first), int(last), RUN):
            yield range(start, min(start + RUN, int(last)))
