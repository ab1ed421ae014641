"""The `wsi-dbps` command. Every module imports what it works with only when its command runs: `--help` is quick."""

from __future__ import annotations

import sys

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

from wsi_dbps.errors import StoppedError, WsiDbpsError

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
    """Run the command line: exit code 0 all done, 1 some slides failed, 2 cannot be done, 143 ended by SIGTERM."""
    try:
        app()
    except WsiDbpsError as error:
        print(f"wsi-dbps: {error}", file=sys.stderr)
        sys.exit(143 if isinstance(error, StoppedError) else 2)


if __name__ == "__main__":  # for torchrun
    run()
