"""Commands from workflows: the options of a command are derived from its options class, a result is printed."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from enum import StrEnum
from types import GenericAlias
from typing import Annotated, Any, Protocol, get_args, get_origin, get_type_hints

import typer

from wsi_dbps.core.options import OptionType, choices, option_type, option_types


class Result(Protocol):
    """What a workflow returns."""

    @property
    def summary(self) -> str:
        """What the command prints."""

    @property
    def failed(self) -> Any:
        """How many, or which, slides failed."""


def finish(result: Result) -> None:
    """Print a result, from the first of several processes only; exit with code 1 if slides failed."""
    if os.environ.get("RANK", "0") == "0" and result.summary:
        print(result.summary)
    if result.failed:
        raise typer.Exit(1)


def derived(**shown: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose parameter `options` becomes an option for each field of its options class, after its other ones.

    A field `some_name` becomes `--some-name`. A switch that is off by default has no `--no-` form. Parameters of the
    command itself may be of a Literal type too.

    Args:
        shown: By field, what `typer.Option` takes besides the help text: `metavar=...`; or the names of the option as
            text: `--drop-pen/--keep-pen`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = inspect.signature(command).parameters
        cls = hints.get("options")
        declared = {} if cls is None else option_types(cls)
        parameters = [
            _parameter(name, _own(hints[name]), parameter.default)
            for name, parameter in own.items()
            if name != "options"
        ]
        for name, kind in declared.items():
            default = _default(cls, name, kind)
            parameters.append(_parameter(name, _annotation(name, kind, default, shown.get(name, {})), default))

        def called(**given: Any) -> None:
            values = {name: _plain(value) for name, value in given.items()}
            fields = {name: values.pop(name) for name in declared}
            command(**values, **({} if cls is None else {"options": cls(**fields)}))

        derived_command: Any = called
        derived_command.__name__, derived_command.__doc__ = command.__name__, command.__doc__
        # typer reads the one or the other
        derived_command.__signature__ = inspect.Signature(parameters)
        derived_command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return decorate


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _own(hint: Any) -> Any:
    """The annotation of one of the command's own parameters, with an Enum in place of a Literal."""
    if get_origin(hint) is not Annotated or not choices(option_type(hint).type):
        return hint
    return Annotated[(_enum(option_type(hint).type), *get_args(hint)[1:])]


def _annotation(name: str, kind: OptionType, default: Any, shown: dict[str, Any] | str) -> Any:
    flag = "--" + name.replace("_", "-")
    names, extra = ((shown,), {}) if isinstance(shown, str) else ((), shown)
    if not names and not (kind.type is bool and default):
        names = (flag,)
    value: Any = _enum(kind.type) if choices(kind.type) else kind.type
    value = GenericAlias(list, value) if kind.many else value
    value = value | None if kind.optional else value
    low, high = kind.range
    return Annotated[value, typer.Option(*names, help=kind.help, min=low, max=high, **extra)]


def _enum(literal: Any) -> Any:
    """What typer offers as a choice."""
    return StrEnum("Choice", {value: value for value in choices(literal)})


def _default(cls: Any, name: str, kind: OptionType) -> Any:
    default = getattr(cls, name)
    return list(default) if kind.many else default


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_plain(each) for each in value)
    return value.value if isinstance(value, StrEnum) else value
