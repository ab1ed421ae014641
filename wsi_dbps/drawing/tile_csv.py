"""The scores of every patch as a table."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING

import numpy as np

from wsi_dbps.core.files import written_whole
from wsi_dbps.drawing.geojson import shortest
from wsi_dbps.drawing.raster import percentile_ranks
from wsi_dbps.drawing.tile_maps import checked_evidence
from wsi_dbps.formats.attention import ROLES

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_dbps.formats.attention import SlideAttention


def write_scores(path: Path, attention: SlideAttention) -> None:
    """Write a CSV of a row per patch, in row order: place, attention, percentile, role, and evidence by class.

    It needs no slide size; `tile_lv0` is empty where it is not known.

    Raises:
        PredictionError: If evidence does not fit, or is not finite.
        OutputError: If the file cannot be written.
    """
    evidence_NC = checked_evidence(attention)
    grid = attention.grid
    side = "" if math.isnan(grid.tile_lv0) else repr(grid.tile_lv0)
    columns = {
        "x": grid.origins_lv0[:, 0].tolist(),
        "y": grid.origins_lv0[:, 1].tolist(),
        "tile_lv0": [side] * len(grid),
        "attention": shortest(attention.weights_N),
        "percentile": [repr(round(p, 4)) for p in (100 * percentile_ranks(attention.weights_N)).tolist()],
        "role": [ROLES[role] for role in attention.role_N],
    }
    if evidence_NC is not None:
        for name, values_N in zip(attention.classes, evidence_NC.astype(np.float32).T, strict=True):
            columns[f"evidence_{name}"] = shortest(values_N)
    with written_whole(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", *columns])
        writer.writerows(zip(range(len(grid)), *columns.values(), strict=True))
