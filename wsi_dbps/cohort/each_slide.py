"""The same work with every slide of a cohort."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dbps.core.errors import CheckpointError, OutputError, WsiDbpsError, one_line
from wsi_dbps.core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wsi_dbps.cohort.cohort import SlideRecord


def each_slide(what: str, records: Sequence[SlideRecord], do: Callable[[SlideRecord], object]) -> tuple[str, ...]:
    """Do it with every slide; one with which it cannot be done is named, and the rest go on.

    Returns:
        A line for each slide that failed, beginning with its id.

    Raises:
        OutputError: If a file cannot be written, which would befall the other slides too.
        CheckpointError: If the model cannot be used, likewise.
    """
    failed: list[str] = []
    with Progress(what, len(records), "slides") as progress:
        for record in records:
            try:
                do(record)
            except (OutputError, CheckpointError):
                raise
            except WsiDbpsError as error:
                failed.append(f"{record.slide_id}: {str(error).removeprefix(f'{record.slide_id}: ')}")
                progress.say(failed[-1])
            except (MemoryError, RuntimeError) as error:
                if not _wants_memory(error):
                    raise
                said = one_line(error)
                failed.append(f"{record.slide_id}: takes more memory than there is: {said}")
                progress.say(failed[-1])
            progress.advance()
    return tuple(failed)


def _wants_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out, which torch raises as a RuntimeError."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said
