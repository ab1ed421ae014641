"""Tissue masks that somebody else made: an image over the whole slide, or polygons in level-0 pixels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageDraw

from wsi_dbps.core.errors import SlideError
from wsi_dbps.tiling.tissue import TissueMask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.core.geometry import Size

    Rings = list[npt.NDArray[np.float64]]
    """(P, 2) points of each."""


MAX_POINTS: Final = 200_000
"""Most points of a GeoJSON mask: if all their edges cross, drawing takes some 20 s. Tissue outlined pixel by pixel on
a thumbnail has some 10,000."""
FARTHEST: Final = 1e8
"""Beyond any slide, in level-0 pixels; also false of what is no number."""
CHROMA: Final = 24
"""Difference between a pixel's largest and smallest channel above which it is coloured, JPEG's noise left aside."""
COLOURED: Final = 0.01
"""Share of coloured pixels above which an image may be a picture."""
MAX_COLOURS: Final = 64
"""Most colours that a mask in colour is painted with."""
_NO_GEOJSON: Final = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)
"""What json and shapely raise on text that is no GeoJSON, besides `ShapelyError`."""


def read_mask(path: Path, slide_lv0: Size, grid: Size) -> TissueMask:
    """A mask from an image (tissue is what is not 0; stretched over the slide) or from GeoJSON (drawn on `grid`).

    A picture of the slide is no mask: it has many colours, and none of them is 0. Two colours, such as black and red,
    or the few of a palette are taken.

    Raises:
        SlideError: If the file is neither, is a colour picture, has other proportions than the slide, or holds no
            polygon or more points than `MAX_POINTS`.
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
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise SlideError(
            f"mask {path}: too large to hold in memory (above {most} px, twice Pillow's MAX_IMAGE_PIXELS); shrink it, "
            "a few µm per pixel will do"
        ) from None
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others on damaged files
        raise SlideError(f"mask {path}: neither an image nor GeoJSON: {error}") from None
    if has_colour and _is_picture(pixels):
        raise SlideError(
            f"mask {path}: a colour picture, not a mask: every pixel but pure black would be tissue; give an image "
            "that is 0 outside the tissue (of CLAM's output a mask of its own, not the JPEG with drawn outlines)"
        )
    return np.any(pixels.reshape(*pixels.shape[:2], -1) != 0, axis=2)


def _is_picture(pixels_HWC: npt.NDArray[np.uint8]) -> bool:
    """Whether an RGB image is a photograph: coloured, and in more colours than masks are painted with."""
    coloured = np.ptp(pixels_HWC, axis=2) > CHROMA
    if coloured.mean() < COLOURED:
        return False
    packed = pixels_HWC.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    return len(np.unique(packed)) > MAX_COLOURS


def _drawn(path: Path, slide_lv0: Size, grid: Size) -> npt.NDArray[np.bool_]:
    from shapely.errors import ShapelyError

    try:
        with np.errstate(invalid="ignore", over="ignore"):  # of coordinates that are then refused
            polygons = list(_polygons(json.loads(path.read_text(encoding="utf-8-sig"))))
    except OSError as error:
        raise SlideError(f"mask {path}: cannot be read: {error.strerror}") from None
    except (ShapelyError, *_NO_GEOJSON) as error:
        raise SlideError(f"mask {path}: not GeoJSON: {error!r}") from None
    if not polygons:
        raise SlideError(f"mask {path}: holds no polygon")
    num_points = sum(len(ring) for rings in polygons for ring in rings)
    if num_points > MAX_POINTS:
        raise SlideError(
            f"mask {path}: {num_points} points, more than are drawn (MAX_POINTS is {MAX_POINTS}); simplify its outlines"
        )
    scale_x, scale_y = grid.width / slide_lv0.width, grid.height / slide_lv0.height
    picture = Image.new("1", (grid.width, grid.height))
    for rings in polygons:
        drawn = [ring * [scale_x, scale_y] - 0.5 for ring in rings]
        left, top = np.clip(np.floor(drawn[0].min(0)), 0, picture.size).astype(int).tolist()
        right, bottom = np.clip(np.ceil(drawn[0].max(0)) + 1, 0, picture.size).astype(int).tolist()
        if right <= left or bottom <= top:
            continue
        # a polygon's holes are its own: what another polygon covers there stays
        part = Image.new("1", (right - left, bottom - top))
        for i, ring in enumerate(drawn):
            ImageDraw.Draw(part).polygon((ring - [left, top]).ravel().tolist(), fill=int(i == 0))
        picture.paste(1, (left, top), part)
    return np.asarray(picture)


def _polygons(node: Any) -> Iterator[Rings]:
    """The rings of every polygon, its outline first; lists of features, as QuPath once wrote them, are taken too."""
    import shapely
    from shapely.geometry import shape

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
        geometry = shape(node)
        if not (np.abs(shapely.get_coordinates(geometry)) < FARTHEST).all():
            raise ValueError("a coordinate that is no place on a slide")
        for polygon in shapely.get_parts(geometry):
            if not polygon.is_empty:
                yield [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
