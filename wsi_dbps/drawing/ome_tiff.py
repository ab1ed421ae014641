"""A slide's maps as pyramidal OME-TIFF files, registered to the slide by pixel size and origin.

A pixel is a whole number of level-0 pixels wide and high, the first one's corner is the slide's, and every level halves
the one before exactly: x on the slide is x of the map times one number, along both axes, at every level. For that the
map reaches a little past the slide's right and bottom edge.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.core.files import written_whole
from wsi_dbps.core.geometry import Size
from wsi_dbps.drawing.colours import blend
from wsi_dbps.drawing.placement import Window, check_on_slide
from wsi_dbps.drawing.raster import rasterize_channels, rasterize_window
from wsi_dbps.drawing.tile_maps import checked_evidence, percentile_map, raw_map
from wsi_dbps.formats.attention import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.core.geometry import TileGrid
    from wsi_dbps.drawing.tile_maps import TileMap
    from wsi_dbps.formats.attention import SlideAttention

_TILE_PX: Final = 256
_COARSEST_PX: Final = 512
"""The longer side at which halving ends."""
_MAX_VALUES: Final = 1 << 26
"""Most numbers in the finest level of a file, which is held in memory."""
_IDS: Final = uuid.UUID("0d9a5b63-5f3f-5ae7-8a0c-8f6b7c0f3e21")


@dataclass(frozen=True)
class MapGrid:
    """The pixels of a map that is registered to a slide."""

    pixel_lv0: int
    """Side of a pixel, in level-0 pixels."""
    size: Size
    """Of the finest level; both sides halve exactly `num_levels - 1` times."""
    num_levels: int

    def window(self, level: int) -> Window:
        """A level: all show the same rectangle."""
        picture = Size(self.size.width >> level, self.size.height >> level)
        return Window(0, 0, self.size.width * self.pixel_lv0, self.size.height * self.pixel_lv0, picture)


def map_grid(tiles: TileGrid, *, max_px: int = _MAX_VALUES) -> MapGrid:
    """A grid of four to sixteen pixels along a tile's side; coarser where it would hold more than `max_px`.

    Where tiles lie on a grid of whole pixels, as they do unless the slide was resampled, each pixel lies in tiles as a
    whole or not at all, so that the map holds the very values.

    Examples:
        >>> from wsi_dbps.core.geometry import TileGrid
        >>> map_grid(TileGrid(np.array([[512, 256]]), 256.0, Size(1000, 600)))
        MapGrid(pixel_lv0=64, size=Size(width=16, height=10), num_levels=1)
    """
    tile_lv0, slide_lv0 = tiles.tile_lv0, tiles.slide_lv0
    pixel = max(1, int(tile_lv0 / 8))
    if tile_lv0 == int(tile_lv0):
        shared = int(np.gcd.reduce(np.append(tiles.origins_lv0.ravel(), int(tile_lv0))))
        whole = max((d for d in range(1, int(tile_lv0 / 4) + 1) if shared % d == 0), default=1)
        pixel = whole if whole >= tile_lv0 / 16 else pixel
    while math.ceil(slide_lv0.width / pixel) * math.ceil(slide_lv0.height / pixel) > max_px:
        pixel *= 2
    sides = [math.ceil(side / pixel) for side in (slide_lv0.width, slide_lv0.height)]
    halvings = max(0, math.ceil(math.log2(max(sides) / _COARSEST_PX)))
    width, height = (math.ceil(side / (1 << halvings)) << halvings for side in sides)
    return MapGrid(pixel, Size(width, height), halvings + 1)


def write_value_map(path: Path, attention: SlideAttention, *, smooth_um: float = 0.0) -> None:
    """Write the numbers: a float32 channel each for percentile, attention, evidence by class, salient and recycled.

    The last two are the share of the pixel's tiles that have the role. NaN where there is no tile.

    Raises:
        PredictionError: If a tile starts outside the slide, or a value is not finite.
        OutputError: If the file cannot be written.
    """
    check_on_slide(attention)
    evidence_NC = checked_evidence(attention)
    channels = {"attention percentile": percentile_map(attention).values_N, "attention": raw_map(attention).values_N}
    if evidence_NC is not None:
        channels |= {f"evidence {name}": evidence_NC[:, c] for c, name in enumerate(attention.classes)}
    channels |= {name: (attention.role_N == ROLES.index(name)).astype(float) for name in ("salient", "recycled")}
    grid = map_grid(attention.grid, max_px=_MAX_VALUES // len(channels))

    values_KN = np.stack(list(channels.values()))

    def level(window: Window) -> npt.NDArray[np.float32]:
        return rasterize_channels(attention.grid, values_KN, window, smooth_um=smooth_um)

    about = {
        "axes": "CYX",
        "Channel": {"Name": list(channels)},
    }
    # No predictor: Bio-Formats, and so QuPath, knows none for floats.
    _write(path, attention, grid, level, about, photometric="minisblack")


def write_coloured_map(
    path: Path,
    attention: SlideAttention,
    one: TileMap,
    *,
    smooth_um: float = 0.0,
) -> None:
    """Write one map in its colours, 8-bit RGB that any viewer opens; white where there is no tile.

    Raises:
        PredictionError: If a tile starts outside the slide, or a weight is not finite.
        OutputError: If the file cannot be written.
    """
    check_on_slide(attention)
    grid = map_grid(attention.grid, max_px=_MAX_VALUES // 3)

    def level(window: Window) -> npt.NDArray[np.uint8]:
        values_HW = rasterize_window(attention.grid, one.values_N, window, smooth_um=smooth_um)
        white_HWC = np.full((*values_HW.shape, 3), 255, np.uint8)
        return blend(white_HWC, values_HW, one.highest, signed=one.signed)

    scale = {"colours_show": f"{one.name}: {one.unit}", "full_colour_at": one.highest}
    about = {"axes": "YXS", "Channel": {"Name": [one.name]}, "MapAnnotation": scale}
    _write(path, attention, grid, level, about, photometric="rgb", predictor=2)


def _write(
    path: Path,
    attention: SlideAttention,
    grid: MapGrid,
    level: Callable[[Window], npt.NDArray[Any]],
    about: dict[str, Any],
    **how: Any,
) -> None:
    """A TIFF whose first image has the coarser levels as sub-images (SubIFDs), as OME-TIFF 6 asks."""
    import tifffile

    mpp_um = grid.pixel_lv0 * attention.grid.mpp_lv0_um
    num_planes = len(about["Channel"]["Name"])
    origin, unit = [0.0] * num_planes, ["µm"] * num_planes
    best = int(np.argmax(attention.prediction.probabilities))
    # The same attention gives the same file; of its own accord tifffile would draw the UUID.
    identity = f"{attention.slide_id}/{attention.checkpoint_fingerprint}/{attention.cache_fingerprint}/{path.name}"
    metadata = about | {
        "Name": attention.slide_id,
        "UUID": str(uuid.uuid5(_IDS, identity)),
        "PhysicalSizeX": mpp_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp_um,
        "PhysicalSizeYUnit": "µm",
        "Plane": {"PositionX": origin, "PositionXUnit": unit, "PositionY": origin, "PositionYUnit": unit},
        "MapAnnotation": {
            **about.get("MapAnnotation", {}),
            "Namespace": "wsi-dbps heatmap",
            "level0_pixels_per_pixel": grid.pixel_lv0,
            "label": attention.prediction.label or "",
            "predicted": attention.classes[best],
            "probability": attention.prediction.probabilities[best],
            "checkpoint_fingerprint": attention.checkpoint_fingerprint,
            "cache_fingerprint": attention.cache_fingerprint,
        },
    }
    how |= {"tile": (_TILE_PX, _TILE_PX), "compression": "zlib", "software": False}
    with written_whole(path) as partial, tifffile.TiffWriter(partial, ome=True) as file:
        for i in range(grid.num_levels):
            per_cm = 10_000 / (mpp_um * (1 << i))
            first = {"subifds": grid.num_levels - 1, "metadata": metadata} if i == 0 else {"subfiletype": 1}
            file.write(level(grid.window(i)), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", **first, **how)
