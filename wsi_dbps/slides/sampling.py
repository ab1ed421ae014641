"""Any square of a slide at any resolution, and the thumbnail: the nearest finer level, read once, resampled once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from wsi_dbps.core.errors import SlideError
from wsi_dbps.core.geometry import Region, Size, fit_within
from wsi_dbps.slides.source import MAX_DECODED_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from wsi_dbps.core.geometry import Level
    from wsi_dbps.slides.base import SlideReader

NATIVE_TOLERANCE: Final = 0.02
"""A level up to this share coarser than what is asked for still serves: 0.5034 µm/px for 0.5."""
BAND_BYTES: Final = 64_000_000
"""Pixels of a slide without coarse levels that are held at a time while its thumbnail is made."""
_LANCZOS_SUPPORT: Final = 3
"""How many result pixels away a pixel still counts."""


def best_level(levels: Sequence[Level], downsample: float) -> int:
    """Index of the coarsest level no coarser than `downsample` (within `NATIVE_TOLERANCE`); 0 if all are coarser."""
    fine_enough = [i for i, level in enumerate(levels) if level.downsample <= downsample * (1 + NATIVE_TOLERANCE)]
    return max(fine_enough, key=lambda i: levels[i].downsample, default=0)


def read_box(
    reader: SlideReader, level: int, box_lv0: tuple[float, float, float, float], out: Size, *, margin_px: int = 0
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) pixels of the rectangle (x0, y0, x1, y1), in level-0 pixels, resampled from one level to `out`.

    The rectangle need not fall on whole pixels of the level: the smallest region that holds it is read, and Lanczos
    resampling takes the fractional edges into account. Where rectangle and `out` are the same whole pixels, nothing is
    resampled and the level's own pixels come back. Levels whose last column stands for less than a whole one are often
    stored without it; there the one before is repeated, so that nothing is stretched.

    Args:
        reader: The slide.
        level: The level to read.
        box_lv0: The rectangle; it lies on the slide.
        out: Size of the result.
        margin_px: Pixels of the level to read around the rectangle where there are some. Without them Lanczos has only
            the rectangle's own pixels at its edges: right for a patch, which must not cost a second row of scanner
            tiles, but a seam where two rectangles are to be joined.

    Raises:
        SlideError: If more than `MAX_DECODED_BYTES` would be read: the slide has no level for this resolution.
    """
    scale, size = reader.info.levels[level].downsample, reader.info.levels[level].size
    x0, y0, x1, y1 = (_snap(v / scale) for v in box_lv0)
    left, top = max(0, math.floor(x0) - margin_px), max(0, math.floor(y0) - margin_px)
    right, bottom = (min(math.ceil(v) + margin_px, side) for v, side in ((x1, size.width), (y1, size.height)))
    region = Region(level, left, top, right - left, bottom - top)
    if (decoded := 3 * region.width * region.height) > MAX_DECODED_BYTES:
        raise SlideError(
            f"{region.width} x {region.height} px of level {level} would be decoded at once ({decoded / 1e9:.1f} GB; "
            f"MAX_DECODED_BYTES allows {MAX_DECODED_BYTES / 1e9:.1f}), because no level is coarse enough; write the "
            "slide with more levels (for example `vips tiffsave --tile --pyramid`)"
        )
    pixels = reader.read(region)
    if x1 > size.width or y1 > size.height:
        beyond = (max(0, math.ceil(y1) - bottom), max(0, math.ceil(x1) - right))
        pixels = np.pad(pixels, ((0, beyond[0]), (0, beyond[1]), (0, 0)), mode="edge")
    if (x0, y0) == (left, top) and (pixels.shape[1], pixels.shape[0]) == (out.width, out.height) == (x1 - x0, y1 - y0):
        return pixels
    box = (x0 - left, y0 - top, x1 - left, y1 - top)
    image = Image.fromarray(pixels).resize((out.width, out.height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image)


def _snap(value: float) -> float:
    """The whole number within 1e-6, if there is one: 2.0000000001 must not read a further column."""
    return float(round(value)) if abs(value - round(value)) < 1e-6 else value


def thumbnail(reader: SlideReader, max_px: int, *, band_bytes: int = BAND_BYTES) -> npt.NDArray[np.uint8]:
    """(H, W, 3) picture of the whole slide, its longer side at most `max_px`, never enlarged.

    Where the longer side of a level lies between a quarter of `max_px` and all of it, that level is the picture, as it
    is; otherwise a finer one is read, in bands so that a slide without coarse levels does not have to fit in memory,
    and resampled.
    """
    for i, size in enumerate(level.size for level in reader.info.levels):
        if max_px / 4 <= max(size.width, size.height) <= max_px:
            return reader.read(Region(i, 0, 0, size.width, size.height))
    size_lv0 = reader.info.size_lv0
    out = fit_within(size_lv0, max_px)
    level = best_level(reader.info.levels, size_lv0.width / out.width)
    level_size = reader.info.levels[level].size
    lines = max(1, band_bytes // (3 * level_size.width) * out.height // level_size.height)
    scale_y = size_lv0.height / out.height
    margin = math.ceil(_LANCZOS_SUPPORT * max(1.0, scale_y / reader.info.levels[level].downsample))
    bands = [
        read_box(
            reader,
            level,
            (0, top * scale_y, size_lv0.width, min(top + lines, out.height) * scale_y),
            Size(out.width, min(lines, out.height - top)),
            margin_px=margin if lines < out.height else 0,
        )
        for top in range(0, out.height, lines)
    ]
    return np.concatenate(bands)
