"""Worker processes that import this package, and not the program that uses it.

Python's own worker processes import the main module of the program that started them. A script that calls `tile`
without `if __name__ == "__main__":` would begin again in each worker, and fail.
"""

from __future__ import annotations

import multiprocessing
import sys
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import BaseContext


def new_interpreters() -> BaseContext:
    """Workers that are new interpreters, for `ProcessPoolExecutor(mp_context=...)`."""
    return _Spawning()


def copies_with(*preload: str) -> BaseContext:
    """Workers that are copies of a process that has imported some modules; without a fork server, new interpreters.

    Args:
        preload: Modules that every worker needs. A program has one fork server: the first call of it decides.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return new_interpreters()
    context = _ForkServer()
    context.set_forkserver_preload(list(preload))
    return context


@contextmanager
def _without_main() -> Iterator[None]:
    """While it lasts, an empty module stands for the program, so that a worker has nothing to import."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _Spawned(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - the name is multiprocessing's
        with _without_main():
            return SpawnProcess._Popen(process_obj)


class _Spawning(SpawnContext):
    Process = _Spawned


if sys.platform != "win32":
    from multiprocessing.context import ForkServerContext, ForkServerProcess

    class _Forked(ForkServerProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> Any:  # noqa: N802
            with _without_main():
                return ForkServerProcess._Popen(process_obj)

    class _ForkServer(ForkServerContext):
        Process = _Forked
