"""Which files this package wrote: no command replaces a file of somebody else.

A hidden file in each folder, `.wsi-dbps-files`, records what was written there; a file that is not in it, or that
somebody changed since, is never replaced. The same hidden file is the lock by which one command at a time writes to a
folder (`output_folder.py`).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from wsi_dbps.core.digests import file_digest
from wsi_dbps.core.errors import ForeignFileError, OutputError

if TYPE_CHECKING:
    from pathlib import Path


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
    return {file.name for file in folder.iterdir() if recorded_name(file.name) in known}


def refuse_another_kind(path: Path, kind: str) -> None:
    """Do nothing unless `path` is an HDF5 file of this package of another kind, which may have taken hours to make.

    Raises:
        ForeignFileError: If features, attention or a patch cache would be lost to one of the others.
    """
    if path.is_file() and (found := h5_format(path)).startswith("wsi-dbps ") and found != kind:
        raise ForeignFileError(
            f"{path}: holds {found.removeprefix('wsi-dbps ')}, which something else would replace; give another folder "
            "with --out"
        )


def _recorded(path: Path) -> set[str]:
    lines = (line.partition("\t") for line in record_lines(path.parent / RECORD))
    return {digest for digest, _, name in lines if name == recorded_name(path.name)}


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
        elif line.partition("\t")[2] == recorded_name(path.name):
            found = command
    return found


def _made_by_0_1(path: Path) -> bool:
    if path.suffix == ".h5":
        return h5_format(path).startswith("wsi-dbps")
    told_by = [path.parent / told for told, names in _MADE_BY_0_1.items() if path.name in names]
    said = _SAID_BY_0_1.get(path.name) or _SAID_BY_0_1.get(path.suffix)
    with suppress(OSError):
        if said is not None and path.is_file():
            with open(path, "rb") as file:
                if said in file.read(1000):
                    return True
        return any(b'"wsi_dbps' in told.read_bytes() for told in told_by if told.is_file() and not _recorded(told))
    return False


def h5_format(path: Path) -> str:
    """The format that an HDF5 file names in its attributes; empty where it names none or cannot be read."""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            said = file.attrs.get("format", "wsi-dbps features" if "wsi_dbps" in file.attrs else "")  # STAMP's layout
            return str(said)
    except (OSError, RuntimeError, ValueError):
        return ""


def note_written(path: Path, content: Path | None) -> None:
    """Record a file, or a folder (`content` None), before it takes its name, so that a kill leaves no unknown file.

    With a file by which those of version 0.1 are known, these are recorded too, as from then on nothing else tells.
    """
    marks = {path: "-" if content is None else _mark(content, path.suffix)}
    if path.name in _MADE_BY_0_1 and path.is_file() and _made_by_0_1(path):
        beside = (path.with_name(name) for name in _MADE_BY_0_1[path.name] if name != path.name)
        marks |= {file: _mark(file, file.suffix) for file in beside if file.is_file()}
    new = [f"{mark}\t{recorded_name(file.name)}\n" for file, mark in marks.items() if mark not in _recorded(file)]
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


def recorded_name(name: str) -> str:
    """A file's name as the record holds it: without line breaks."""
    return name.replace("\n", "\\n")
