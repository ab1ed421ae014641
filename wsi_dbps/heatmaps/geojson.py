"""Tiles with their attention as GeoJSON that QuPath 0.4 and later opens.

In QuPath: drop the file on the slide, then Measure > Show measurement maps colours the tiles by attention. QuPath reads
`properties.objectType` "tile", the UUID in `id`, `classification` as name and RGB colour, and `measurements` as names
and numbers (qupath.lib.io.QuPathTypeAdapters and GsonTools); it ignores the member `wsi_dbps` of the collection.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Final

from wsi_dbps.files import written_whole
from wsi_dbps.heatmaps.placement import check_on_slide
from wsi_dbps.heatmaps.raster import percentile_ranks
from wsi_dbps.records import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wsi_dbps.geometry import Size
    from wsi_dbps.records import SlideAttention

ROLE_COLOURS: Final = {"other": (150, 150, 150), "salient": (213, 94, 0), "recycled": (0, 114, 178)}
"""RGB per role; told apart under every common colour blindness (Okabe and Ito)."""

_IDS: Final = uuid.UUID("6ad3c1d6-6f5b-5a53-9a0b-2f0c7b1d9e55")


def write_geojson(path: Path, attention: SlideAttention, slide_lv0: Size) -> None:
    """Write a FeatureCollection of one tile object per row, in row order, in level-0 pixels.

    Each tile measures `attention` (its weight) and `attention percentile` (0 to 100), and is classified by its role.
    A tile's id depends only on the slide id and the row, so that a second import of the same tiles is noticed.

    Raises:
        PredictionError: If a tile starts outside the slide, or a weight is not finite.
        OutputError: If the file cannot be written.
    """
    check_on_slide(attention, slide_lv0)
    head = json.dumps({"type": "FeatureCollection", "wsi_dbps": _origin(attention)}, ensure_ascii=False)
    with written_whole(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        file.write(head[:-1] + ', "features": [')
        for row, feature in enumerate(_features(attention)):
            file.write((",\n" if row else "\n") + json.dumps(feature, separators=(",", ":"), allow_nan=False))
        file.write("\n]}\n")


def _origin(attention: SlideAttention) -> dict[str, Any]:
    return {
        "slide_id": attention.slide_id,
        "probabilities": dict(zip(attention.classes, attention.prediction.probabilities, strict=True)),
        "checkpoint_fingerprint": attention.checkpoint_fingerprint,
        "cache_fingerprint": attention.cache_fingerprint,
    }


def _features(attention: SlideAttention) -> Iterator[dict[str, Any]]:
    percentile_N = 100 * percentile_ranks(attention.weights_N)
    rows = zip(attention.coords_N2.tolist(), attention.weights_N, percentile_N, attention.role_N, strict=True)
    for row, ((x, y), weight, percentile, role) in enumerate(rows):
        name = ROLES[role]
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(_IDS, f"{attention.slide_id}/{row}")),
            "geometry": {"type": "Polygon", "coordinates": [_ring(x, y, attention.tile_lv0)]},
            "properties": {
                "objectType": "tile",
                "classification": {"name": name, "color": ROLE_COLOURS[name]},
                "measurements": {
                    "attention": float(str(weight)),  # the shortest text that reads back as the same float32
                    "attention percentile": round(float(percentile), 4),
                },
            },
        }


def _ring(x: float, y: float, side: float) -> list[list[float]]:
    """A closed square, wound as RFC 7946 asks."""
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
