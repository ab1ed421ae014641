"""A map over the slide's own pixels: a whole level of its pyramid, or regions round the most attended tiles.

Pixels come from a function that reads a region of a level, so that this room needs to know no file format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from wsi_dbps.errors import SlideError
from wsi_dbps.files import written_whole
from wsi_dbps.geometry import Region, Size
from wsi_dbps.heatmaps.colours import GREY, INK, blend
from wsi_dbps.heatmaps.placement import Window, check_on_slide, length_text, round_length_um
from wsi_dbps.heatmaps.raster import rasterize_window
from wsi_dbps.heatmaps.tile_maps import ranks
from wsi_dbps.records import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.geometry import Level
    from wsi_dbps.heatmaps.tile_maps import TileMap
    from wsi_dbps.records import SlideAttention

    Read = Callable[[Region], npt.NDArray[np.uint8]]

MAX_PX: Final = 100_000_000
"""Most pixels of a level that is drawn whole."""
CROP_PX: Final = 1024
"""Side of a crop, unless three tiles are wider."""
_STRENGTH: Final = 0.55
"""Of the colours, so that the tissue under them can be looked at."""
_BAND_PX: Final = 4_000_000
_GAP_PX, _FOOT_PX, _BAR_PX, _RAMP_PX = 16, 64, 6, 200
"""Between the two pictures of a crop; what stands below them; thickness of the scale bar; length of the colours."""


def checked_level(slide_id: str, levels: Sequence[Level], level: int, *, whole: bool) -> Level:
    """The level asked for.

    Raises:
        SlideError: If the slide has no such level, or the whole of it is asked for and it holds more than `MAX_PX`
            pixels; with the finest level that does not.
    """
    if level >= len(levels):
        raise SlideError(f"{slide_id}: has no level {level}; its levels are 0 to {len(levels) - 1}")
    size = levels[level].size
    if whole and (num_px := size.width * size.height) > MAX_PX:
        fitting = [i for i, one in enumerate(levels) if one.size.width * one.size.height <= MAX_PX]
        advice = f"ask for --overlay-level {fitting[0]}, or for --crops" if fitting else "ask for --crops"
        raise SlideError(
            f"{slide_id}: level {level} is {size} px = {num_px / 1e6:.0f} million pixels, of which at most "
            f"{MAX_PX / 1e6:.0f} are drawn; {advice}"
        )
    return levels[level]


def draw_level(
    path: Path,
    read: Read,
    levels: Sequence[Level],
    level: int,
    attention: SlideAttention,
    one: TileMap,
    *,
    smooth_lv0: float = 0.0,
) -> None:
    """Write a PNG of the very size of a level, the map over its pixels; without tiles the slide keeps its colours.

    Raises:
        SlideError: If the slide has no such level, or it is too large.
        PredictionError: If a tile starts outside the slide, or a weight is not finite.
        OutputError: If the file cannot be written.
    """
    from PIL import Image

    check_on_slide(attention, levels[0].size)
    found = checked_level(attention.slide_id, levels, level, whole=True)
    width, height = found.size.width, found.size.height
    mixed_HWC = np.empty((height, width, 3), np.uint8)
    lines = max(1, _BAND_PX // width)
    for top in range(0, height, lines):
        region = Region(level, 0, top, width, min(lines, height - top))
        mixed_HWC[top : top + lines] = _mixed(read(region), region, found.downsample, attention, one, smooth_lv0)
    with written_whole(path) as partial:
        Image.fromarray(mixed_HWC).save(partial, "PNG", compress_level=2)


def _mixed(
    pixels_HWC: npt.NDArray[np.uint8],
    region: Region,
    downsample: float,
    attention: SlideAttention,
    one: TileMap,
    smooth_lv0: float,
) -> npt.NDArray[np.uint8]:
    """A region's pixels under the map, as they are where there is no tile."""
    x, y, width, height = (downsample * v for v in (region.x, region.y, region.width, region.height))
    window = Window(x, y, width, height, Size(region.width, region.height))
    values_HW = rasterize_window(attention.coords_N2, attention.tile_lv0, one.values_N, window, smooth_lv0=smooth_lv0)
    mixed_HWC = blend(pixels_HWC, values_HW, one.highest, signed=one.signed, strength=_STRENGTH)
    blank_HW = np.isnan(values_HW)
    mixed_HWC[blank_HW] = pixels_HWC[blank_HW]
    return mixed_HWC


def crop_regions(
    attention: SlideAttention, levels: Sequence[Level], level: int, count: int
) -> list[tuple[int, Region]]:
    """Up to `count` regions of a level, each with the row of the tile in its middle.

    Tiles are gone through from the highest, the salient first, and those that lie in a region already chosen, by their
    middle, are passed over. A region is `CROP_PX` wide and high, or three tiles where these are wider, and is moved to
    lie on the slide; a level smaller than that is taken whole.
    """
    size, downsample = levels[level].size, levels[level].downsample
    side_px = max(CROP_PX, round(3 * attention.tile_lv0 / downsample))
    width, height = min(side_px, size.width), min(side_px, size.height)
    middles_N2 = (attention.coords_N2 + attention.tile_lv0 / 2) / downsample
    order = np.lexsort((-attention.weights_N, attention.role_N != ROLES.index("salient")))
    left_N = np.ones(len(order), bool)
    regions: list[tuple[int, Region]] = []
    for row in order:
        if len(regions) == count:
            break
        if left_N[row]:
            x, y = (middles_N2[row] - (width / 2, height / 2)).round().astype(int).tolist()
            x, y = min(max(x, 0), size.width - width), min(max(y, 0), size.height - height)
            regions.append((int(row), Region(level, x, y, width, height)))
            left_N &= ((middles_N2 < (x, y)) | (middles_N2 >= (x + width, y + height))).any(axis=1)
    return regions


def draw_crops(
    folder: Path,
    read: Read,
    levels: Sequence[Level],
    level: int,
    count: int,
    attention: SlideAttention,
    one: TileMap,
    mpp_lv0_um: float,
    *,
    smooth_lv0: float = 0.0,
) -> list[Path]:
    """Write `<slide_id>.level<L>.crop<K>.png` for the regions of `crop_regions`: as it is, and under the map.

    Both are the level's very pixels; the picture on the left begins at the file's left top corner.

    Returns:
        The files, from the highest tile on.

    Raises:
        SlideError: If the slide has no such level.
        PredictionError: If a tile starts outside the slide, or a weight is not finite.
        OutputError: If a file cannot be written.
    """
    from PIL import Image

    check_on_slide(attention, levels[0].size)
    downsample = checked_level(attention.slide_id, levels, level, whole=False).downsample
    written: list[Path] = []
    rank_N = ranks(attention.weights_N)
    for number, (row, region) in enumerate(crop_regions(attention, levels, level, count), 1):
        pixels_HWC = read(region)
        mixed_HWC = _mixed(pixels_HWC, region, downsample, attention, one, smooth_lv0)
        x, y = round(region.x * downsample), round(region.y * downsample)
        said = f"{attention.slide_id}  ·  ({x}, {y})  ·  {ROLES[attention.role_N[row]]} #{rank_N[row]:,}  ·  " + (
            f"{one.name.lower()} {one.values_N[row]:.3g} in the middle"
        )
        page = _page(pixels_HWC, mixed_HWC, one, said, mpp_lv0_um * downsample)
        path = folder / f"{attention.slide_id}.level{level}.crop{number}.png"
        with written_whole(path) as partial:
            Image.fromarray(page).save(partial, "PNG", compress_level=4)
        written.append(path)
    return written


def _page(
    left_HWC: npt.NDArray[np.uint8], right_HWC: npt.NDArray[np.uint8], one: TileMap, said: str, mpp_um: float
) -> npt.NDArray[np.uint8]:
    """Two pictures side by side, and below them a scale bar, a line of text and the scale of the colours."""
    from pathlib import Path

    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    height, width = left_HWC.shape[:2]
    page = Image.new("RGB", (2 * width + _GAP_PX, height + _FOOT_PX), "white")
    page.paste(Image.fromarray(left_HWC), (0, 0))
    page.paste(Image.fromarray(right_HWC), (width + _GAP_PX, 0))
    draw = ImageDraw.Draw(page)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 20)
    length_um, top = round_length_um(width / 5 * mpp_um), height + 12
    bar_px = round(length_um / mpp_um)
    draw.rectangle((0, top, bar_px - 1, top + _BAR_PX - 1), fill=INK)
    draw.text((0, top + 12), length_text(length_um), INK, font)
    begin = max(bar_px, round(draw.textlength(length_text(length_um), font))) + 40
    lowest = -one.highest if one.signed else 0.0
    legend = f"{lowest:.3g}", f"{one.highest:.3g} {one.unit}"
    low_px, high_px = (round(draw.textlength(text, font)) + 12 for text in legend)
    end, left = page.width, page.width - high_px - _RAMP_PX
    if left - low_px > page.width // 3:  # else the page is too narrow for it
        end = left - low_px - 24
        ramp_HW = np.linspace(lowest, one.highest, _RAMP_PX, dtype=np.float32)[None].repeat(24, 0)
        white_HWC = np.full((*ramp_HW.shape, 3), 255, np.uint8)
        colours_HWC = blend(white_HWC, ramp_HW, one.highest, signed=one.signed, strength=_STRENGTH)
        page.paste(Image.fromarray(colours_HWC), (left, top))
        draw.text((left - low_px, top), legend[0], INK, font)
        draw.text((left + _RAMP_PX + 12, top), legend[1], INK, font)
    small = font
    while small.size > 8 and draw.textlength(said, small) > end - begin:
        small = small.font_variant(size=small.size - 1)
    draw.text((begin, top), said, GREY, small)
    return np.asarray(page)
