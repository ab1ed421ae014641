"""How the command line ends: with one line and an exit code for what is no bug, and the command that goes on."""

from __future__ import annotations

import os
import shlex
import sys
import traceback


def to_go_on(arguments: list[str]) -> str:
    """The command that goes on where the one with these arguments was stopped."""
    if arguments[0] == "train" and not {"--resume", "--folds", "--folds=all"} & set(arguments):
        arguments = [*arguments, "--resume"]
    size, here = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if size == "1" or "RANK" not in os.environ:
        return shlex.join(["wsi-dbps", *arguments])
    if "TORCHELASTIC_RUN_ID" in os.environ and size == here:
        return shlex.join(
            ["torchrun", "--standalone", f"--nproc-per-node={size}", "-m", "wsi_dbps_cli.main", *arguments]
        )
    return f"{shlex.join(['wsi-dbps', *arguments])} (in {size} processes, started as these were)"


def end_at_once(ended: BaseException) -> None:
    """End one of several processes with its exit code, whatever torch's threads are doing.

    Where a process group could not be destroyed, its threads outlive the interpreter and abort the process, which then
    ends with 134 in place of its own code. `os._exit` stops them before.
    """
    try:
        if isinstance(ended, SystemExit):
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        else:
            traceback.print_exception(ended)
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
