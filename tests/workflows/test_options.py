"""Options are checked whether they come from the command line, an options class or keywords."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import typer
from typer.testing import CliRunner
from wsi_dbps_cli.derive import derived

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.core.options import Range, options_with
from wsi_dbps.core.settings import settings


@settings
class SomeOptions:
    count: Annotated[int | None, "How many.", Range(1, 9)] = None
    share: Annotated[float, "How much."] = 0.5
    kind: Annotated[Literal["one", "two"], "Which."] = "one"
    kinds: Annotated[tuple[Literal["a", "b"], ...], "Which ones."] = ("a",)
    folder: Annotated[Path | None, "Where."] = None
    files: Annotated[tuple[Path, ...], "Which files."] = ()
    overwrite: Annotated[bool, "Do it again."] = False
    sheet: Annotated[bool, "Draw a sheet."] = True
    drop_pen: Annotated[bool, "Leave out pen."] = True
    columns: Annotated[tuple[str, ...], "Columns."] = ()


def test_options_are_changed_by_name_and_the_others_stay() -> None:
    assert options_with(SomeOptions(), {}) == SomeOptions()
    assert options_with(SomeOptions(count=3), {"share": 1}) == SomeOptions(count=3, share=1.0)


@pytest.mark.parametrize("path", ["a/b", Path("a/b")])
def test_a_path_may_be_text_and_one_value_stands_for_a_list_of_one(path) -> None:
    found = options_with(SomeOptions(), {"folder": path, "files": path, "kinds": ["b", "a"]})
    assert found == SomeOptions(folder=Path("a/b"), files=(Path("a/b"),), kinds=("b", "a"))


def test_numbers_of_numpy_and_mappings_are_taken() -> None:
    found = options_with(SomeOptions(), {"count": np.int64(4), "columns": {"slide_id": "FILE", "n": 2}})
    assert found == SomeOptions(count=4, columns=("slide_id=FILE", "n=2"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cuont": 1}, "some: unknown option 'cuont'; the options are count, share, kind"),
        ({"count": 10}, "some: count must be from 1 to 9, found 10"),
        ({"count": 2.5}, "some: count: .*found 2.5"),
        ({"kind": "three"}, "some: kind: Input should be 'one' or 'two', found 'three'"),
        ({"share": "much"}, "some: share: .*found 'much'"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line_that_names_it(changes, message) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        options_with(SomeOptions(), changes)
    assert "\n" not in str(refused.value)


def test_options_are_checked_also_where_the_class_was_made_by_hand() -> None:
    with pytest.raises(ConfigError, match="count must be from 1 to 9, found 0"):
        options_with(SomeOptions(count=0), {})


# ---- the same options on the command line


@pytest.fixture
def shell():
    """Calls a command with all kinds of options; gives exit code, output, and what the command was called with."""
    seen: list = []

    @derived(count={"metavar": "N"}, drop_pen="--drop-pen/--keep-pen")
    def command(
        where: Annotated[Path, typer.Argument()],
        options: SomeOptions,
        split: Annotated[Literal["train", "all"], typer.Option(help="Part.")] = "train",
    ) -> None:
        """Do something."""
        seen.append((where, split, options))

    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(command)

    def call(*arguments: str):
        seen.clear()
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
        return result.exit_code, result.output, *seen

    return call


def test_without_options_a_command_gets_the_defaults_of_the_class(shell) -> None:
    assert shell("x") == (0, "", (Path("x"), "train", SomeOptions()))


def test_every_kind_of_option_reaches_the_class(shell) -> None:
    given = ["x", "--split", "all", "--count", "3", "--share", "1", "--kind", "two", "--kinds", "b", "--kinds", "a"]
    given += ["--folder", "f", "--files", "g", "--files", "h", "--columns", "a=b"]
    given += ["--overwrite", "--no-sheet", "--keep-pen"]
    assert shell(*given)[2] == (
        Path("x"),
        "all",
        SomeOptions(
            count=3,
            share=1.0,
            kind="two",
            kinds=("b", "a"),
            folder=Path("f"),
            files=(Path("g"), Path("h")),
            overwrite=True,
            sheet=False,
            drop_pen=False,
            columns=("a=b",),
        ),
    )


def test_help_shows_texts_defaults_choices_and_ranges(shell) -> None:
    _, text, *_ = shell("--help")
    words = " ".join(text.split())
    for said in ("Do something.", "--count N", "How many.", "1<=x<=9", "[default: 0.5]", "one|two", "--overwrite Do"):
        assert said in words
    assert "--drop-pen / --keep-pen" in words
    assert "--sheet / --no-sheet" in words
    assert "--no-overwrite" not in words


@pytest.mark.parametrize("wrong", [("--count", "0"), ("--kind", "three"), ("--split", "no"), ("--no-overwrite",), ()])
def test_a_wrong_command_line_ends_with_code_2(shell, wrong) -> None:
    code, _, *seen = shell(*(("x", *wrong) if wrong else ()))
    assert (code, seen) == (2, [])
