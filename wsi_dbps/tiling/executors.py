"""Where slides are tiled: in this process, in processes of this machine, or on a dask cluster.

Each is a function from a number of workers to an executor, as `tile_cohort` takes it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from wsi_dbps.core.errors import ConfigError, one_line
from wsi_dbps.core.processes import copies_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

_PRELOAD: Final = (
    *("wsi_dbps.tiling.tile_cohort", "wsi_dbps.slides.readers.openslide"),
    *("scipy.ndimage", "skimage.filters.rank", "skimage.morphology"),
)
"""What nearly every slide needs: imported once, and not again in each worker (0.4 s)."""


def in_this_process(workers: int) -> Executor:
    """Threads of this process: a lone slide has no others to protect, and need not wait for a second interpreter."""
    return ThreadPoolExecutor(workers)


def in_processes(workers: int) -> Executor:
    """Processes on this machine: a decoder that crashes takes one down, not the run."""
    context = copies_with(*_PRELOAD)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)


def end_with_parent() -> None:
    """Have this worker process end as soon as the process that started it is gone, whatever it is doing then.

    Ctrl-C, which a terminal sends to all processes of a command, is left to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def on_cluster(address: str, *, timeout_s: float = 10.0) -> Callable[[int], AbstractContextManager[Executor]]:
    """The workers of a dask cluster as an executor, however many there are, while it has a scheduler.

    Args:
        address: Of the scheduler.
        timeout_s: How long it may take to answer.

    Raises:
        ConfigError: If dask.distributed is not installed, or no scheduler answers; from the executor, if it no longer
            answers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("--dask needs dask.distributed: pip install 'wsi-dbps[dask]'") from None
    try:
        client = Client(address, timeout=timeout_s, set_as_default=False)
    except OSError as error:
        raise ConfigError(f"--dask {address}: no scheduler answers ({one_line(error)})") from None

    def check_scheduler() -> None:
        if client.status != "running":
            raise ConfigError(
                f"--dask {address}: the scheduler no longer answers; finished slides are kept; start it again, and the "
                "same command goes on"
            )

    @contextmanager
    def executor(_workers: int) -> Iterator[Executor]:
        check_scheduler()
        with client.get_executor(pure=False) as workers:
            yield workers
        check_scheduler()  # without it all that is under way is cancelled, as if each slide had killed its worker

    return executor
