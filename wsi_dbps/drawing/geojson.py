"""Tiles with their attention as GeoJSON that QuPath 0.4 and later opens.

In QuPath: drop the file on the slide, then Measure > Show measurement maps colours the tiles by attention. QuPath reads
`properties.objectType` "tile", the UUID in `id`, `classification` as name and RGB colour, and `measurements` as names
and numbers (qupath.lib.io.QuPathTypeAdapters and GsonTools); it ignores the member `wsi_dbps` of the collection.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.core.files import written_whole
from wsi_dbps.drawing.placement import check_on_slide
from wsi_dbps.drawing.raster import percentile_ranks
from wsi_dbps.drawing.tile_maps import checked_evidence
from wsi_dbps.formats.attention import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.formats.attention import SlideAttention

ROLE_COLOURS: Final = {"other": (150, 150, 150), "salient": (213, 94, 0), "recycled": (0, 114, 178)}
"""RGB per role; told apart under every common colour blindness (Okabe and Ito)."""

_IDS: Final = uuid.UUID("6ad3c1d6-6f5b-5a53-9a0b-2f0c7b1d9e55")


def write_geojson(path: Path, attention: SlideAttention) -> None:
    """Write a FeatureCollection of one tile object per row, in row order, in level-0 pixels.

    Each tile measures `attention` (its weight), `attention percentile` (0 to 100), `evidence <class>` where the
    attention file holds it, and, the same for all tiles, the slide's `probability <class>`. It is classified by its
    role. A tile's id depends only on the slide id and the row, so that a second import of the same tiles is noticed.

    Raises:
        PredictionError: If a tile starts outside the slide, or a value is not finite.
        OutputError: If the file cannot be written.
    """
    check_on_slide(attention)
    head = json.dumps({"type": "FeatureCollection", "wsi_dbps": _origin(attention)}, ensure_ascii=False)
    features = _features(attention)
    with written_whole(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        file.write(head[:-1] + ', "features": [')
        file.writelines((",\n" if row else "\n") + feature for row, feature in enumerate(features))
        file.write("\n]}\n")


def _origin(attention: SlideAttention) -> dict[str, Any]:
    return {
        "slide_id": attention.slide_id,
        "probabilities": dict(zip(attention.classes, attention.prediction.probabilities, strict=True)),
        "checkpoint_fingerprint": attention.checkpoint_fingerprint,
        "cache_fingerprint": attention.cache_fingerprint,
    }


def _features(attention: SlideAttention) -> Iterator[str]:
    """Each feature as JSON: put together from parts, which for a slide of 64,000 tiles takes a quarter of the time."""
    kinds = [json.dumps({"name": name, "color": ROLE_COLOURS[name]}, separators=(",", ":")) for name in ROLES]
    measured = {
        "attention": shortest(attention.weights_N),
        "attention percentile": [repr(round(p, 4)) for p in (100 * percentile_ranks(attention.weights_N)).tolist()],
    }
    evidence_NC = checked_evidence(attention)
    if evidence_NC is not None:
        columns = evidence_NC.astype(np.float32).T
        measured |= {f"evidence {name}": shortest(e) for name, e in zip(attention.classes, columns, strict=True)}
    names = [json.dumps(name, ensure_ascii=False) for name in measured]
    known = "".join(
        f",{json.dumps(f'probability {name}', ensure_ascii=False)}:{p!r}"
        for name, p in zip(attention.classes, attention.prediction.probabilities, strict=True)
    )
    rows = zip(
        attention.grid.origins_lv0.tolist(),
        attention.role_N.tolist(),
        zip(*measured.values(), strict=True),
        strict=True,
    )
    for row, ((x, y), role, numbers) in enumerate(rows):
        values = ",".join(f"{name}:{number}" for name, number in zip(names, numbers, strict=True))
        yield (
            f'{{"type":"Feature","id":"{uuid.uuid5(_IDS, f"{attention.slide_id}/{row}")}",'
            f'"geometry":{{"type":"Polygon","coordinates":[{_ring(x, y, attention.grid.tile_lv0)}]}},'
            f'"properties":{{"objectType":"tile","classification":{kinds[role]},'
            f'"measurements":{{{values}{known}}}}}}}'
        )


def shortest(values_N: npt.NDArray[np.float32]) -> list[str]:
    """The shortest text of each finite number that reads back as the same float32; a number in JSON too."""
    texts: list[str] = values_N.astype(str).tolist()
    return texts


def _ring(x: int, y: int, side: float) -> str:
    """A closed square, wound as RFC 7946 asks."""
    right, bottom = x + side, y + side
    return f"[[{x},{y}],[{right!r},{y}],[{right!r},{bottom!r}],[{x},{bottom!r}],[{x},{y}]]"
