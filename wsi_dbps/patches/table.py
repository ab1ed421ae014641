"""`tiling.csv`: what became of every slide, one row each, over all runs that wrote to a folder."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Final

from wsi_dbps.files import claimed, put_in_place

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from wsi_dbps.patches.tile import SlideOutcome

NAME: Final = "tiling.csv"
COLUMNS: Final = (
    "slide_id",
    "status",
    "reason",
    "reader",
    "pixels",
    "level",
    "mpp",
    "patches",
    "dropped",
    "bytes",
    "seconds",
)


def add_to_table(caches: Path, outcomes: Iterable[SlideOutcome]) -> None:
    """Put slides into a folder's table; a slide that was kept as it was keeps its row.

    Runs on several machines may do so at once: each holds the table while it reads and replaces it.

    Raises:
        OutputError: If the table cannot be written.
    """
    path = caches / NAME
    with claimed(path, wait=True) as partial:
        rows = {}
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows = {row["slide_id"]: row for row in csv.DictReader(file) if set(COLUMNS) <= set(row)}
        for outcome in outcomes:
            if not (outcome.skipped and outcome.slide_id in rows):
                rows[outcome.slide_id] = _row(outcome)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[slide_id] for slide_id in sorted(rows))
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")
        put_in_place(partial, path)


def _row(outcome: SlideOutcome) -> dict[str, str]:
    status = "failed" if outcome.error else "kept" if outcome.skipped else "tiled" if outcome.num_patches else "empty"
    return {
        "slide_id": outcome.slide_id,
        "status": status,
        "reason": outcome.error or "; ".join(outcome.notes),
        "reader": outcome.reader,
        "pixels": outcome.pixel_path,
        "level": "" if outcome.level is None else str(outcome.level),
        "mpp": "" if outcome.mpp_um is None else f"{outcome.mpp_um:.6g}",
        "patches": str(outcome.num_patches),
        "dropped": str(outcome.num_dropped),
        "bytes": str(outcome.num_bytes),
        "seconds": f"{outcome.seconds:.2f}",
    }
