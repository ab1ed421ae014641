"""Where a slide's bytes come from: a local file, or a URL (`https://`, `s3://`, `gs://` ...) that fsspec opens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, cast

from wsi_dbps.errors import SlideError, UnreadableSlideError

_BLOCK: Final = 1 << 18
"""Bytes fetched at a time for tables, which are small and lie far apart; fsspec's own 5 MiB is for whole files."""
SlideFile = Path | str
"""A local file as a path, any other as the text of its URL."""


def opened(source: SlideFile) -> BinaryIO:
    """The file, open for reading.

    Raises:
        OSError: If a local file cannot be opened.
        UnreadableSlideError: If the URL cannot.
    """
    if isinstance(source, Path):
        return open(source, "rb")
    system, path = _remote(source)
    try:
        return cast("BinaryIO", system.open(path, "rb", block_size=_BLOCK))
    except Exception as error:  # every protocol raises its own
        raise UnreadableSlideError(f"{source}: cannot be opened: {_line(error)}") from None


class ByteRanges:
    """Bytes of a file from any place, for any number of threads at once."""

    def __init__(self, source: SlideFile) -> None:
        """Open the file.

        Raises:
            OSError: If a local file cannot be opened.
            UnreadableSlideError: If the URL cannot.
        """
        self._source = source
        if isinstance(source, Path):
            self._handle = os.open(source, os.O_RDONLY)
        else:
            self._system, self._path = _remote(source)

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from byte `start`; fewer where the file ends.

        Raises:
            SlideError: If the disk or the network fails: what is there may be sound, so it is no damaged tile.
        """
        try:
            if isinstance(self._source, Path):
                return os.pread(self._handle, length, start)
            return cast("bytes", self._system.cat_file(self._path, start=start, end=start + length))
        except Exception as error:  # every protocol raises its own
            raise SlideError(f"{self._source}: cannot be read: {_line(error)}") from None

    def close(self) -> None:
        """Let go of the file."""
        if isinstance(self._source, Path):
            os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _remote(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        return cast("tuple[Any, str]", url_to_fs(url))
    except ImportError as error:  # fsspec says which package the protocol needs
        raise UnreadableSlideError(f"{url}: cannot be opened: {error}") from None
    except Exception as error:
        raise UnreadableSlideError(f"{url}: cannot be opened: {_line(error)}") from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
