"""Which tiles of a slide become patches: decided as data before any pixel is read at full size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_dbps.core.errors import MissingMppError, SlideError
from wsi_dbps.core.geometry import POSSIBLE_MPP_UM, TileGrid
from wsi_dbps.formats.spec import UPSAMPLING_TOLERANCE

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.core.geometry import Size
    from wsi_dbps.formats.spec import TilingSpec
    from wsi_dbps.tiling.tissue import TissueMask

PLAUSIBLE_MPP_UM = (0.05, 20.0)
"""What a file may claim for level 0. Beyond it the number comes from a print resolution (72 dpi is 353 µm)."""


@dataclass(frozen=True)
class TilePlan:
    """The tiles of one slide, row by row. Row i is patch i of the cache, instance i of the bag."""

    spec: TilingSpec
    grid: TileGrid
    """Pixels are read from exactly these corners."""
    tissue_N: npt.NDArray[np.float32]
    """(N,) share of each tile that is tissue."""

    @cached_property
    def past_edge(self) -> npt.NDArray[np.bool_]:
        """(N,) whether a tile reaches past the slide's right or bottom edge, as given ones may, planned ones never."""
        grid = self.grid
        edge = np.array([grid.slide_lv0.width, grid.slide_lv0.height]) + 2e-6 * grid.tile_lv0
        past_N: npt.NDArray[np.bool_] = np.any(grid.origins_lv0 + grid.tile_lv0 > edge, axis=1)
        return past_N

    def __len__(self) -> int:
        return len(self.grid)

    def take(self, rows: npt.NDArray[Any]) -> TilePlan:
        """The plan of some of its tiles, named as in `TileGrid.take`."""
        return TilePlan(self.spec, self.grid.take(rows), self.tissue_N[rows])


def tile_origins(slide_lv0: Size, tile_lv0: float, *, stride_lv0: float) -> npt.NDArray[np.int64]:
    """Top-left corners of every whole tile, row by row.

    Tiles that would cross the right or bottom edge are left out, so a slide smaller than one tile has none. Each corner
    is rounded down from its own exact position, so a fractional stride does not drift across the slide.

    Args:
        slide_lv0: Slide size in level-0 pixels.
        tile_lv0: Tile side in level-0 pixels.
        stride_lv0: Step between neighbours in level-0 pixels; `tile_lv0` for no overlap.

    Returns:
        (N, 2) int64 array of (x, y) in level-0 pixels.

    Raises:
        ValueError: If `tile_lv0` or `stride_lv0` is not above 0.

    Examples:
        >>> from wsi_dbps.core.geometry import Size
        >>> tile_origins(Size(width=8, height=16), 8, stride_lv0=4).tolist()
        [[0, 0], [0, 4], [0, 8]]
    """
    if not (tile_lv0 > 0 and stride_lv0 > 0):
        raise ValueError(f"tile and stride must be above 0, found {tile_lv0} and {stride_lv0}")

    def corners(side: int) -> npt.NDArray[np.int64]:
        count = math.floor((side - tile_lv0) / stride_lv0 + 1e-6) + 1
        return np.floor(np.arange(max(0, count)) * stride_lv0 + 1e-6).astype(np.int64)

    ys, xs = np.meshgrid(corners(slide_lv0.height), corners(slide_lv0.width), indexing="ij")
    return np.stack([xs.ravel(), ys.ravel()], axis=1)


def plan_tiles(mask: TissueMask, mpp_lv0_um: float, spec: TilingSpec) -> TilePlan:
    """The tiles of the whole-slide grid that hold enough tissue.

    Raises:
        SlideError: If `spec.mpp_um` is finer than level 0 beyond `UPSAMPLING_TOLERANCE`.
    """
    if spec.mpp_um < mpp_lv0_um * (1 - UPSAMPLING_TOLERANCE):
        raise SlideError(
            f"level 0 has {mpp_lv0_um:g} µm/px, and {spec.mpp_um:g} is asked for: patches would hold detail that the "
            f"scanner never saw; ask for {mpp_lv0_um:g} or coarser"
        )
    tile_lv0 = spec.size_px * spec.mpp_um / mpp_lv0_um
    stride_lv0 = (spec.size_px - spec.overlap_px) * spec.mpp_um / mpp_lv0_um
    origins_lv0 = tile_origins(mask.slide_lv0, tile_lv0, stride_lv0=stride_lv0)
    tissue_N = mask.share(origins_lv0, tile_lv0)
    keep_N = tissue_N >= spec.min_tissue
    grid = TileGrid(origins_lv0[keep_N], tile_lv0, mask.slide_lv0, mpp_lv0_um, spec.size_px, spec.mpp_um)
    return TilePlan(spec, grid, tissue_N[keep_N])


def is_plausible(mpp_um: float) -> bool:
    """Whether a scanner's level 0 may have this mpp."""
    low, high = PLAUSIBLE_MPP_UM
    return low <= mpp_um <= high


def resolve_mpp(slide_id: str, manifest_um: float | None, file_um: float | None) -> tuple[float, str]:
    """µm per level-0 pixel and where it comes from: the manifest, else the file, else an error; never a guess.

    Raises:
        MissingMppError: If neither has it, if only the file has it and it is not plausible, or if the manifest's is
            impossible.

    Examples:
        >>> resolve_mpp("a", None, 0.25)
        (0.25, 'file')
    """
    if manifest_um is not None:
        low, high = POSSIBLE_MPP_UM
        if not low <= manifest_um <= high:
            raise MissingMppError(
                f"the manifest says {manifest_um:.4g} µm/px, which no slide has (possible: {low:g} to {high:g}); "
                f"correct the mpp column of {slide_id}, or empty it to use the file's"
            )
        return manifest_um, "manifest"
    if file_um is None:
        raise MissingMppError(f"no mpp in the file; add an mpp column to the manifest for {slide_id}")
    if not is_plausible(file_um):
        low, high = PLAUSIBLE_MPP_UM
        raise MissingMppError(
            f"the file says {file_um:.4g} µm/px, which is no scanner's (plausible: {low:g} to {high:g}); "
            f"add an mpp column to the manifest for {slide_id}"
        )
    return file_um, "file"
