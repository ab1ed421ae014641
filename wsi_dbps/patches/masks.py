"""Tissue masks that somebody else made: an image over the whole slide, or polygons in level-0 pixels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from wsi_dbps.errors import SlideError
from wsi_dbps.tiling.tissue import TissueMask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wsi_dbps.geometry import Size


def read_mask(path: Path, slide_lv0: Size, grid: Size) -> TissueMask:
    """A mask from an image (tissue is what is not 0; stretched over the slide) or from GeoJSON (drawn on `grid`).

    Raises:
        SlideError: If the file is neither, has other proportions than the slide, or holds no polygon.
    """
    if path.suffix.lower() in (".geojson", ".json"):
        return TissueMask(_drawn(path, slide_lv0, grid), slide_lv0)
    try:
        with Image.open(path) as image:
            mask_HW = np.asarray(image.convert("L")) > 0
    except (UnidentifiedImageError, OSError) as error:
        raise SlideError(f"mask {path}: neither an image nor GeoJSON: {error}") from None
    height, width = mask_HW.shape
    if abs(width * slide_lv0.height / (height * slide_lv0.width) - 1) > 0.02 + 1 / min(width, height):
        raise SlideError(f"mask {path}: {width} x {height} px, which is not the shape of the slide ({slide_lv0})")
    return TissueMask(mask_HW, slide_lv0)


def _drawn(path: Path, slide_lv0: Size, grid: Size) -> np.ndarray[Any, np.dtype[np.bool_]]:
    try:
        rings = list(_rings(json.loads(path.read_text(encoding="utf-8"))))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise SlideError(f"mask {path}: not GeoJSON: {error!r}") from None
    if not rings:
        raise SlideError(f"mask {path}: holds no polygon")
    picture = Image.new("1", (grid.width, grid.height))
    draw = ImageDraw.Draw(picture)
    scale = np.array([grid.width / slide_lv0.width, grid.height / slide_lv0.height])
    for ring, tissue in rings:
        draw.polygon([tuple(point) for point in (np.asarray(ring, float)[:, :2] * scale - 0.5).tolist()], fill=tissue)
    return np.asarray(picture)


def _rings(node: dict[str, Any]) -> Iterator[tuple[Any, int]]:
    """Every ring with 1 for an outline and 0 for a hole."""
    kind = node["type"]
    if kind == "FeatureCollection":
        for feature in node["features"]:
            yield from _rings(feature["geometry"])
    elif kind == "Feature":
        yield from _rings(node["geometry"])
    elif kind in ("Polygon", "MultiPolygon"):
        for polygon in [node["coordinates"]] if kind == "Polygon" else node["coordinates"]:
            yield from ((ring, int(i == 0)) for i, ring in enumerate(polygon))
