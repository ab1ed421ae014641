"""Where a tile lies, on the slide and on a picture of the slide or of a part of it.

A picture of width W shows a slide of width w from edge to edge, so x in level-0 pixels lies at x * W / w, and y
likewise: each axis has its own factor, because the picture's sides were rounded to whole pixels. Positions are edges,
not pixel centres: 0 is the left edge of the first pixel, W the right edge of the last. A picture of a part of the slide
counts from that part's corner.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from wsi_dbps.core.errors import PredictionError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.core.geometry import Size, TileGrid
    from wsi_dbps.formats.attention import SlideAttention


@dataclass(frozen=True)
class Window:
    """A rectangle of a slide, in level-0 pixels, and the size of a picture that shows it from edge to edge."""

    x_lv0: float
    y_lv0: float
    width_lv0: float
    height_lv0: float
    picture: Size

    @classmethod
    def whole(cls, slide_lv0: Size, picture: Size) -> Self:
        """The slide from edge to edge."""
        return cls(0, 0, slide_lv0.width, slide_lv0.height, picture)

    @property
    def pixel_lv0(self) -> tuple[float, float]:
        """Width and height of a pixel of the picture, in level-0 pixels."""
        return self.width_lv0 / self.picture.width, self.height_lv0 / self.picture.height

    def boxes_px(self, grid: TileGrid) -> npt.NDArray[np.float64]:
        """(N, 4) left, top, right, bottom of every tile in pixels of the picture; nothing is cut at its edges."""
        corners_N2 = grid.origins_lv0.astype(np.float64) - (self.x_lv0, self.y_lv0)
        boxes_N4: npt.NDArray[np.float64] = np.concatenate([corners_N2, corners_N2 + grid.tile_lv0], axis=1)
        boxes_N4[:, 0::2] *= self.picture.width / self.width_lv0
        boxes_N4[:, 1::2] *= self.picture.height / self.height_lv0
        return boxes_N4


def tile_boxes_px(grid: TileGrid, picture: Size) -> npt.NDArray[np.float64]:
    """The edges of every tile on a picture of the whole slide.

    Args:
        grid: Where the tiles lie.
        picture: Size of the picture.

    Returns:
        (N, 4) array of left, top, right, bottom in pixels of the picture. A tile that crosses the slide's edge is not
        cut.

    Examples:
        >>> from wsi_dbps.core.geometry import Size, TileGrid
        >>> tile_boxes_px(TileGrid(np.array([[50, 0]]), 25.0, Size(100, 100)), Size(20, 10)).tolist()
        [[10.0, 0.0, 15.0, 2.5]]
    """
    return Window.whole(grid.slide_lv0, picture).boxes_px(grid)


def picture_mpp_um(grid: TileGrid, picture: Size) -> float:
    """µm per pixel of a picture of the whole slide, by its longer side, which rounding changes least."""
    if picture.width >= picture.height:
        return grid.mpp_lv0_um * grid.slide_lv0.width / picture.width
    return grid.mpp_lv0_um * grid.slide_lv0.height / picture.height


def round_length_um(longest_um: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is at most `longest_um`.

    Examples:
        >>> round_length_um(3400.0), round_length_um(0.7)
        (2000.0, 0.5)
    """
    power = 10.0 ** math.floor(math.log10(longest_um))
    lengths = [factor * power for factor in (0.5, 1.0, 2.0, 5.0, 10.0)]
    return max(length for length in lengths if length <= longest_um)


def length_text(length_um: float) -> str:
    """A length as a scale bar says it.

    Examples:
        >>> length_text(2000.0), length_text(0.5)
        ('2 mm', '0.5 µm')
    """
    return f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"


def check_on_slide(attention: SlideAttention) -> None:
    """Refuse attention that cannot be drawn on its slide.

    Raises:
        UnknownGridError: If the size of the slide is not known.
        PredictionError: If a tile starts outside the slide, its side is not known, or a weight is not finite.
    """
    origins_lv0 = attention.grid.origins_lv0
    if not attention.grid.tile_lv0 > 0:
        raise PredictionError(
            f"{attention.slide_id}: the features do not say how large a tile is, so none can be drawn; make them with "
            "`wsi-dbps embed`, or ask for --format csv only"
        )
    slide_lv0 = attention.grid.slide_lv0
    outside_N = ((origins_lv0 < 0) | (origins_lv0 >= [slide_lv0.width, slide_lv0.height])).any(axis=1)
    if outside_N.any():
        row = int(outside_N.argmax())
        x, y = origins_lv0[row].tolist()
        raise PredictionError(
            f"{attention.slide_id}: tile {row} starts at ({x}, {y}), outside the slide of {slide_lv0} px; "
            "the attention is of another slide, predict again"
        )
    if not np.isfinite(attention.weights_N).all():
        row = int((~np.isfinite(attention.weights_N)).argmax())
        raise PredictionError(
            f"{attention.slide_id}: the attention of tile {row} is {attention.weights_N[row]}; the model has diverged"
        )


def drawn_path(folder: Path, slide_id: str, ending: str) -> Path:
    """Where a picture or table of a slide lies in a folder of heatmaps: <slide_id>.<ending>.

    An id that itself ends like a file of another slide, as `S.rgb` beside `S`, has a `_` added, and so has that id with
    its `_`. No name of ours then ends so before its ending, so that two slides never share a file, whichever are drawn.

    Examples:
        >>> from pathlib import Path
        >>> drawn_path(Path("maps"), "S", "rgb.ome.tiff").name, drawn_path(Path("maps"), "S.rgb", "ome.tiff").name
        ('S.rgb.ome.tiff', 'S.rgb_.ome.tiff')
    """
    return folder / f"{slide_id}{'_' * bool(_LIKE_A_FILE.search(slide_id))}.{ending}"


_LIKE_A_FILE: Final = re.compile(r"\.(rgb|sheet|atlas|level\d+|level\d+\.crop\d+)_*$", re.IGNORECASE)
"""What stands between a slide's id and a file's last ending, with any `_` added to it."""
