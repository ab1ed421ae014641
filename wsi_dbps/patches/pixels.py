"""A plan's patches as JPEG files, in order: the scanner's own tiles, or read, resampled and encoded in threads."""

from __future__ import annotations

import math
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np

from wsi_dbps.errors import UnreadableSlideError
from wsi_dbps.geometry import Size
from wsi_dbps.patches.cache import encode_jpeg
from wsi_dbps.slides.jpeg_tiles import TileError
from wsi_dbps.slides.sampling import read_box

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from wsi_dbps.slides.jpeg_tiles import JpegLevel
    from wsi_dbps.slides.reader import SlideReader
    from wsi_dbps.tiling.plan import TilePlan

RUN: Final = 16
"""Neighbouring patches that one thread reads and encodes: enough to share scanner tiles, few enough to hold."""

Patch = bytes | UnreadableSlideError
"""A JPEG file, or why there is none."""


def copied(reader: SlideReader, level: int, tiles: JpegLevel, plan: TilePlan, quality: int) -> Iterator[Patch]:
    """The scanner's tiles, unchanged but for the tables and the colour space that each lacks.

    Args:
        reader: The slide, for tiles that the scanner left out or that reach past the edge, where it stored anything.
        level: The level whose grid the plan is on.
        tiles: Its tiles.
        plan: Tiles of that grid.
        quality: JPEG quality for those tiles.
    """
    cells_N2 = np.rint(plan.origins_lv0 / plan.tile_lv0).astype(np.int64)
    cells = [(int(y), int(x)) for x, y in cells_N2]
    handle = os.open(tiles.path, os.O_RDONLY)
    try:
        stored_N = ~plan.past_edge
        stored_N[stored_N] = tiles.counts[cells_N2[stored_N, 1], cells_N2[stored_N, 0]] > 0
        jpegs = tiles.jpegs(handle, [cell for cell, stored in zip(cells, stored_N, strict=True) if stored])
        for i, ((row, column), stored) in enumerate(zip(cells, stored_N, strict=True)):
            jpeg = next(jpegs) if stored else None
            if isinstance(jpeg, bytes):
                yield jpeg
                continue
            x, y = column * tiles.tile_px, row * tiles.tile_px
            if jpeg is None:
                yield encode_jpeg(patch_pixels(reader, level, plan, i), quality)
            else:
                yield TileError(f"{tiles.path}: cannot copy level {level} at ({x}, {y}): {jpeg}")
    except OSError as error:
        raise UnreadableSlideError(f"{tiles.path}: cannot be read: {error.strerror or error}") from None
    finally:
        os.close(handle)


def encoded(reader: SlideReader, level: int, plan: TilePlan, quality: int, threads: int) -> Iterator[Patch]:
    """Patches read from one level, resampled where they must be, and encoded.

    Args:
        reader: The slide; used from several threads at once if `threads` is above 1.
        level: Level of `reader` to read.
        plan: The tiles.
        quality: JPEG quality.
        threads: How many work at a time; a few runs of patches are held in memory for each.
    """

    def work(run: range) -> list[Patch]:
        return [_encoded(reader, level, plan, quality, i) for i in run]

    if threads == 1:
        for run in _runs(plan):
            yield from work(run)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[list[Patch]]] = deque()
        try:
            for run in _runs(plan):
                waiting.append(pool.submit(work, run))
                if len(waiting) > 2 * threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def patch_pixels(reader: SlideReader, level: int, plan: TilePlan, i: int) -> npt.NDArray[np.uint8]:
    """(P, P, 3) pixels of one patch, white beyond the slide's edge."""
    x, y = (float(v) for v in plan.origins_lv0[i])
    side = plan.spec.size_px
    if not plan.past_edge[i]:
        return read_box(reader, level, (x, y, x + plan.tile_lv0, y + plan.tile_lv0), Size(side, side))
    stored, pixel_lv0 = reader.info.levels[level], plan.tile_lv0 / side
    width, height = (
        min(side, max(0, math.floor((length_px * stored.downsample - start) / pixel_lv0 + 1e-6)))
        for length_px, start in ((stored.size.width, x), (stored.size.height, y))
    )
    patch_HWC = np.full((side, side, 3), 255, np.uint8)
    if width and height:
        box_lv0 = (x, y, x + width * pixel_lv0, y + height * pixel_lv0)
        patch_HWC[:height, :width] = read_box(reader, level, box_lv0, Size(width, height))
    return patch_HWC


def _encoded(reader: SlideReader, level: int, plan: TilePlan, quality: int, i: int) -> Patch:
    try:
        return encode_jpeg(patch_pixels(reader, level, plan, i), quality)
    except UnreadableSlideError as error:
        return error


def _runs(plan: TilePlan) -> Iterator[range]:
    """Ranges of patches that follow each other in one row of the grid."""
    y_N = plan.origins_lv0[:, 1]
    ends = np.flatnonzero(np.diff(y_N)) + 1
    for first, last in zip((0, *ends), (*ends, len(y_N)), strict=True):
        for start in range(int(first), int(last), RUN):
            yield range(start, min(start + RUN, int(last)))
