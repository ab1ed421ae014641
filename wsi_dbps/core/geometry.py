"""Sizes, regions, levels, and the arithmetic between level 0, a level and µm.

Points are (x, y), sizes (width, height), arrays (H, W, C). `_lv0` is level-0 pixels, `_px` the pixels of the level or
picture at hand, `_um` micrometres, mpp µm per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt


POSSIBLE_MPP_UM: Final = (0.01, 1000.0)
"""What a manifest may give for level 0. It overrules the file, for overviews too; beyond this it is a slip."""


@dataclass(frozen=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


@dataclass(frozen=True)
class Region:
    """A rectangle in the pixels of one pyramid level."""

    level: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Level:
    """One level of a pyramid, 0 the finest."""

    size: Size
    downsample: float
    """Level-0 pixels per pixel of this level, along each axis."""


@dataclass(frozen=True, eq=False)
class TileGrid:
    """Where the tiles of one slide lie. Row i is the same tile in the plan, the cache, the bag, the attention and every
    drawing."""

    origins_lv0: npt.NDArray[np.int64]
    """(N, 2) top-left corners (x, y) in level-0 pixels; N may be 0."""
    tile_lv0: float
    """Tile side in level-0 pixels; not always a whole number."""
    slide_lv0: Size
    """Size of the slide in level-0 pixels."""
    mpp_lv0_um: float
    """µm per level-0 pixel."""
    size_px: int
    """Side of a patch in its own pixels."""
    mpp_um: float
    """µm per pixel of a patch."""

    def __len__(self) -> int:
        return len(self.origins_lv0)

    def take(self, rows: npt.NDArray[Any]) -> TileGrid:
        """The grid of some of its tiles, named by (n,) row numbers or by an (N,) mask."""
        return replace(self, origins_lv0=self.origins_lv0[rows])


def pyramid_levels(sizes: Sequence[Size]) -> tuple[Level, ...]:
    """The levels of a pyramid from their sizes, finest first.

    A level of 741 rows under 2967 was made by dividing by 4 and dropping the rest, so where a power of two, or else a
    whole number, explains both sides, it is the downsample; the quotient of the sizes would drift by up to a pixel
    across the slide.

    Examples:
        >>> [level.downsample for level in pyramid_levels([Size(2220, 2967), Size(555, 741)])]
        [1.0, 4.0]
    """
    return tuple(Level(size, _downsample(sizes[0], size)) for size in sizes)


def _downsample(fine: Size, coarse: Size) -> float:
    mean = (fine.width / coarse.width + fine.height / coarse.height) / 2
    for whole in (2 ** max(0, round(math.log2(mean))), max(1, round(mean))):
        sides = ((fine.width, coarse.width), (fine.height, coarse.height))
        if all(b in (a // whole, math.ceil(a / whole)) for a, b in sides):
            return float(whole)
    return mean


def fit_within(size: Size, max_px: int) -> Size:
    """The size shrunk, never grown, so that its longer side is at most `max_px`; no side falls below 1."""
    scale = min(1.0, max_px / max(size.width, size.height))
    return Size(max(1, round(size.width * scale)), max(1, round(size.height * scale)))
