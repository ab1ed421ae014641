"""One number per tile becomes one number per pixel of a picture of the slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsi_dbps.heatmaps.placement import picture_mpp_um, tile_boxes_px

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.geometry import Size


@dataclass(frozen=True)
class Heatmap:
    """A picture of one value over a slide, from edge to edge."""

    values_HW: npt.NDArray[np.float32]
    """(H, W); NaN where there is no tile."""
    mpp_um: float
    """µm per pixel."""


def rasterize(
    coords_N2: npt.NDArray[np.int64],
    tile_lv0: float,
    values_N: npt.NDArray[np.floating],
    slide_lv0: Size,
    raster: Size,
    mpp_lv0_um: float,
) -> Heatmap:
    """The mean of the tiles over each pixel, each tile counting by the exact area of the pixel it covers.

    A pixel has a value where tiles cover half of it or more. Tiles too small to be sure of half a pixel lower that bar
    to what the best-covered pixel of a tile surely has, so that no tile that lies on the slide can vanish. Areas of
    overlapping tiles add up. What lies beyond the slide's edge is cut.

    Args:
        coords_N2: (N, 2) top-left corners (x, y) in level-0 pixels; N may be 0.
        tile_lv0: Tile side in level-0 pixels; not always whole.
        values_N: (N,) a finite value per tile.
        slide_lv0: Slide size in level-0 pixels.
        raster: Size of the picture to make.
        mpp_lv0_um: µm per pixel at level 0.

    Raises:
        ValueError: If a value is not finite, or the numbers of tiles and values differ.
    """
    if values_N.shape != (len(coords_N2),) or not np.isfinite(values_N).all():
        raise ValueError(f"needs a finite value per tile; found {values_N.shape} values for {len(coords_N2)} tiles")
    values_HW = np.full((raster.height, raster.width), np.nan, np.float32)
    if len(values_N):
        boxes_N4 = tile_boxes_px(coords_N2, tile_lv0, slide_lv0, raster)
        area_HW = _area_sum(boxes_N4, np.ones(len(values_N)), raster)
        sum_HW = _area_sum(boxes_N4, values_N.astype(np.float64), raster)
        covered_HW = area_HW >= _least_area(tile_lv0, slide_lv0, raster) - 1e-9
        mean = sum_HW[covered_HW] / area_HW[covered_HW]
        values_HW[covered_HW] = mean.clip(values_N.min(), values_N.max())  # a mean stays within, whatever the rounding
    return Heatmap(values_HW, picture_mpp_um(slide_lv0, raster, mpp_lv0_um))


def percentile_ranks(values_N: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The share of the other values below each value, equals counting half; in [0, 1].

    The lowest of distinct values has 0 and the highest 1; values that are all equal, or one alone, have 0.5.

    Examples:
        >>> percentile_ranks(np.array([7.0, 1.0, 3.0, 3.0, 9.0])).tolist()
        [0.75, 0.0, 0.375, 0.375, 1.0]
    """
    if len(values_N) < 2:
        return np.full(len(values_N), 0.5)
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    ranks: npt.NDArray[np.float64] = (below + (counts - 1) / 2) / (len(values_N) - 1)
    return ranks[inverse_N]


def _least_area(tile_lv0: float, slide_lv0: Size, raster: Size) -> float:
    """The area from which a pixel counts as covered: a tile of side s fills s / 2 of its best pixel along each axis."""
    width_px = tile_lv0 * raster.width / slide_lv0.width
    height_px = tile_lv0 * raster.height / slide_lv0.height
    return min(0.5, min(1.0, width_px / 2) * min(1.0, height_px / 2))


def _area_sum(
    boxes_N4: npt.NDArray[np.float64], values_N: npt.NDArray[np.float64], raster: Size
) -> npt.NDArray[np.float64]:
    """(H, W) sum over the boxes of value times the area of the pixel that the box covers.

    Along one axis, the share of pixel p covered by [a, b] is the running sum of a unit dropped at a and taken away at
    b, each shared between the two nearest pixels. So four corners per box and one running sum per axis are exact, and
    the cost does not depend on the size of the boxes.
    """
    rows, columns = raster.height + 2, raster.width + 2
    steps = np.zeros(rows * columns)
    left, top, right, bottom = boxes_N4.T
    for y_N, y_sign in ((top, 1), (bottom, -1)):
        for x_N, x_sign in ((left, 1), (right, -1)):
            for row_N, row_share_N in _dropped(y_N, raster.height):
                for column_N, column_share_N in _dropped(x_N, raster.width):
                    amount_N = y_sign * x_sign * row_share_N * column_share_N * values_N
                    steps += np.bincount(row_N * columns + column_N, amount_N, rows * columns)
    sums = steps.reshape(rows, columns).cumsum(axis=0).cumsum(axis=1)
    return sums[: raster.height, : raster.width]


def _dropped(
    edge_N: npt.NDArray[np.float64], length_px: int
) -> tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]], ...]:
    """A unit at each edge, shared between the pixel it lies in and the next: two pairs (pixel, share)."""
    cut_N = edge_N.clip(0, length_px)
    pixel_N = np.floor(cut_N).astype(np.int64)
    share_N = cut_N - pixel_N
    return (pixel_N, 1 - share_N), (pixel_N + 1, share_N)
