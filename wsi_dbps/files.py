"""Files and folders that are written atomically, and only over what this package wrote before.

A file is written to a temporary file beside its place, flushed to disk, then renamed. A hidden file in each folder,
`.wsi-dbps-files`, records what was written there: no command replaces a file that is not in it, or that somebody
changed since. The same hidden file is the lock by which one command at a time writes to a folder (`output_folder.py`).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from wsi_dbps.errors import ForeignFileError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PathLike = str | os.PathLike[str]
"""What a public function takes for a path: text, or a path object."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is synced and takes the name `path`, else it is removed.

    The name beside is always the same, so what a killed run leaves behind is overwritten by the next.

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
    """The file beside `path` that becomes it when it is whole."""
    return path.with_name(path.name + ".wsi-dbps-part")  # a browser's downloads end in .part


def put_in_place(partial: Path, path: Path) -> None:
    """Sync a file that is whole, record it as ours, and give it its name.

    Raises:
        OutputError: If there is a file of that name that this package did not write, or an HDF5 file of another kind.
    """
    refuse_to_replace(path)
    if path.suffix == ".h5":
        refuse_another_kind(path, _h5_format(partial))
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    _note_written(path, partial)
    os.replace(partial, path)
    _sync(path.parent)


RECORD: Final = ".wsi-dbps-files"
"""A hidden file in each folder that we write to, a line per file: the digest of its content where it is text that
people edit, else `-`, then a tab and its name. A line that begins with `#` tells which command wrote there."""
_EDITABLE: Final = (".csv", ".geojson", ".html", ".json", ".toml")
_MADE_BY_0_1: Final = {
    "run.json": ("run.toml", "run.json", "history.csv", "last.pt", "best.pt"),
    "predict.json": ("predictions.csv", "predict.json"),
}
"""Version 0.1 kept no record. What it wrote is known by one of these files, which names the package, or by how it
begins. A run's manifest is not among them: it is written only where no run is, so one that is there is a user's.
Nothing follows from such a file that is in a record: it is of a later version, whose files are all in the record."""
_SAID_BY_0_1: Final = {
    ".json": b'"format": "wsi-dbps ',
    "tiling.csv": b"slide_id,status,reason,reader,pixels,level,mpp,patches,dropped,bytes,seconds\n",
    "contact-sheet.html": b"<title>Contact sheet</title>",
    "report.html": b"<style>\n:root { --accent: ",
}


def refuse_to_replace(path: Path) -> None:
    """Do nothing if there is no such file or folder, or if this package wrote it.

    Text that people edit (CSV, TOML, JSON, HTML) must also be as it was written; a damaged binary file may be replaced.

    Commands that work for long call it before they begin, and every writer does before a file takes its name.

    Raises:
        ForeignFileError: If somebody else's file would be lost.
    """
    if not os.path.lexists(path):
        return
    digests = _recorded(path)
    if path.is_dir() and (strangers := {file.name for file in path.iterdir()} - {RECORD} - _names_of_ours(path)):
        raise ForeignFileError(
            f"{path}: holds {min(strangers)}, which was not written by wsi-dbps, so the folder is not replaced; "
            "move that file away, or give another folder with --out"
        )
    if not digests and not _made_by_0_1(path):
        raise ForeignFileError(
            f"{path}: exists and was not written by wsi-dbps, so it is not replaced; move it away, or give another "
            "name or folder with --out"
        )
    if digests and "-" not in digests and path.is_file() and file_digest(path) not in digests:
        raise ForeignFileError(
            f"{path}: was changed after wsi-dbps wrote it, so it is not replaced; move it away, or give another name "
            "or folder with --out"
        )


def _names_of_ours(folder: Path) -> set[str]:
    """The names of all that its record knows, whose record is read once, as a folder may hold very many patches."""
    known = {line.partition("\t")[2] for line in record_lines(folder / RECORD)}
    return {file.name for file in folder.iterdir() if _one_line(file.name) in known}


def refuse_another_kind(path: Path, kind: str) -> None:
    """Do nothing unless `path` is an HDF5 file of this package of another kind, which may have taken hours to make.

    Raises:
        ForeignFileError: If features, attention or a patch cache would be lost to one of the others.
    """
    if path.is_file() and (found := _h5_format(path)).startswith("wsi-dbps ") and found != kind:
        raise ForeignFileError(
            f"{path}: holds {found.removeprefix('wsi-dbps ')}, which something else would replace; give another folder "
            "with --out"
        )


def _recorded(path: Path) -> set[str]:
    lines = (line.partition("\t") for line in record_lines(path.parent / RECORD))
    return {digest for digest, _, name in lines if name == _one_line(path.name)}


def record_lines(record: Path) -> list[str]:
    """The lines of a folder's record; none where there is no record. A line that a full disk cut short is left out.

    Raises:
        OutputError: If what is there is no file, or cannot be read.
    """
    why = "is no file"
    try:
        if not record.exists():
            return []
        if record.is_file():  # anything else might block
            return record.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]
    except FileNotFoundError:  # its command ended just now
        return []
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    raise OutputError(
        f"{record}: {why}; wsi-dbps records in it what it wrote to the folder; move it away, or give another folder "
        "with --out"
    )


def writer_of(path: Path) -> str:
    """The command that wrote this file last, such as `train`; empty where the folder's record does not say."""
    command, found = "", ""
    for line in record_lines(path.parent / RECORD):
        if line.startswith("# wsi-dbps "):
            command = line.removeprefix("# wsi-dbps ").partition("\t")[0]
        elif line.partition("\t")[2] == _one_line(path.name):
            found = command
    return found


def _made_by_0_1(path: Path) -> bool:
    if path.suffix == ".h5":
        return _h5_format(path).startswith("wsi-dbps")
    told_by = [path.parent / told for told, names in _MADE_BY_0_1.items() if path.name in names]
    said = _SAID_BY_0_1.get(path.name) or _SAID_BY_0_1.get(path.suffix)
    with suppress(OSError):
        if said is not None and path.is_file():
            with open(path, "rb") as file:
                if said in file.read(1000):
                    return True
        return any(b'"wsi_dbps' in told.read_bytes() for told in told_by if told.is_file() and not _recorded(told))
    return False


def _h5_format(path: Path) -> str:
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            said = file.attrs.get("format", "wsi-dbps features" if "wsi_dbps" in file.attrs else "")  # STAMP's layout
            return str(said)
    except (OSError, RuntimeError, ValueError):
        return ""


def _note_written(path: Path, content: Path | None) -> None:
    """Record a file, or a folder (`content` None), before it takes its name, so that a kill leaves no unknown file.

    With a file by which those of version 0.1 are known, these are recorded too, as from then on nothing else tells.
    """
    marks = {path: "-" if content is None else _mark(content, path.suffix)}
    if path.name in _MADE_BY_0_1 and path.is_file() and _made_by_0_1(path):
        beside = (path.with_name(name) for name in _MADE_BY_0_1[path.name] if name != path.name)
        marks |= {file: _mark(file, file.suffix) for file in beside if file.is_file()}
    new = [f"{mark}\t{_one_line(file.name)}\n" for file, mark in marks.items() if mark not in _recorded(file)]
    if new:
        append_to_record(path.parent / RECORD, "".join(new))


def _mark(content: Path, suffix: str) -> str:
    return file_digest(content) if suffix in _EDITABLE else "-"


def append_to_record(record: Path, line: str) -> None:
    """Add one line, or several, in a single write: what other processes add lies before or after it.

    Raises:
        OSError: If the disk has no room for the whole of it. The next line then begins anew after what was written.
    """
    content = line.encode("utf-8", "surrogateescape")
    handle = os.open(record, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        length = os.fstat(handle).st_size
        if length and os.pread(handle, 1, length - 1) != b"\n":
            content = b"\n" + content
        if os.write(handle, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(record))
    finally:
        os.close(handle)


def _one_line(name: str) -> str:
    return name.replace("\n", "\\n")


def reserve(handle: int, length: int) -> None:
    """Have the file system set aside space for the first `length` bytes of an open file, if it can.

    On ext4 writing is then up to ten times faster. Where there is not so much space, or no such call, nothing happens:
    writing will say so. (`os.posix_fallocate` writes zeros where there is no such call.)
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).fallocate(handle, 0, ctypes.c_int64(0), ctypes.c_int64(length))


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[Path]:
    """Hold the file beside `path`, empty, for this process alone; what is left of it at the end is removed.

    The lock is the system's own on that file (`flock`): it ends with its process, so a killed run leaves nothing to
    clear away, and other machines see it on file systems that share locks (NFS from version 4, Lustre with `flock`,
    GPFS). Where there are no locks, the claim is always had.

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
    """Yield an empty folder beside `path` for files; on success all is synced and it takes the name `path`.

    A folder that has the name already is replaced. Only one process at a time may write a folder: see `claimed`. The
    names beside begin with a dot, as no slide id does; what a killed run leaves under them is removed by the next.

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
            "".join(f"-\t{_one_line(file.name)}\n" for file in sorted(new.iterdir()) if file.name != RECORD),
        )
        for file in new.iterdir():
            _sync(file)
        _sync(new)
        _note_written(path, None)
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
    """Write `text` as UTF-8, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN is refused, as it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def digest(value: object) -> str:
    """16 hexadecimal digits that identify a JSON-able value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    """16 hexadecimal digits that identify a file's whole content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


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
