"""Pixels out of a slide's own JPEG tiles: each decoded once, by libjpeg-turbo, at a fraction of its size where enough.

libjpeg-turbo gives a tile at 1/2, 1/4 or 1/8 of its size by an inverse DCT of fewer coefficients: several times faster
than all of it, and as good as a shrunk picture. A slide scanned at 0.25 µm/px without a level at 0.5 so has one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Final

import numpy as np
import simplejpeg
from PIL import Image

from wsi_dbps.core.errors import UnreadableSlideError, one_line
from wsi_dbps.core.geometry import Level, Region, Size
from wsi_dbps.slides.jpeg_tiles import Damaged, JpegLevel
from wsi_dbps.slides.readers.common import Reader
from wsi_dbps.slides.source import ByteRanges

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from wsi_dbps.slides.base import SlideInfo, SlideReader

SCALES: Final = (2, 4, 8)
CACHE_BYTES: Final = 96 << 20
STEP_TOLERANCE: Final = 0.05
"""A stored level this near makes a step of its own needless."""


@dataclass(frozen=True)
class Source:
    """Where a level's pixels come from: the tiles of one stored level at 1 / scale, or the reader beneath."""

    level: int
    scale: int
    tiles: JpegLevel | None


def steps(info: SlideInfo, levels: Sequence[JpegLevel | str]) -> tuple[tuple[Level, ...], list[Source]]:
    """Every level that can be read, and where from: the stored ones in order, then what lies between them."""
    sources = [Source(i, 1, tiles if isinstance(tiles, JpegLevel) else None) for i, tiles in enumerate(levels)]
    found = list(info.levels)
    for i, tiles in enumerate(levels):
        for scale in SCALES if isinstance(tiles, JpegLevel) else ():
            whole = info.levels[i]
            downsample = whole.downsample * scale
            size = Size(whole.size.width // scale, whole.size.height // scale)
            stored = any(abs(level.downsample / downsample - 1) < STEP_TOLERANCE for level in found)
            if not stored and isinstance(tiles, JpegLevel) and tiles.tile_px % scale == 0 and size.width * size.height:
                found.append(Level(size, downsample))
                sources.append(Source(i, scale, tiles))
    return tuple(found), sources


class TileReader(Reader):
    """A reader with the levels of the one beneath, and finer steps between them.

    A level whose tiles cannot be had is read from the reader beneath; so is a tile that the scanner left out.
    """

    thread_safe = True

    def __init__(self, beneath: SlideReader, levels: Sequence[JpegLevel | str]) -> None:
        """Wrap an open reader, which stays the caller's to close.

        Args:
            beneath: The slide.
            levels: As `jpeg_levels` gives them, one per level of `beneath`; at least one a `JpegLevel`.
        """
        self._beneath, self._lock = beneath, Lock()
        found, self._sources = steps(beneath.info, levels)
        self._info = replace(beneath.info, levels=found)
        path = next(tiles.path for tiles in levels if isinstance(tiles, JpegLevel))
        self._path, self._file = path, ByteRanges(path)
        self._cache: OrderedDict[tuple[int, int, int], npt.NDArray[np.uint8]] = OrderedDict()
        self._cached_bytes = 0

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself, with the levels that this reader adds after the stored ones."""
        return self._info

    def level_of(self, level: int, scale: int) -> int:
        """The level of `info` that is a stored level at 1 / scale."""
        return next(i for i, source in enumerate(self._sources) if (source.level, source.scale) == (level, scale))

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB pixels of a region, which lies inside its level.

        Raises:
            UnreadableSlideError: If a tile under it cannot be decoded.
            SlideError: If the file cannot be read.
        """
        source = self._sources[region.level]
        if source.tiles is None:
            with self._lock:
                return self._beneath.read(region)
        side = source.tiles.tile_px // source.scale
        out = np.empty((region.height, region.width, 3), np.uint8)
        for row in range(region.y // side, (region.y + region.height - 1) // side + 1):
            y0, y1 = max(region.y, row * side), min(region.y + region.height, (row + 1) * side)
            for column in range(region.x // side, (region.x + region.width - 1) // side + 1):
                x0, x1 = max(region.x, column * side), min(region.x + region.width, (column + 1) * side)
                pixels = self._tile(region.level, source, source.tiles, row, column)
                part = pixels[y0 - row * side : y1 - row * side, x0 - column * side : x1 - column * side]
                out[y0 - region.y : y1 - region.y, x0 - region.x : x1 - region.x] = part
        return out

    def _tile(self, level: int, source: Source, tiles: JpegLevel, row: int, column: int) -> npt.NDArray[np.uint8]:
        key = (level, row, column)
        with self._lock:
            if (pixels := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return pixels
        if tiles.counts[row, column]:
            pixels = self._decoded(source, tiles, row, column)
        else:
            pixels = self._left_out(source, tiles, row, column)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = pixels
                self._cached_bytes += pixels.nbytes
            while self._cached_bytes > CACHE_BYTES:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return pixels

    def _decoded(self, source: Source, tiles: JpegLevel, row: int, column: int) -> npt.NDArray[np.uint8]:
        side = tiles.tile_px // source.scale
        [jpeg] = tiles.jpegs(self._file, np.array([[column, row]]))
        if not isinstance(jpeg, Damaged):
            try:
                pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
                    jpeg, min_height=side, min_width=side, min_factor=source.scale
                )
                return pixels
            except ValueError as error:
                jpeg = Damaged(str(error))
        place, why = (column * tiles.tile_px, row * tiles.tile_px), one_line(jpeg.why)
        raise UnreadableSlideError(f"{self._path}: cannot decode level {source.level} at {place}: {why}")

    def _left_out(self, source: Source, tiles: JpegLevel, row: int, column: int) -> npt.NDArray[np.uint8]:
        """A tile that the file lacks, as the reader beneath shows it; beyond the slide's edge white."""
        side, size = tiles.tile_px, tiles.size
        width, height = min(side, size.width - column * side), min(side, size.height - row * side)
        whole = np.full((side, side, 3), 255, np.uint8)
        with self._lock:
            region = Region(source.level, column * side, row * side, width, height)
            whole[:height, :width] = self._beneath.read(region)
        return whole if source.scale == 1 else np.asarray(Image.fromarray(whole).reduce(source.scale))

    def close(self) -> None:
        """Close the file of tiles; the reader beneath stays open."""
        self._file.close()
