"""Tissue masks that somebody else made: an image over the whole slide, or polygons in level-0 pixels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from wsi_dbps.errors import SlideError
from wsi_dbps.tiling.tissue import TissueMask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.geometry import Size

    Rings = list[list[tuple[float, float]]]


def read_mask(path: Path, slide_lv0: Size, grid: Size) -> TissueMask:
    """A mask from an image (tissue is what is not 0; stretched over the slide) or from GeoJSON (drawn on `grid`).

    Raises:
        SlideError: If the file is neither, has other proportions than the slide, or holds no polygon.
    """
    if path.suffix.lower() in (".geojson", ".json"):
        return TissueMask(_drawn(path, slide_lv0, grid), slide_lv0)
    mask_HW = _decoded(path)
    height, width = mask_HW.shape
    if abs(width * slide_lv0.height / (height * slide_lv0.width) - 1) > 0.02 + 1 / min(width, height):
        raise SlideError(f"mask {path}: {width} x {height} px, which is not the shape of the slide ({slide_lv0})")
    return TissueMask(mask_HW, slide_lv0)


def _decoded(path: Path) -> npt.NDArray[np.bool_]:
    try:
        with Image.open(path) as image:
            has_colour = image.mode not in ("1", "L", "I", "F") and not image.mode.startswith("I;")
            pixels = np.asarray(image.convert("RGB") if has_colour else image)
    except Image.DecompressionBombError:
        raise SlideError(f"mask {path}: too large to hold in memory; shrink it, a few µm per pixel will do") from None
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others on damaged files
        raise SlideError(f"mask {path}: neither an image nor GeoJSON: {error}") from None
    return np.any(pixels.reshape(*pixels.shape[:2], -1) != 0, axis=2)


def _drawn(path: Path, slide_lv0: Size, grid: Size) -> npt.NDArray[np.bool_]:
    try:
        polygons = list(_polygons(json.loads(path.read_text(encoding="utf-8-sig"))))
    except OSError as error:
        raise SlideError(f"mask {path}: cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SlideError(f"mask {path}: not GeoJSON: {error!r}") from None
    if not polygons:
        raise SlideError(f"mask {path}: holds no polygon")
    scale_x, scale_y = grid.width / slide_lv0.width, grid.height / slide_lv0.height
    picture = Image.new("1", (grid.width, grid.height))
    for rings in polygons:
        # a polygon's holes are its own: what another polygon covers there stays
        target = picture if len(rings) == 1 else Image.new("1", picture.size)
        for i, ring in enumerate(rings):
            points = [(x * scale_x - 0.5, y * scale_y - 0.5) for x, y in ring]
            ImageDraw.Draw(target).polygon(points, fill=int(i == 0))
        if target is not picture:
            picture = ImageChops.logical_or(picture, target)
    return np.asarray(picture)


def _polygons(node: Any) -> Iterator[Rings]:
    """The rings of every polygon, its outline first; lists of features, as QuPath once wrote them, are taken too."""
    if isinstance(node, list):
        for part in node:
            yield from _polygons(part)
    elif (kind := node["type"]) == "FeatureCollection":
        yield from _polygons(node["features"])
    elif kind == "Feature":
        if node["geometry"] is not None:
            yield from _polygons(node["geometry"])
    elif kind == "GeometryCollection":
        yield from _polygons(node["geometries"])
    elif kind in ("Polygon", "MultiPolygon"):
        for polygon in [node["coordinates"]] if kind == "Polygon" else node["coordinates"]:
            yield [_ring(ring) for ring in polygon]


def _ring(points: list[list[float]]) -> list[tuple[float, float]]:
    if len(points) < 3:
        raise ValueError(f"a ring of {len(points)} points")
    return [(float(x), float(y)) for x, y, *_ in points]
