"""HDF5 files that are written atomically, also on a disk that fills up meanwhile."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from wsi_dbps.core.files import written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import h5py


@contextmanager
def h5_written_whole(path: Path, *, size: int = 0) -> Iterator[h5py.File]:
    """Yield an HDF5 file to fill; on success it is flushed and takes the name `path`, else nothing is left.

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
    import h5py

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
