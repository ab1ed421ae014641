"""One command at a time writes to a folder."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from wsi_dbps.core.errors import ForeignFileError, OutputError
from wsi_dbps.core.files import BusyError, locked, raise_as_output_error
from wsi_dbps.core.ownership import RECORD, append_to_record, record_lines, refuse_to_replace, writer_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_held: dict[str, int] = {}
"""Folders that this process holds, and the thread that holds each."""


@contextmanager
def output_folder(folder: Path, command: str, names: Iterable[str] = ()) -> Iterator[None]:
    """Hold a folder so that no other command writes to it meanwhile; it is made if it is missing.

    The lock is the system's own (`flock`) on the folder's `.wsi-dbps-files`: it ends with the process, however that
    ends, and other machines see it on file systems that share locks (NFS from version 4, Lustre with `flock`, GPFS).
    On a file system without locks, every command gets the folder. A function that holds a folder may call another that
    holds the same. `tile` and `export` hold single files in place of the folder (`claimed`), so that several processes
    may share the work.

    Args:
        folder: Where the command writes.
        command: Its name, for the message of whoever comes second.
        names: Files that it will write there: refused at once if they are somebody else's, not hours later.

    Raises:
        OutputError: If another command is writing there, or the folder cannot be written, or holds a file of one of
            these names that this command did not write.
    """
    key = os.path.realpath(folder)
    if _held.get(key) == threading.get_ident():
        yield
        return
    record, new = folder / RECORD, not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record_lines(record)  # says so if it cannot be one
        handle = locked(record, wait=False)
    except OSError as error:
        raise_as_output_error(folder, error)
        raise
    except BusyError:
        raise OutputError(
            f"{folder}: {_writer(record)} is writing here now; wait until it has ended, or give another folder with "
            "--out"
        ) from None
    try:
        _held[key] = threading.get_ident()
        try:
            for name in names:
                refuse_to_replace(folder / name)
                _refuse_another_command(folder / name, command)
            try:
                append_to_record(record, f"# wsi-dbps {command}\tprocess {os.getpid()} on {socket.gethostname()}\n")
            except OSError as error:
                raise_as_output_error(folder, error)
                raise
            yield
        finally:
            del _held[key]
            if all(line.startswith("# ") for line in record_lines(record)):  # no file was written: leave nothing
                record.unlink(missing_ok=True)
                with suppress(OSError):
                    if new:
                        folder.rmdir()
    finally:
        os.close(handle)


def _refuse_another_command(path: Path, command: str) -> None:
    """Keep what another command wrote: a manifest of `split` in a folder that `train` is to fill has the test rows."""
    if os.path.lexists(path) and (writer := writer_of(path)) and writer.split()[0] != command.split(maxsplit=1)[0]:
        raise ForeignFileError(
            f"{path}: was written by `wsi-dbps {writer}`, so `{command}` does not replace it; give another name or "
            "folder with --out"
        )


def _writer(record: Path) -> str:
    command, _, process = next((line[2:] for line in reversed(record_lines(record)) if line[:2] == "# "), "").partition(
        "\t"
    )
    return f"another command, `{command}` ({process})," if process else "another command"
