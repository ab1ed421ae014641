"""Tile many slides in worker processes: what is done when a process dies, hangs, or another run has the slide."""

from __future__ import annotations

import faulthandler
import os
import time
from concurrent.futures import BrokenExecutor, as_completed
from functools import partial
from typing import TYPE_CHECKING, Any

from wsi_dbps.core.errors import WsiDbpsError
from wsi_dbps.tiling.outcomes import Busy, Failed, Kept, SlideOutcome, Tiled
from wsi_dbps.tiling.tile_slide import tile_slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.formats.spec import CacheSpec

    NewExecutor = Callable[[int], AbstractContextManager[Executor]]

_WORKER_DIED = ("KilledWorker", "CancelledError")
"""What dask's executor raises where `concurrent.futures` raises `BrokenExecutor`."""


def tile_cohort(
    records: Sequence[SlideRecord],
    spec: CacheSpec,
    caches: PathLike,
    *,
    new_executor: NewExecutor,
    workers: int,
    threads: int = 1,
    time_limit_s: float | None = None,
    overwrite: bool = False,
) -> Iterator[Tiled | Kept | Failed]:
    """Tile every slide of a cohort, and give each outcome as soon as it is there.

    A worker process that dies (killed for its memory, crashed in a decoder, over the time limit) takes its executor
    with it. The slides that may have been in work then get one executor each, which tells the one that kills it; the
    rest go on in a new one. Slides that another run is tiling are left for the end, and then waited for.

    Args:
        records: The slides.
        spec: What to make.
        caches: Folder to write to.
        new_executor: Makes an executor of as many workers as it is told, as a context manager. With a time limit the
            workers must be processes.
        workers: How many slides are tiled at a time.
        threads: How many decode and encode within each.
        time_limit_s: A slide that takes longer ends its process, and fails.
        overwrite: Tile again what is there already.

    Raises:
        OutputError: If a cache cannot be written; slides not yet begun are then left alone.
    """
    work = partial(_in_time, time_limit_s, spec=spec, caches=caches, overwrite=overwrite, threads=threads)
    waiting, busy = list(records), []
    while waiting:
        done = set()
        with new_executor(workers) as executor:
            for record, outcome in _mapped(executor, waiting, partial(work, wait=False)):
                if outcome is None:
                    continue
                done.add(record.slide_id)
                if isinstance(outcome, Busy):
                    busy.append(record)
                else:
                    yield outcome
        waiting = [record for record in waiting if record.slide_id not in done]
        suspects, waiting = waiting[:workers], waiting[workers:]  # work is begun in order
        yield from _one_by_one(suspects, new_executor, work, time_limit_s)
    work = partial(_in_time, None, spec=spec, caches=caches, threads=threads)
    yield from _one_by_one(busy, new_executor, work, None)


def _one_by_one(
    records: Sequence[SlideRecord],
    new_executor: NewExecutor,
    work: Callable[[SlideRecord], SlideOutcome],
    time_limit_s: float | None,
) -> Iterator[Tiled | Kept | Failed]:
    """Each slide in an executor of its own, which it alone can break; what another run is tiling is waited for."""
    for record in records:
        start = time.monotonic()
        with new_executor(1) as executor:
            outcomes = [outcome for _, outcome in _mapped(executor, [record], work)]
        for outcome in outcomes:  # only now: on leaving, a cluster that is gone says so, and no slide is blamed
            if outcome is None:
                late = time_limit_s is not None and time.monotonic() - start >= time_limit_s
                yield _ended(record, time_limit_s if late else None)
            else:
                assert not isinstance(outcome, Busy), "work that waits is never told that a slide is busy"
                yield outcome


def _ended(record: SlideRecord, exceeded_s: float | None) -> Failed:
    """The outcome of a slide whose process ended before there was one."""
    why = (
        "the process that tiled it was killed, perhaps for want of memory, or crashed in the slide's "
        "decoder; try it alone, or with another --reader"
    )
    if exceeded_s is not None:
        why = f"it took longer than {exceeded_s:g} s; raise --time-limit, or try another --reader"
    return Failed(record.slide_id, f"{record.slide_id}: {record.file}: {why}")


def _in_time(time_limit_s: float | None, record: SlideRecord, **settings: Any) -> SlideOutcome:
    """`tile_slide`, ended with its whole process after the time limit: a decoder that hangs heeds nothing less."""
    if time_limit_s is None:
        return tile_slide(record, **settings)
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(time_limit_s, exit=True, file=nowhere)
        try:
            return tile_slide(record, **settings)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _mapped(
    executor: Executor, records: Sequence[SlideRecord], work: Callable[[SlideRecord], SlideOutcome]
) -> Iterator[tuple[SlideRecord, SlideOutcome | None]]:
    """Each slide with its outcome, as they come; None where its worker died before there was one."""
    futures = {}
    try:
        for record in records:
            try:
                futures[executor.submit(work, record)] = record
            except BrokenExecutor:
                yield record, None
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except WsiDbpsError:
                raise
            except Exception as error:  # of the executor: what goes wrong with a slide is an outcome
                if not isinstance(error, BrokenExecutor) and type(error).__name__ not in _WORKER_DIED:
                    raise
                outcome = None
            yield futures[future], outcome
    finally:
        for future in futures:
            future.cancel()
