"""A map over the slide's own pixels: a whole level of its pyramid, or regions round the most attended tiles.

Pixels come from a function that reads a region of a level, so that this room needs to know no file format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from wsi_dbps.core.errors import SlideError
from wsi_dbps.core.files import written_whole
from wsi_dbps.core.geometry import Region, Size
from wsi_dbps.drawing.colours import GREY, INK, blend
from wsi_dbps.drawing.placement import Window, check_on_slide, drawn_path, length_text, round_length_um
from wsi_dbps.drawing.raster import rasterize_window
from wsi_dbps.drawing.tile_maps import ranks, scale_text
from wsi_dbps.formats.attention import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.core.geometry import Level
    from wsi_dbps.drawing.tile_maps import TileMap
    from wsi_dbps.formats.attention import SlideAttention

    Read = Callable[[Region], npt.NDArray[np.uint8]]

MAX_PX: Final = 100_000_000
"""Most pixels of a level that is drawn whole."""
CROP_PX: Final = 1024
"""Side of a crop, unless three tiles are wider."""
_STRENGTH: Final = 0.55
"""Of the colours, so that the tissue under them can be looked at."""
_BAND_PX: Final = 4_000_000
LEAST_WIDTH_PX: Final = 640
"""Least width of a file, so that what stands below the pixels can be read."""
_GAP_PX, _ROW_PX, _BAR_PX, _RAMP_PX = 16, 34, 6, 160
"""Between the two pictures of a crop; height of a line below; thickness of the scale bar; length of the colours."""
FOOT_PX: Final = 3 * _ROW_PX
"""What stands below the pixels: scale bar, colours, text."""


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
    smooth_um: float = 0.0,
) -> None:
    """Write a PNG of a level's very pixels with the map over them, and below a scale bar and the scale of the colours.

    The first pixel of the file is the level's. Without tiles the slide keeps its colours.

    Raises:
        SlideError: If the slide has no such level, or it is too large.
        PredictionError: If a tile starts outside the slide, or a weight is not finite.
        OutputError: If the file cannot be written.
    """
    from PIL import Image

    check_on_slide(attention)
    found = checked_level(attention.slide_id, levels, level, whole=True)
    width, height = found.size.width, found.size.height
    page_HWC = _blank_page(width, height)
    lines = max(1, _BAND_PX // width)
    for top in range(0, height, lines):
        region = Region(level, 0, top, width, min(lines, height - top))
        mixed_HWC = _mixed(read(region), region, found.downsample, attention, one, smooth_um)
        page_HWC[top : top + region.height, :width] = mixed_HWC
    said = f"{attention.slide_id}  ·  level {level}"
    page_HWC[height:] = _foot(page_HWC.shape[1], one, said, attention.grid.mpp_lv0_um * found.downsample)
    with written_whole(path) as partial:
        Image.fromarray(page_HWC).save(partial, "PNG", compress_level=2)


def _mixed(
    pixels_HWC: npt.NDArray[np.uint8],
    region: Region,
    downsample: float,
    attention: SlideAttention,
    one: TileMap,
    smooth_um: float,
) -> npt.NDArray[np.uint8]:
    """A region's pixels under the map, as they are where there is no tile."""
    x, y, width, height = (downsample * v for v in (region.x, region.y, region.width, region.height))
    window = Window(x, y, width, height, Size(region.width, region.height))
    values_HW = rasterize_window(attention.grid, one.values_N, window, smooth_um=smooth_um)
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
    grid = attention.grid
    side_px = max(CROP_PX, round(3 * grid.tile_lv0 / downsample))
    width, height = min(side_px, size.width), min(side_px, size.height)
    middles_N2 = (grid.origins_lv0 + grid.tile_lv0 / 2) / downsample
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
    *,
    smooth_um: float = 0.0,
) -> list[Path]:
    """Write `<slide_id>.level<L>.crop<K>.png` for the regions of `crop_regions`: as it is, and under the map.

    Both are the level's very pixels; the picture on the left begins at the file's left top corner. Below stand a scale
    bar, the scale of the colours, and which tile is in the middle.

    Returns:
        The files, from the highest tile on.

    Raises:
        SlideError: If the slide has no such level.
        PredictionError: If a tile starts outside the slide, or a weight is not finite.
        OutputError: If a file cannot be written.
    """
    from PIL import Image

    check_on_slide(attention)
    downsample = checked_level(attention.slide_id, levels, level, whole=False).downsample
    written: list[Path] = []
    rank_N = ranks(attention.weights_N)
    for number, (row, region) in enumerate(crop_regions(attention, levels, level, count), 1):
        pixels_HWC = read(region)
        mixed_HWC = _mixed(pixels_HWC, region, downsample, attention, one, smooth_um)
        x, y = round(region.x * downsample), round(region.y * downsample)
        said = f"{attention.slide_id}  ·  ({x}, {y})  ·  {ROLES[attention.role_N[row]]} #{rank_N[row]:,}  ·  " + (
            f"{one.name.lower()} {one.values_N[row]:.3g} in the middle"
        )
        page = _page(pixels_HWC, mixed_HWC, one, said, attention.grid.mpp_lv0_um * downsample)
        path = drawn_path(folder, attention.slide_id, f"level{level}.crop{number}.png")
        with written_whole(path) as partial:
            Image.fromarray(page).save(partial, "PNG", compress_level=4)
        written.append(path)
    return written


def _page(
    left_HWC: npt.NDArray[np.uint8], right_HWC: npt.NDArray[np.uint8], one: TileMap, said: str, mpp_um: float
) -> npt.NDArray[np.uint8]:
    """Two pictures side by side over a foot."""
    height, width = left_HWC.shape[:2]
    page_HWC = _blank_page(2 * width + _GAP_PX, height)
    page_HWC[:height, :width] = left_HWC
    page_HWC[:height, width + _GAP_PX : 2 * width + _GAP_PX] = right_HWC
    page_HWC[height:] = _foot(page_HWC.shape[1], one, said, mpp_um)
    return page_HWC


def _blank_page(width: int, height: int) -> npt.NDArray[np.uint8]:
    """White, with room for a picture of this size at the left top corner and for a foot below it."""
    return np.full((height + FOOT_PX, max(width, LEAST_WIDTH_PX), 3), 255, np.uint8)


def _foot(width: int, one: TileMap, said: str, mpp_um: float) -> npt.NDArray[np.uint8]:
    """(FOOT_PX, width, 3): a scale bar and a line of text; the scale of the colours; what the colours show."""
    from pathlib import Path

    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    foot = Image.new("RGB", (width, FOOT_PX), "white")
    draw = ImageDraw.Draw(foot)
    largest = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 20)

    def write(left: float, top: int, text: str, colour: str) -> float:
        """Write in letters small enough to fit; where the text ends."""
        font = largest
        while font.size > 8 and left + draw.textlength(text, font) > width:
            font = font.font_variant(size=font.size - 1)
        draw.text((left, top), text, colour, font)
        return left + float(draw.textlength(text, font))

    bar_um = round_length_um(min(width / 5, 400) * mpp_um)
    bar_px = round(bar_um / mpp_um)
    draw.rectangle((0, _ROW_PX // 2 - _BAR_PX // 2, bar_px - 1, _ROW_PX // 2 + _BAR_PX // 2 - 1), fill=INK)
    end = write(bar_px + 12, 5, length_text(bar_um), INK)
    write(end + 40, 5, said, GREY)
    lowest = -one.highest if one.signed else 0.0
    left = round(write(0, _ROW_PX + 5, f"{lowest:.3g}", INK)) + 12
    ramp_HW = np.linspace(lowest, one.highest, _RAMP_PX, dtype=np.float32)[None].repeat(24, 0)
    white_HWC = np.full((*ramp_HW.shape, 3), 255, np.uint8)
    colours_HWC = blend(white_HWC, ramp_HW, one.highest, signed=one.signed, strength=_STRENGTH)
    foot.paste(Image.fromarray(colours_HWC), (left, _ROW_PX + 5))
    write(left + _RAMP_PX + 12, _ROW_PX + 5, f"{one.highest:.3g}", INK)
    write(0, 2 * _ROW_PX + 5, f"{one.name}: {scale_text(one)}", INK)
    return np.asarray(foot)
