"""SIGTERM, by which a cluster's scheduler says that a run must end soon."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM has come; inside, it does nothing else. In the main thread only."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
