"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_LINE_SECONDS = 15.0


class Progress:
    """Counts done pieces of work. Use as a context manager.

    What is printed meanwhile goes through `say`, so that it does not tear the bar. With `silent`, nothing is printed.
    """

    def __init__(self, what: str, total: int, unit: str, *, silent: bool = False) -> None:
        self._silent = silent
        self._what, self._total, self._unit = what, total, unit
        self._done, self._extra = 0, ""
        self._start = self._last_line = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self._silent:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[extra]}"), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=self._total, extra="")
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1, extra: str = "") -> None:
        """Count `count` more as done; `extra` is shown behind, for instance a loss."""
        self._done, self._extra = self._done + count, extra
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, extra=extra)
        elif time.monotonic() - self._last_line >= _LINE_SECONDS and self._done < self._total:
            self._last_line = time.monotonic()
            self.say(self._line())

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        elif not self._silent:
            print(line, file=sys.stderr, flush=True)

    def _line(self) -> str:
        rate = self._done / (time.monotonic() - self._start)
        left = (self._total - self._done) / rate if rate else 0
        parts = [f"{self._what}: {self._done} of {self._total} {self._unit}", f"{rate:.3g}/s", f"{left:.0f} s left"]
        return ", ".join([*parts, *([self._extra] if self._extra else [])])
