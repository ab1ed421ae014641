"""Files and folders that are written atomically, and only over what this package wrote before.

A file is written to a temporary file beside its place, flushed to disk, then renamed. Whether a file that stands there
may be replaced is asked of `ownership.py`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from wsi_dbps.core.errors import OutputError
from wsi_dbps.core.ownership import (
    RECORD,
    append_to_record,
    h5_format,
    note_written,
    recorded_name,
    refuse_another_kind,
    refuse_to_replace,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PathLike = str | os.PathLike[str]
"""What a public function takes for a path: text, or a path object."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder to write to; on success it is flushed to disk and renamed to `path`.

    If anything fails, the temporary file is removed. Its name is always the same, so that what a killed run leaves
    behind is overwritten by the next run.

    Raises:
        OutputError: If the file cannot be written, with what the system said, or if there is a file of that name that
            this package did not write (`refuse_to_replace`).
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_to_replace(path)
        yield partial
        put_in_place(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        raise_as_output_error(path, error)
        raise


def partial_path(path: Path) -> Path:
    """The temporary file in the same folder that is renamed to `path` when it is complete."""
    return path.with_name(path.name + ".wsi-dbps-part")  # a browser's downloads end in .part


def put_in_place(partial: Path, path: Path) -> None:
    """Flush a complete temporary file to disk, record it as ours, and rename it to `path`.

    Raises:
        OutputError: If there is a file of that name that this package did not write, or an HDF5 file of another kind.
    """
    refuse_to_replace(path)
    if path.suffix == ".h5":
        refuse_another_kind(path, h5_format(partial))
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    note_written(path, partial)
    os.replace(partial, path)
    _sync(path.parent)


def reserve(handle: int, length: int) -> None:
    """Ask the file system to reserve space for the first `length` bytes of an open file.

    On ext4, writing is then up to ten times faster. If there is too little space, or no such system call, nothing
    happens: a full disk is then found while writing. (`os.posix_fallocate` is not used, as it writes zeros where the
    file system has no such call.)
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).fallocate(handle, 0, ctypes.c_int64(0), ctypes.c_int64(length))


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[Path]:
    """Hold the temporary file of `path`, empty, for this process alone; it is removed at the end if it is still there.

    The lock is the system's own on that file (`flock`): it ends with its process, so a killed run leaves nothing to
    clear away, and other machines see it on file systems that share locks (NFS from version 4, Lustre with `flock`,
    GPFS). On a file system without locks, every claim succeeds.

    Args:
        path: What is to be written.
        wait: Wait for another process to finish, in place of `BusyError`.

    Raises:
        BusyError: If another process holds it.
        OutputError: If the file cannot be made.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = locked(partial, wait=wait)
    except OSError as error:
        raise_as_output_error(path, error)
        raise
    try:
        os.ftruncate(handle, 0)
        yield partial
    except OSError as error:
        raise_as_output_error(path, error)
        raise
    finally:
        if _is_at(handle, partial):
            partial.unlink()
        os.close(handle)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder for files; on success all is flushed to disk and it is renamed to `path`.

    A folder of that name is replaced. Only one process at a time may write a folder: see `claimed`. The names of the
    temporary folders begin with a dot, as no slide id does; what a killed run leaves there is removed by the next run.

    Raises:
        OutputError: If it cannot be written, with what the system said, or if this package did not write the folder
            that has the name.
    """
    new, old = (path.with_name(f".{path.name}.{which}") for which in ("new", "old"))
    try:
        refuse_to_replace(path)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        append_to_record(
            new / RECORD,
            "".join(f"-\t{recorded_name(file.name)}\n" for file in sorted(new.iterdir()) if file.name != RECORD),
        )
        for file in new.iterdir():
            _sync(file)
        _sync(new)
        note_written(path, None)
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
        _sync(path.parent)
    except OSError as error:
        raise_as_output_error(path, error)
        raise
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


class BusyError(Exception):
    """Another process is writing this file."""


def locked(partial: Path, *, wait: bool) -> int:
    """An open handle of this file, made if it is missing, that no other process can lock meanwhile.

    Raises:
        BusyError: If another process holds the lock, and `wait` is false.
    """
    while True:
        handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(handle, wait=wait)
        except BlockingIOError:
            os.close(handle)
            raise BusyError(str(partial)) from None
        except BaseException:
            os.close(handle)
            raise
        if _is_at(handle, partial):
            return handle
        os.close(handle)  # it was finished, and took its name, while we waited


def _flock(handle: int, *, wait: bool) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused, as it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


_UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.ENAMETOOLONG,
)


def raise_as_output_error(path: Path, error: BaseException) -> None:
    """Say in one line what keeps a file from being written; return if the error is about something else."""
    if not isinstance(error, OSError):
        return
    for number in _UNWRITABLE:
        if error.errno == number or f"errno = {number}," in str(error):  # h5py carries the number in its text only
            raise OutputError(f"{path}: cannot be written: {os.strerror(number)}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
