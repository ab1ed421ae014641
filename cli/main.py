"""The `wsi-dbps` command. Every module imports what it works with only when its command runs: `--help` is quick."""

from __future__ import annotations

import os
import shlex
import sys
import traceback

import typer
from wsi_dbps_cli import (
    atlas,
    compare,
    demo,
    embed,
    evaluate,
    export,
    faithfulness,
    heatmap,
    inspect,
    localise,
    plan,
    predict,
    split,
    tile,
    train,
)

from wsi_dbps.core.errors import StoppedError, WsiDbpsError

# OpenMP's threads keep their core busy while they wait for work, unless told not to, which makes training several times
# slower beside other work. The OpenMP library reads this when torch is imported.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train on whole pathology slides, end to end, from pixels, with dual-buffer patch selection.",
)
for module in (
    demo,
    tile,
    inspect,
    export,
    embed,
    split,
    plan,
    train,
    predict,
    evaluate,
    compare,
    localise,
    faithfulness,
    heatmap,
    atlas,
):
    app.command(module.__name__.rpartition(".")[2])(module.command)


def run() -> None:
    """Run the command line: exit code 0 all done, 1 some slides failed, 2 cannot be done; 143 ended by SIGTERM, 130 by
    Ctrl-C.
    """
    try:
        _run()
    except BaseException as ended:
        if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        _end_at_once(ended)


def _run() -> None:
    try:
        app()
    except StoppedError as error:
        print(f"wsi-dbps: {error}; go on with: {_to_go_on(sys.argv[1:])}", file=sys.stderr)
        sys.exit(error.exit_code)
    except WsiDbpsError as error:
        print(f"wsi-dbps: {error}", file=sys.stderr)
        sys.exit(2)


def _to_go_on(arguments: list[str]) -> str:
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


def _end_at_once(ended: BaseException) -> None:
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


if __name__ == "__main__":  # for torchrun
    run()
