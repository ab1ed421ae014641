"""Sizes, regions, levels, and the arithmetic between level 0, a level and µm.

Points are (x, y), sizes (width, height), arrays (H, W, C). `_lv0` is level-0 pixels, `_px` the pixels of the level or
picture at hand, `_um` micrometres, mpp µm per pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from wsi_dbps.core.errors import UnknownGridError, WsiDbpsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


T = TypeVar("T")
Found: TypeAlias = T | Callable[[], T] | None
"""A value; a function that finds it, or raises the error that says why it is not known; None where nothing says."""


class TileGrid:
    """Where the tiles of one slide lie. Row i is the same tile in the plan, the cache, the bag, the attention and every
    drawing.

    Files of other tools do not say everything. What is not known is an error when it is asked for, not before: `knows`
    tells beforehand.
    """

    def __init__(
        self,
        origins_lv0: npt.NDArray[np.int64],
        tile_lv0: float,
        slide_lv0: Found[Size] = None,
        mpp_lv0_um: Found[float] = None,
        size_px: Found[int] = None,
        mpp_um: Found[float] = None,
    ) -> None:
        self.origins_lv0: Final = origins_lv0
        """(N, 2) top-left corners (x, y) in level-0 pixels; N may be 0."""
        self.tile_lv0: Final = tile_lv0
        """Tile side in level-0 pixels; not always a whole number; NaN where it is not known."""
        self._found: Final[Mapping[str, Any]] = {
            "slide_lv0": slide_lv0,
            "mpp_lv0_um": mpp_lv0_um,
            "size_px": size_px,
            "mpp_um": mpp_um,
        }

    @property
    def slide_lv0(self) -> Size:
        """Size of the slide in level-0 pixels."""
        return cast("Size", self._asked("slide_lv0"))

    @property
    def mpp_lv0_um(self) -> float:
        """µm per level-0 pixel."""
        return cast("float", self._asked("mpp_lv0_um"))

    @property
    def size_px(self) -> int:
        """Side of a patch in its own pixels."""
        return cast("int", self._asked("size_px"))

    @property
    def mpp_um(self) -> float:
        """µm per pixel of a patch."""
        return cast("float", self._asked("mpp_um"))

    def __len__(self) -> int:
        return len(self.origins_lv0)

    def knows(self, *names: str) -> bool:
        """Whether these of `slide_lv0`, `mpp_lv0_um`, `size_px` and `mpp_um` are known."""
        try:
            return all(self._asked(name) is not None for name in names)
        except WsiDbpsError:
            return False

    def take(self, rows: npt.NDArray[Any]) -> TileGrid:
        """The grid of some of its tiles, named by (n,) row numbers or by an (N,) mask."""
        return TileGrid(self.origins_lv0[rows], self.tile_lv0, **self._found)

    def with_tile(self, tile_lv0: float) -> TileGrid:
        """The same corners with tiles of another side."""
        return TileGrid(self.origins_lv0, tile_lv0, **self._found)

    def completed(self, other: TileGrid) -> TileGrid:
        """The grid, and what it does not know of the slide and the patches as another grid of the same slide has it."""
        found = {name: value if self.knows(name) else other._found[name] for name, value in self._found.items()}
        return TileGrid(self.origins_lv0, self.tile_lv0, **found)

    def _asked(self, name: str) -> Any:
        value = self._found[name]
        if value is None:
            raise UnknownGridError(f"{_NAMES[name]} is not known; give the patch caches that the tiles are of")
        return value() if callable(value) else value


_NAMES: Final = {
    "slide_lv0": "the size of the slide",
    "mpp_lv0_um": "the slide's mpp",
    "size_px": "the patches' side",
    "mpp_um": "the patches' mpp",
}


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
