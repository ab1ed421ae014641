"""`tiling.csv`: what became of each slide, a row each, over all runs that wrote to a folder of caches."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wsi_dbps.core.errors import CacheError
from wsi_dbps.core.files import claimed, put_in_place
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.tiling.outcomes import Kept, Tiled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsi_dbps.core.files import PathLike
    from wsi_dbps.tiling.outcomes import Failed

NAME: Final = "tiling.csv"
FAILED: Final = "failed"
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


def read_table(caches: Path) -> dict[str, dict[str, str]]:
    """The rows of a folder's table by slide id; none where there is no table."""
    if not (caches / NAME).exists():
        return {}
    with open(caches / NAME, newline="", encoding="utf-8") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file) if set(COLUMNS) <= set(row)}


def add_to_table(caches: PathLike, outcomes: Iterable[Tiled | Kept | Failed]) -> None:
    """Put slides into a folder's table, which says what is true of the caches that are in the folder.

    A slide whose cache is there and sound keeps its row also if this run left the cache as it was, or failed to make
    it anew. Rows of caches that are no longer there are left out. Runs on several machines may do so at once: each
    holds the table while it reads and replaces it.

    Raises:
        OutputError: If the table cannot be written.
    """
    caches = Path(caches)
    path = caches / NAME
    with claimed(path, wait=True) as partial:
        rows = {
            slide_id: row
            for slide_id, row in read_table(caches).items()
            if row["status"] == FAILED or (caches / f"{slide_id}.h5").exists()
        }
        for outcome in outcomes:
            rows[outcome.slide_id] = _row_now(outcome, rows.get(outcome.slide_id), caches)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[slide_id] for slide_id in sorted(rows))
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")
        put_in_place(partial, path)


def _row_now(outcome: Tiled | Kept | Failed, known: dict[str, str] | None, caches: Path) -> dict[str, str]:
    """What is true of a slide after this outcome, of which `known` was true before."""
    if known is not None and known["status"] == FAILED:
        known = None  # either it failed again, or there is a cache by now
    if isinstance(outcome, Tiled):
        return _row(outcome)
    if isinstance(outcome, Kept) and known is not None:
        return known
    try:
        cache = PatchCache(caches / f"{outcome.slide_id}.h5")
        dropped = len(cache.dropped())
    except CacheError:
        return _row(outcome)
    if known is not None:
        return known
    facts = cache.facts
    return {
        "slide_id": outcome.slide_id,
        "status": "kept" if len(cache) else "empty",
        "reason": "",
        "reader": facts.reader,
        "pixels": facts.pixel_path,
        "level": "" if facts.read_level is None else str(facts.read_level),
        "mpp": f"{cache.grid.mpp_um:.6g}",
        "patches": str(len(cache)),
        "dropped": str(dropped),
        "bytes": str(cache.num_bytes),
        "seconds": "",
    }


def _row(outcome: Tiled | Kept | Failed) -> dict[str, str]:
    """What is true of a slide by the outcome alone."""
    row = dict.fromkeys(COLUMNS, "") | {"slide_id": outcome.slide_id, "patches": "0", "dropped": "0", "bytes": "0"}
    row["seconds"] = "0.00"
    if isinstance(outcome, Kept):
        return row | {"status": "kept", "patches": str(outcome.num_patches)}
    if not isinstance(outcome, Tiled):
        return row | {"status": FAILED, "reason": outcome.error}
    return row | {
        "status": "tiled" if outcome.num_patches else "empty",
        "reason": "; ".join(outcome.notes),
        "reader": outcome.reader,
        "pixels": outcome.pixel_path,
        "level": str(outcome.level),
        "mpp": f"{outcome.mpp_um:.6g}",
        "patches": str(outcome.num_patches),
        "dropped": str(outcome.num_dropped),
        "bytes": str(outcome.num_bytes),
        "seconds": f"{outcome.seconds:.2f}",
    }
