"""HDF5 files: written atomically, also on a disk that fills up meanwhile, and read without trust in what they claim."""

from __future__ import annotations

import ctypes
import errno
import io
import math
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from zipfile import BadZipFile

import h5py
import numpy as np

from wsi_dbps.core.errors import WsiDbpsError, one_line
from wsi_dbps.core.files import written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAMAGED: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError, EOFError,
                  BadZipFile)  # fmt: skip
"""What h5py, and NumPy for .npz, raise on damaged files and on objects of another kind than expected."""
MOST_ROWS: Final = 50_000_000
"""Far more tiles than a slide has."""
MOST_CHUNK_BYTES: Final = 1 << 30
"""HDF5 holds a chunk in memory whole, however well it was compressed."""


@contextmanager
def h5_written_whole(path: Path, *, size: int = 0) -> Iterator[h5py.File]:
    """Yield an HDF5 file to fill, which is written atomically: if anything fails, nothing is left of it.

    HDF5 cannot recover from a write that fails: closing the file fails too, and the interpreter then crashes when it
    frees the handle. So HDF5 writes through `_Target`, which never reports a failure to it, and the first failure is
    raised here, after HDF5 has closed the file as usual.

    Args:
        path: File to write.
        size: Bytes to reserve first, so that a full disk is found before work is done. Where the file system cannot
            reserve, a full disk is found while writing.

    Raises:
        OutputError: If the file cannot be written, with what the system said.
    """
    with written_whole(path) as partial, open(partial, "wb+", buffering=0) as raw:
        _reserve_or_fail(raw.fileno(), size)
        target = _Target(raw)
        try:
            with h5py.File(target, "w") as file:
                yield file
        finally:
            if target.error is not None:
                raise target.error


class _Target(io.RawIOBase):
    """A file for HDF5 to write to. After a write has failed, `error` holds why and all further bytes are dropped."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any) -> int:
        """Fill the whole buffer, with zeros where there is nothing to read."""
        view, start = memoryview(buffer).cast("B"), 0
        with suppress(OSError):
            while num := self._raw.readinto(view[start:]):
                start += num
        view[start:] = bytes(len(view) - start)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        rest = view
        with self._recorded():
            while rest and self.error is None:
                rest = rest[self._raw.write(rest) :]
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        with self._recorded():
            self._raw.truncate(size)
        return size or 0

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


def _reserve_or_fail(handle: int, size: int) -> None:
    """Reserve space for `size` bytes without changing the file's length; return if the file system cannot reserve."""
    if sys.platform != "linux" or not size:
        return
    keep_size, system = 1, ctypes.CDLL(None, use_errno=True)
    if system.fallocate(handle, keep_size, ctypes.c_int64(0), ctypes.c_int64(size)):
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(number, os.strerror(number))


@contextmanager
def reading(
    path: Path, raised: type[WsiDbpsError], what: str, repair: str, *, missing: str = ""
) -> Iterator[h5py.File]:
    """Yield an HDF5 file to read from; whatever h5py raises on it becomes one error of ours, in one line.

    Args:
        path: File to read.
        raised: Class of that error.
        what: What cannot be read, as the message says it: "not a readable patch cache".
        repair: What to do about it.
        missing: What to say if there is no such file; that is said as any other error if it is left out.

    Raises:
        WsiDbpsError: Of class `raised`, if the file cannot be opened, or what is read of it is not there or damaged.
    """
    with translated(path, raised, what, repair, missing=missing), h5py.File(path, "r", locking=False) as file:
        yield file


@contextmanager
def translated(
    path: Path | str, raised: type[WsiDbpsError], what: str, repair: str, *, missing: str = ""
) -> Iterator[None]:
    """As `reading`, for code that opens the file itself."""
    try:
        yield
    except DAMAGED as error:
        if missing and isinstance(error, FileNotFoundError):
            raise raised(f"{path}: {missing}") from None
        if missing and isinstance(error, PermissionError):
            raise raised(f"{path}: cannot be read: {error.strerror}") from None
        raise raised(f"{path}: {what}: {one_line(error)}; {repair}") from None


def plain(value: Any) -> Any:
    """An attribute's value as Python's own text or number, which reads well in a message; arrays as they are."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value


def why_not_stored(data: h5py.Dataset, file_bytes: int) -> str | None:
    """Why a dataset must not be read, in words that follow its name; None if it may be read.

    Ask this before reading: where storage is missing, HDF5 returns zeros, as many as the dataset claims to hold.

    Args:
        data: The dataset.
        file_bytes: Length of its file.
    """
    if data.is_virtual or data.external:
        return "is kept in other files; copy it into this one"
    if data.shape is None:
        return "holds nothing"
    if not data.size:
        return None
    if data.dtype.kind in "OSU" or data.id.get_create_plist().get_layout() == h5py.h5d.COMPACT:
        return None  # text is refused by its type; what is compact lies in the header, which HDF5 has read
    if data.chunks is None:
        begin = data.id.get_offset()
        complete = begin is not None and begin + data.size * data.dtype.itemsize <= file_bytes
    else:
        if (chunk_bytes := math.prod(data.chunks) * data.dtype.itemsize) > MOST_CHUNK_BYTES:
            return f"has chunks of {chunk_bytes} bytes, and up to {MOST_CHUNK_BYTES} are read"
        num_chunks = math.prod(-(-side // step) for side, step in zip(data.shape, data.chunks, strict=True))
        complete = data.id.get_num_chunks() == num_chunks
    return None if complete else f"claims {data.shape} numbers, and the file does not hold as many"
