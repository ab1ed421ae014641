"""Every picture and file of one slide that was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wsi_dbps.core.errors import SpecMismatchError
from wsi_dbps.drawing.closeup import draw_crops, draw_level
from wsi_dbps.drawing.geojson import write_geojson
from wsi_dbps.drawing.ome_tiff import write_coloured_map, write_value_map
from wsi_dbps.drawing.overlay import draw_overlay
from wsi_dbps.drawing.placement import drawn_path
from wsi_dbps.drawing.sheet import draw_sheet
from wsi_dbps.drawing.tile_csv import write_scores
from wsi_dbps.drawing.tile_maps import chosen_map
from wsi_dbps.formats.features import FeatureFile
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.slides.open import open_slide

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from wsi_dbps.drawing.tile_maps import Values
    from wsi_dbps.formats.attention import SlideAttention
    from wsi_dbps.slides.source import SlideFile


@dataclass(frozen=True)
class Shown:
    """What a map shows."""

    values: Values
    """`evidence` (attribution), `raw` or `percentile`, where a file shows one map only."""
    scale: float
    """Attribution of full colour, in log-odds."""
    smooth_um: float
    """Standard deviation of the Gaussian that smooths the map, in µm; 0 for none."""


def with_tile_side(attention: SlideAttention, cache: PatchCache | FeatureFile) -> tuple[SlideAttention, str]:
    """The attention, with what it does not say of the slide and of the tiles; and a notice of what was taken for it.

    Where features do not say how large tiles are, the smallest distance between two is taken.
    """

    attention = attention.with_slide(cache.grid)
    if math.isfinite(attention.grid.tile_lv0) or not isinstance(cache, FeatureFile):
        return attention, ""
    step_lv0 = cache.step_lv0()
    notice = (
        f"{attention.slide_id}: the features do not say how large tiles are; each is drawn {step_lv0:g} px of level 0 "
        "wide, the smallest distance between two"
    )
    return replace(attention, grid=attention.grid.with_tile(step_lv0)), notice


def draw_formats(
    out: Path, attention: SlideAttention, cache: PatchCache | FeatureFile, formats: Collection[str], shown: Shown
) -> list[Path]:
    """Write all formats that need no slide, and return the files."""
    written: list[Path] = []

    def named(ending: str) -> Path:
        written.append(drawn_path(out, attention.slide_id, ending))
        return written[-1]

    smooth_um = shown.smooth_um
    if "csv" in formats:
        write_scores(named("csv"), attention)
    if not set(formats) - {"csv"}:
        return written
    if "geojson" in formats:
        write_geojson(named("geojson"), attention)
    if "ome-tiff" in formats:
        write_value_map(named("ome.tiff"), attention, smooth_um=smooth_um)
        one = chosen_map(attention, shown.values, shown.scale)
        write_coloured_map(named("rgb.ome.tiff"), attention, one, smooth_um=smooth_um)
    if "sheet" in formats:
        assert isinstance(cache, PatchCache)  # `heatmap` has refused runs on features
        draw_sheet(named("sheet.png"), attention, cache.patches)
    if "png" in formats:
        draw_overlay(named("png"), attention, cache.thumbnail(), smooth_um=smooth_um, scale=shown.scale)
    return written


def draw_close(
    out: Path,
    attention: SlideAttention,
    cache: PatchCache | FeatureFile,
    file: SlideFile,
    level: int,
    crops: int,
    shown: Shown,
) -> list[Path]:
    """Write the map over the slide's own pixels, and return the files.

    Args:
        out: Folder to write to.
        attention: How the slide was looked at.
        cache: What it was predicted from.
        file: The slide file.
        level: Pyramid level to draw over, 0 the finest.
        crops: Draw only this many regions, around the most salient tiles; 0: the whole level.
        shown: What the map shows.

    Raises:
        SpecMismatchError: If the file is not the one that the cache was made from.
        UnreadableSlideError: If its pixels cannot be read.
    """

    one = chosen_map(attention, shown.values, shown.scale)
    facts = cache.facts if isinstance(cache, PatchCache) else None  # features do not name the reader of the slide
    with open_slide(file, facts.reader if facts else "auto") as slide:
        info, expected = slide.info, facts and facts.slide_fingerprint
        if info.size_lv0 != attention.grid.slide_lv0 or (expected is not None and expected != info.fingerprint):
            raise SpecMismatchError(f"{file}: is not the file that {cache.path} was made from; mend the path")
        what = (slide.read, info.levels, level)
        if crops:
            return draw_crops(out, *what, crops, attention, one, smooth_um=shown.smooth_um)
        path = drawn_path(out, attention.slide_id, f"level{level}.png")
        draw_level(path, *what, attention, one, smooth_um=shown.smooth_um)
        return [path]
