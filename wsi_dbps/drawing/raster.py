"""One number per tile becomes one number per pixel of a picture of the slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsi_dbps.core.geometry import Size
from wsi_dbps.drawing.placement import Window, picture_mpp_um

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.core.geometry import TileGrid


@dataclass(frozen=True)
class Heatmap:
    """A picture of one value over a slide, from edge to edge."""

    values_HW: npt.NDArray[np.float32]
    """(H, W); NaN where there is no tile."""
    mpp_um: float
    """µm per pixel."""


def rasterize(grid: TileGrid, values_N: npt.NDArray[np.floating], raster: Size, *, smooth_um: float = 0.0) -> Heatmap:
    """The mean of the tiles over each pixel, each tile counting by the exact area of the pixel it covers.

    A pixel has a value where tiles cover half of it or more. Tiles too small to be sure of half a pixel lower that bar
    to what the best-covered pixel of a tile surely has, so that no tile that lies on the slide can vanish. Areas of
    overlapping tiles add up. What lies beyond the slide's edge is cut.

    Args:
        grid: Where the tiles lie; there may be none.
        values_N: (N,) a finite value per tile.
        raster: Size of the picture to make.
        smooth_um: Standard deviation of a Gaussian by which the tiles' neighbourhood counts too. Which pixels have a
            value does not change, and only area covered by tiles counts, so equal values stay as they are.

    Raises:
        ValueError: If a value is not finite, or the numbers of tiles and values differ.
    """
    values_HW = rasterize_window(grid, values_N, Window.whole(grid.slide_lv0, raster), smooth_um=smooth_um)
    return Heatmap(values_HW, picture_mpp_um(grid, raster))


def rasterize_window(
    grid: TileGrid,
    values_N: npt.NDArray[np.floating],
    window: Window,
    *,
    smooth_um: float = 0.0,
) -> npt.NDArray[np.float32]:
    """(H, W) values over a part of the slide, NaN where there is no tile; as `rasterize`.

    Raises:
        ValueError: If a value is not finite, or the numbers of tiles and values differ.
    """
    return rasterize_channels(grid, values_N[None], window, smooth_um=smooth_um)[0]


def rasterize_channels(
    grid: TileGrid,
    values_KN: npt.NDArray[np.floating],
    window: Window,
    *,
    smooth_um: float = 0.0,
) -> npt.NDArray[np.float32]:
    """(K, H, W) of several values per tile, in little more time than one takes; as `rasterize_window`.

    Raises:
        ValueError: If a value is not finite, or the numbers of tiles and values differ.
    """
    if values_KN.shape[1:] != (len(grid),) or not np.isfinite(values_KN).all():
        raise ValueError(f"needs a finite value per tile; found {values_KN.shape[1:]} values for {len(grid)} tiles")
    out_KHW = np.full((len(values_KN), window.picture.height, window.picture.width), np.nan, np.float32)
    ones_N = np.ones(len(grid))
    summed: _Sums | _SmoothSums = _Sums(grid, window)
    area_HW = summed.of(ones_N)
    covered_HW = area_HW >= _least_area(grid.tile_lv0, window) - 1e-9
    if covered_HW.any():
        if smooth_um:
            summed = _SmoothSums(grid, window, smooth_um / grid.mpp_lv0_um)
            area_HW = summed.of(ones_N)
        area = area_HW[covered_HW]
        for values_HW, values_N in zip(out_KHW, values_KN, strict=True):
            mean = summed.of(values_N)[covered_HW] / area
            values_HW[covered_HW] = mean.clip(values_N.min(), values_N.max())  # it stays within, whatever the rounding
    return out_KHW


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


def _least_area(tile_lv0: float, window: Window) -> float:
    """The area from which a pixel counts as covered: a tile of side s fills s / 2 of its best pixel along each axis."""
    width_lv0, height_lv0 = window.pixel_lv0
    return min(0.5, min(1.0, tile_lv0 / width_lv0 / 2) * min(1.0, tile_lv0 / height_lv0 / 2))


_PER_SIGMA = 4
"""Pixels per standard deviation of the grid on which is smoothed, where the picture's own are finer; and how many
standard deviations away still count."""


class _SmoothSums:
    """As `_Sums`, under a Gaussian, at the centres of the window's pixels.

    What comes out is smooth, so a grid of a few pixels per standard deviation holds all of it, however fine the
    picture. It reaches beyond the window as far as anything counts: a crop is smoothed as the whole slide is.
    """

    def __init__(self, grid: TileGrid, window: Window, sigma_lv0: float) -> None:
        pixel = np.array(window.pixel_lv0)
        step = np.maximum(pixel, sigma_lv0 / _PER_SIGMA)
        beyond = np.ceil(_PER_SIGMA * sigma_lv0 / step).astype(int) + 1
        width, height = (np.ceil((window.width_lv0, window.height_lv0) / step).astype(int) + 2 * beyond).tolist()
        x, y = (window.x_lv0, window.y_lv0) - beyond * step
        coarse = Window(x, y, width * step[0], height * step[1], Size(width, height))
        self._sums, self._sigma_px = _Sums(grid, coarse), sigma_lv0 / step[::-1]
        self._columns, self._rows = (
            (np.arange(count) + 0.5) * pixel[axis] / step[axis] + beyond[axis] - 0.5
            for axis, count in enumerate((window.picture.width, window.picture.height))
        )

    def of(self, values_N: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        from scipy.ndimage import gaussian_filter

        coarse_HW = gaussian_filter(self._sums.of(values_N), self._sigma_px, mode="constant", truncate=_PER_SIGMA)
        return _between(coarse_HW, self._rows, self._columns)


def _between(
    grid_HW: npt.NDArray[np.float64], rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The grid at fractional rows and columns, all inside it, by linear interpolation."""
    for axis, at in enumerate((rows, columns)):
        first = np.floor(at).astype(int)
        share = np.expand_dims(at - first, 1 - axis)
        grid_HW = grid_HW.take(first, axis) * (1 - share) + grid_HW.take(first + 1, axis) * share
    return grid_HW


class _Sums:
    """Sums over tiles of value times the area of each pixel that the tile covers.

    Along one axis, the share of pixel p covered by [a, b] is the running sum of a unit dropped at a and taken away at
    b, each shared between the two nearest pixels. So four corners per tile and one running sum per axis are exact, and
    the cost does not depend on the size of the tiles. Where the units drop is the same for all values.
    """

    def __init__(self, grid: TileGrid, window: Window) -> None:
        picture = window.picture
        boxes_N4 = window.boxes_px(grid)
        inside_N = (boxes_N4[:, 2:] > 0).all(axis=1)
        self._seen_N = inside_N & (boxes_N4[:, :2] < (picture.width, picture.height)).all(axis=1)
        left, top, right, bottom = boxes_N4[self._seen_N].T
        self._rows, self._columns = picture.height + 2, picture.width + 2
        index, share = [], []
        for row_N, row_share_N in (*_dropped(top, picture.height, 1), *_dropped(bottom, picture.height, -1)):
            for column_N, column_share_N in (*_dropped(left, picture.width, 1), *_dropped(right, picture.width, -1)):
                index.append(row_N * self._columns + column_N)
                share.append(row_share_N * column_share_N)
        self._index, self._share = np.stack(index), np.stack(share)

    def of(self, values_N: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """(H, W) sums."""
        amounts = (self._share * values_N[self._seen_N].astype(np.float64)).ravel()
        steps = np.bincount(self._index.ravel(), amounts, self._rows * self._columns)
        sums = steps.astype(np.float64, copy=False).reshape(self._rows, self._columns)
        for axis in (0, 1):
            np.cumsum(sums, axis=axis, out=sums)
        return sums[:-2, :-2]


def _dropped(
    edge_N: npt.NDArray[np.float64], length_px: int, amount: int
) -> tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]], ...]:
    """An amount at each edge, shared between the pixel it lies in and the next: two pairs (pixel, share)."""
    cut_N = edge_N.clip(0, length_px)
    pixel_N = np.floor(cut_N).astype(np.int64)
    share_N = amount * (cut_N - pixel_N)
    return (pixel_N, amount - share_N), (pixel_N + 1, share_N)
