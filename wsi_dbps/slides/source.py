"""Where a slide's bytes come from: a local file, or a URL (`https://`, `s3://`, `gs://` ...) that fsspec opens."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self, cast

from wsi_dbps.errors import SlideError, UnreadableSlideError

if TYPE_CHECKING:
    from wsi_dbps.slides.reader import SlideInfo

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


def sampled_fingerprint(path: SlideFile) -> str:
    """16 hexadecimal digits from a file's length and 64 KiB at its head, middle and tail.

    A slide of gigabytes on a network disk is told from another at once, and a copy of it is known again wherever it
    lies. For a folder of files (DICOM) or a file with a companion folder (MIRAX) only the named file is looked at.
    """
    block = 1 << 16
    with opened(path) as file:
        length = file.seek(0, os.SEEK_END)
        digest = hashlib.blake2b(str(length).encode(), digest_size=8)
        for start in sorted({0, max(0, (length - block) // 2), max(0, length - block)}):
            file.seek(start)
            digest.update(file.read(block))
    return digest.hexdigest()


def check_unchanged(info: SlideInfo, source: SlideFile) -> None:
    """Refuse a slide whose file was changed or replaced after it was opened.

    Call it when the last pixel has been read. Readers take the fingerprint before they open the file, so that a
    file replaced at any moment in between has another one now. As for every fingerprint, only the length and the
    samples count: see `sampled_fingerprint`.

    Args:
        info: What the open reader says of the slide.
        source: The file that it was opened from.

    Raises:
        SlideError: If the file's fingerprint is another one than that of `info`, or the file is gone.
    """
    try:
        now = sampled_fingerprint(source)
    except OSError as error:
        raise SlideError(
            f"{source}: cannot be read again to check that it did not change: {error.strerror or error}; "
            "put the file back, and run the command again"
        ) from None
    if now != info.fingerprint:
        raise SlideError(
            f"{source}: the file changed while it was read (fingerprint {info.fingerprint} before, {now} after); "
            "wait until it is copied completely, and run the command again"
        )


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
