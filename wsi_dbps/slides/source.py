"""Where a slide's bytes come from: a local file, or a URL (`https://`, `s3://`, `gs://` ...) that fsspec opens."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self, cast

from wsi_dbps.core.errors import SlideError, UnreadableSlideError, one_line

if TYPE_CHECKING:
    from wsi_dbps.slides.base import SlideInfo

PROTOCOLS: Final = ("file", "http", "https", "s3", "gs", "az", "abfs")
"""What a URL may begin with. fsspec knows some fifty more, and some of them run programs or open other files that a
manifest from elsewhere names (`reference`, `zip`, chains with `::`)."""
TIMEOUT_S: Final = 15.0
"""How long an HTTP server may take to accept a connection, and between two parts of its answer. A first request that is
not answered is repeated once, by another method."""
_BLOCK: Final = 1 << 18
"""Bytes fetched at a time for tables, which are small and lie far apart; fsspec's own 5 MiB is for whole files."""
MAX_DECODED_BYTES: Final = 1 << 30
"""Largest piece of a slide that is decoded at once: a flat image, a strip or tile of a TIFF, the pixels under one patch
or one band of the thumbnail. A file of a few bytes may declare any size, and memory would be gone before it is read."""
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
        file = _RemoteFile(source, system.open(path, "rb", block_size=_BLOCK))
    except Exception as error:  # every protocol raises its own
        raise UnreadableSlideError(f"{source}: cannot be opened: {_line(error)}") from None
    if not file.seekable():
        file.close()
        raise UnreadableSlideError(f"{source}: {_NO_RANGES}")
    return cast("BinaryIO", file)


class _RemoteFile(io.RawIOBase):
    """A remote file whose every failure is a `SlideError` of one line, in place of its protocol's own errors."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        """Whether the server sends any part of the file; fsspec's file for those that do not says True all the same."""
        return type(self._file).__name__ != "HTTPStreamFile"

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return cast("int", self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast("int", self._file.tell())

    def read(self, size: int = -1) -> bytes:
        try:
            return cast("bytes", self._file.read(size))
        except Exception as error:  # every protocol raises its own
            raise SlideError(f"{self._url}: cannot be read: {_line(error)}") from None

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


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
            content = cast("bytes", self._system.cat_file(self._path, start=start, end=start + length))
        except Exception as error:  # every protocol raises its own
            raise SlideError(f"{self._source}: cannot be read: {_line(error)}") from None
        if len(content) > length:
            raise SlideError(f"{self._source}: {_NO_RANGES}")
        return content

    def close(self) -> None:
        """Close the file."""
        if isinstance(self._source, Path):
            os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _remote(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        UnreadableSlideError: If the protocol is none of `PROTOCOLS`, found before fsspec loads anything for it, or its
            package is not installed.
    """
    protocol, separator, _ = url.partition("::" if "::" in url else "://")
    if protocol not in PROTOCOLS or separator == "::":
        chained = " (a chain of protocols)" if separator == "::" else ""
        raise UnreadableSlideError(
            f"{url}: the protocol {protocol!r}{chained} is not opened; allowed are a local path and "
            f"{', '.join(f'{name}://' for name in PROTOCOLS)}"
        )
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        return cast("tuple[Any, str]", url_to_fs(url, **(_http_options() if protocol.startswith("http") else {})))
    except ImportError as error:  # fsspec says which package the protocol needs
        raise UnreadableSlideError(f"{url}: cannot be opened: {error}") from None
    except Exception as error:
        raise UnreadableSlideError(f"{url}: cannot be opened: {_line(error)}") from None


def _http_options() -> dict[str, Any]:
    """The time limits of `TIMEOUT_S`, beside what the user has set in fsspec's own configuration."""
    from fsspec.config import conf  # type: ignore[import-untyped]

    try:
        from aiohttp import ClientTimeout
    except ImportError:  # which fsspec then says
        return {}
    limits = ClientTimeout(total=None, connect=TIMEOUT_S, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
    return {"client_kwargs": {"timeout": limits, **conf.get("http", {}).get("client_kwargs", {})}}


_NO_RANGES: Final = (
    "the server sends whole files only, not the parts that are asked for (HTTP Range requests); download the slide and "
    "name the local file, or use a server that supports them"
)


def _line(error: BaseException) -> str:
    """What went wrong, in one line: fsspec hides what happened on the network behind a missing file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return (
                f"no answer within {TIMEOUT_S:g} s (TIMEOUT_S in wsi_dbps/slides/source.py); check that the server "
                "works, or download the slide and name the local file"
            )
        cause = cause.__cause__ or cause.__context__
    if "range requests" in str(error):
        return _NO_RANGES
    return f"{type(error).__name__}: {one_line(error)}"
