"""How a command ends when it is told to: at once, with its worker processes, saying so in one line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDINGS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """While it lasts, Ctrl-C, SIGTERM and SIGHUP end the command and its worker processes, in one line, at once."""
    from multiprocessing import active_children

    def end(number: int, _frame: FrameType | None) -> None:
        said = f"wsi-dbps: ended by {signal.Signals(number).name}; finished slides are kept; "
        os.write(2, f"{said}the same command goes on\n".encode())
        workers = active_children()
        for worker in workers:
            worker.kill()
        if not workers:  # the slide is tiled by a thread of this process, for which an exit would wait
            os._exit(128 + number)
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in _ENDINGS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # `nohup` and shells have some signals ignored
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
