"""Requests to stop: SIGTERM, with which the scheduler of a cluster ends a job, or Ctrl-C at the keyboard."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Stopping:
    """Whether this process was told to stop."""

    def __init__(self) -> None:
        self.by_sigterm = False
        self._by_keyboard = False

    def __call__(self) -> bool:
        """Whether this process was told to stop."""
        return self.by_sigterm or self._by_keyboard

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Remember a signal. A second Ctrl-C ends the process at once, by `KeyboardInterrupt`.

        With several processes a second one does nothing: the terminal sends Ctrl-C to all of them, and torchrun then
        sends it to its processes again.
        """
        if number == signal.SIGTERM:
            self.by_sigterm = True
        elif not self._by_keyboard:
            self._by_keyboard = True
            if "RANK" not in os.environ:
                # os.write, as a signal may come in the middle of a print
                os.write(2, b"\nwsi-dbps: the running step is finished and saved; Ctrl-C again ends at once\n")
        elif "RANK" not in os.environ:
            raise KeyboardInterrupt


@contextmanager
def told_to_stop() -> Iterator[Stopping]:
    """Within this block, SIGTERM and the first Ctrl-C are only noted. It has no effect outside the main thread.

    A block inside another one shares its `Stopping`, so that the outer block sees a signal that arrives at the end of
    the inner one.
    """
    outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(outer, Stopping):
        yield outer
        return
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, stopping.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
