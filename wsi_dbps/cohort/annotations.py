"""Read areas that a person has drawn on a slide, in level-0 pixels, from GeoJSON (QuPath) or XML (ASAP, CAMELYON).

Documented in docs/formats/annotations.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

import numpy as np

from wsi_dbps.core.errors import SlideError, one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    import numpy.typing as npt
    from shapely.geometry.base import BaseGeometry

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.geometry import Size, TileGrid

EXCLUSIONS: Final = ("exclusion", "_2", "normal", "ignore*")
"""Classes, in any case of letters, whose areas are taken out of the lesion: of CAMELYON16 and 17, and of QuPath."""
OVERHANG: Final = 0.01
"""How far beyond the slide's edge a hand may have drawn, as a share of the slide's longer side."""
_ASAP_AREAS: Final = ("Polygon", "Spline", "Rectangle")
MAX_CROSSINGS: Final = 2_000
"""Most points at which the outline of one area may cross itself. To find what such an outline encloses takes time with
the square of their number: for 2,000 about two seconds, for 370,000 (1,500 lines drawn at random) hours."""
MAX_CROSSINGS_OF_AREAS: Final = 200_000
"""Most points at which the outlines of all areas of a file may cross each other."""
_FEW, _PARTS = 32, 16
"""`lesion_shares` divides tiles and lesion into `_PARTS` strips until at most `_FEW` tiles, or corners, are left."""
_BEFORE: Final = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"
"""Bytes that may stand before the first `<`: the marks of UTF-8 and UTF-16, and blanks."""
_NO_ANNOTATIONS: Final = (
    *(ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, LookupError, RecursionError),  # a number of 400 digits, an encoding nobody knows, 100,000 brackets
)


@dataclass(frozen=True)
class Area:
    """One area that was drawn."""

    name: str
    """Its class; empty where it has none."""
    shape: BaseGeometry
    """A valid polygon or several, in level-0 pixels."""


def read_annotations(path: PathLike) -> tuple[Area, ...]:
    """All areas of a file, in its order; points, lines and cells are left out. Which format it is its content says.

    A ring that crosses itself encloses what lies inside it an odd number of times.

    Raises:
        SlideError: If the file is missing, or is neither GeoJSON nor ASAP's XML, or a coordinate is no number, or
            outlines cross more often than `MAX_CROSSINGS` or `MAX_CROSSINGS_OF_AREAS`.
    """
    path = Path(path)
    from shapely.errors import ShapelyError

    try:
        content = path.read_bytes()
    except OSError as error:
        raise SlideError(f"{path}: annotations cannot be read: {error.strerror}") from None
    if not content.strip():
        raise SlideError(f"{path}: the file of annotations is empty; export it again, or empty its cell")
    if content.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        raise SlideError(
            f"{path}: a compressed file; QuPath's export as .zip holds the GeoJSON: unpack it and name the .geojson in "
            "the column annotations"
        )
    try:
        rings = _from_xml(content) if content.lstrip(_BEFORE).startswith(b"<") else _from_json(content)
        with np.errstate(invalid="ignore", over="ignore"):
            areas = tuple(Area(name, shape) for name, drawn in rings if not (shape := _areas_of(drawn)).is_empty)
        if len(areas) > 1:
            _check_crossings([area.shape for area in areas], MAX_CROSSINGS_OF_AREAS, "MAX_CROSSINGS_OF_AREAS")
        return areas
    except (ShapelyError, ElementTree.ParseError, *_NO_ANNOTATIONS) as error:
        raise SlideError(f"{path}: not annotations that can be used: {one_line(error)}") from None


def read_lesion(record: SlideRecord, slide_lv0: Size, names: Collection[str] = ()) -> BaseGeometry:
    """The lesion on a slide: what was drawn together, without what is excluded, cut at the slide's edge.

    Args:
        record: A slide with annotations.
        slide_lv0: The slide's size.
        names: The classes that are lesion; all but `EXCLUSIONS` if none are given.

    Returns:
        A geometry in level-0 pixels; empty if nothing of these classes was drawn.

    Raises:
        SlideError: If the file cannot be used, or what is drawn does not lie on the slide.
    """
    import shapely

    assert record.annotations is not None
    try:
        areas = read_annotations(record.annotations)
    except SlideError as error:
        raise SlideError(f"{record.slide_id}: {error}") from None
    where = f"{record.slide_id}: {record.annotations}"
    kept = [area for area in areas if (area.name in names if names else area.name.lower() not in EXCLUSIONS)]
    if names and areas and not kept:
        found = ", ".join(sorted({area.name or "no class" for area in areas}))
        raise SlideError(f"{where}: nothing is classified {' or '.join(names)}; found: {found}")
    lesion = shapely.union_all([area.shape for area in kept])
    if lesion.is_empty:
        return lesion
    low_x, low_y, high_x, high_y = lesion.bounds
    over = OVERHANG * max(slide_lv0.width, slide_lv0.height)
    if min(low_x, low_y) < -over or high_x > slide_lv0.width + over or high_y > slide_lv0.height + over:
        raise SlideError(
            f"{where}: annotations from ({low_x:.7g}, {low_y:.7g}) to ({high_x:.7g}, {high_y:.7g}) lie off the slide "
            f"of {slide_lv0} px; they must be of this slide, in its level-0 pixels"
        )
    if lesion.area < 1:
        raise SlideError(
            f"{where}: all areas together are {lesion.area:.2g} square pixels; coordinates must be level-0 pixels"
        )
    excluded = shapely.union_all([area.shape for area in areas if area.name.lower() in EXCLUSIONS and area not in kept])
    on_slide = shapely.box(0, 0, slide_lv0.width, slide_lv0.height)
    return _polygons(shapely.intersection(shapely.difference(lesion, excluded), on_slide))


def lesion_shares(lesion: BaseGeometry, grid: TileGrid) -> npt.NDArray[np.float64]:
    """(N,) the share of each tile's area that is lesion, 0 to 1, exact.

    The tiles are divided into strips and the lesion is clipped to each, repeatedly, until few tiles are left with only
    the edges near them. So the time grows with the sum of tiles and vertices, not with their product.

    Args:
        lesion: A geometry in level-0 pixels.
        grid: Where the tiles lie.

    Examples:
        >>> import shapely
        >>> from wsi_dbps.core.geometry import TileGrid
        >>> tiles = TileGrid(np.array([[0, 0], [5, 0], [20, 0]]), 10)
        >>> lesion_shares(shapely.box(0, 0, 10, 5), tiles).tolist()
        [0.5, 0.25, 0.0]
    """
    import shapely

    low_N2 = grid.origins_lv0.astype(np.float64)
    boxes_N4 = np.concatenate([low_N2, low_N2 + grid.tile_lv0], axis=1)
    area_N = np.zeros(len(boxes_N4))
    todo = [(lesion, np.arange(len(boxes_N4)))]
    while todo:
        part, rows = todo.pop()
        if part.is_empty or not len(rows):
            continue
        boxes = boxes_N4[rows]
        if len(rows) <= _FEW or shapely.get_num_coordinates(part) <= _FEW:
            area_N[rows] = shapely.area(shapely.intersection(part, shapely.box(*boxes.T)))
            continue
        order = np.argsort(boxes[:, np.ptp(boxes[:, :2], axis=0).argmax()], kind="stable")
        for some in np.array_split(order, _PARTS):
            frame = shapely.box(*boxes[some, :2].min(axis=0), *boxes[some, 2:].max(axis=0))
            todo.append((_polygons(shapely.intersection(part, frame)), rows[some]))
    shares_N: npt.NDArray[np.float64] = (area_N / grid.tile_lv0**2).clip(0, 1)
    return shares_N


def _from_json(content: bytes) -> Iterator[tuple[str, BaseGeometry]]:
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    found = json.loads(content)
    features = found if isinstance(found, list) else found.get("features", [found])
    for i, feature in enumerate(features):
        about = feature.get("properties") or {}
        if about.get("objectType", "annotation") != "annotation":
            continue
        try:
            yield _class_of(about), shape(feature.get("geometry", feature))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, ShapelyError) as error:
            raise ValueError(f"feature {i}: {type(error).__name__}: {error}") from None


def _class_of(about: dict[str, Any]) -> str:
    drawn = about.get("classification") or ""
    if isinstance(drawn, dict):
        drawn = drawn.get("name") or ": ".join(drawn.get("names") or [])
    return str(drawn)


def _from_xml(content: bytes) -> Iterator[tuple[str, BaseGeometry]]:
    from shapely import Polygon

    root = ElementTree.fromstring(content)
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"XML of <{root.tag}>, not of <ASAP_Annotations>")
    for drawn in root.iter("Annotation"):
        points: Sequence[ElementTree.Element] = sorted(drawn.iter("Coordinate"), key=lambda c: float(c.attrib["Order"]))
        if drawn.get("Type") in _ASAP_AREAS and len(points) > 2:
            group = drawn.get("PartOfGroup", "None")
            ring = [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points]
            yield "" if group == "None" else group, Polygon(ring)


def _areas_of(drawn: BaseGeometry) -> BaseGeometry:
    """The area that a geometry encloses, repaired where it is invalid."""
    import shapely

    if not np.isfinite(shapely.get_coordinates(drawn)).all():
        raise ValueError("a coordinate is not a finite number")
    if not shapely.is_valid(drawn):
        _check_crossings(shapely.get_parts(drawn), MAX_CROSSINGS, "MAX_CROSSINGS")
    return shapely.union_all(shapely.get_parts(_polygons(shapely.make_valid(shapely.force_2d(drawn)))))


def _check_crossings(shapes: Iterable[BaseGeometry], limit: int, name: str) -> None:
    """Refuse outlines that cross too often, before time and memory are spent on them.

    Raises:
        ValueError: If there are more than `limit` crossings; their counting stops soon after that.
    """
    import shapely

    parts = np.array(list(shapes), dtype=object)
    while (shapely.get_type_id(parts) > shapely.GeometryType.POLYGON).any():  # collections, also within collections
        parts = shapely.get_parts(parts)
    corners_N2, ring_N = shapely.get_coordinates(shapely.get_rings(parts), return_index=True)
    edges = shapely.linestrings(np.stack([corners_N2[:-1], corners_N2[1:]], axis=1)[ring_N[:-1] == ring_N[1:]])
    tree = shapely.STRtree(edges)
    # Every crossing is found from both of its edges. Few edges are asked at a time, as each may cross all others.
    at_once, found = max(1, _MOST_PAIRS // max(len(edges), 1)), 0
    for start in range(0, len(edges), at_once):
        found += tree.query(edges[start : start + at_once], predicate="crosses").shape[1]
        if found > 2 * limit:
            raise ValueError(
                f"outlines of {len(edges):,} edges cross more than {limit:,} times, the limit ({name} in "
                "wsi_dbps/cohort/annotations.py); draw the area again, or simplify it in the tool it was drawn with"
            )


_MOST_PAIRS: Final = 1_000_000
"""Pairs of edges looked at in one step of counting."""


def _polygons(valid: BaseGeometry) -> BaseGeometry:
    """A valid geometry without its points and lines."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts(valid))
    return shapely.multipolygons(parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON])
