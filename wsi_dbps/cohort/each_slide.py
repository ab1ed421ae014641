"""Do the same work for every slide of a cohort, and go on where one fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dbps.core.errors import CheckpointError, OutputError, WsiDbpsError, one_line
from wsi_dbps.core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wsi_dbps.cohort.cohort import SlideRecord


def each_slide(what: str, records: Sequence[SlideRecord], do: Callable[[SlideRecord], object]) -> tuple[str, ...]:
    """Call a function for every slide. A slide that fails is reported, and the rest continue.

    Args:
        what: What is done, for the progress bar.
        records: The slides.
        do: The function.

    Returns:
        A line for each slide that failed, beginning with its id.

    Raises:
        OutputError: If a file cannot be written, as the other slides would fail too.
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
                if not _out_of_memory(error):
                    raise
                said = one_line(error)
                failed.append(f"{record.slide_id}: takes more memory than there is: {said}")
                progress.say(failed[-1])
            progress.advance()
    return tuple(failed)


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out, which torch raises as a RuntimeError."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said
