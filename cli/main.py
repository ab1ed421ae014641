"""The `wsi-dbps` command. A workflow imports what it works with only when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import typer
import typer.core
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
from wsi_dbps_cli.exits import end_at_once, to_go_on

from wsi_dbps.core.errors import StoppedError, WsiDbpsError

# OpenMP's threads keep their core busy while they wait for work, unless told not to, which makes training several times
# slower beside other work. The OpenMP library reads this when torch is imported.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

COMMANDS = {
    "Start": (demo,),
    "Data": (split, tile, inspect, embed),
    "Train": (plan, train),
    "Predict and evaluate": (predict, evaluate, compare),
    "Explain": (heatmap, localise, faithfulness, atlas),
    "Share": (export,),
}
"""The commands by what they are for, as `wsi-dbps --help` shows them."""


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


class Grouped(typer.core.TyperGroup):
    """A command whose help shows its commands in groups."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer passes it
        """Write a section for each group, the help texts in one column."""
        width = max(map(len, self.commands))
        for title, modules in COMMANDS.items():
            names = [_name(module) for module in modules]
            with formatter.section(title):
                texts = [self.commands[name].get_short_help_str(formatter.width) for name in names]
                formatter.write_dl([(name.ljust(width), text) for name, text in zip(names, texts, strict=True)])


app = typer.Typer(
    cls=Grouped,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train on whole pathology slides, end to end, from pixels, with dual-buffer patch selection.",
)
for module in (module for modules in COMMANDS.values() for module in modules):
    app.command(_name(module))(module.command)


def run() -> None:
    """Run the command line: exit code 0 all done, 1 some slides failed, 2 cannot be done; 143 ended by SIGTERM, 130 by
    Ctrl-C.
    """
    try:
        _run()
    except BaseException as ended:
        if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        end_at_once(ended)


def _run() -> None:
    try:
        app()
    except StoppedError as error:
        print(f"wsi-dbps: {error}; go on with: {to_go_on(sys.argv[1:])}", file=sys.stderr)
        sys.exit(error.exit_code)
    except WsiDbpsError as error:
        print(f"wsi-dbps: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":  # for torchrun
    run()
