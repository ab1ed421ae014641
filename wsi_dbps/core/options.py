"""How the options of a workflow are declared, checked and changed.

The options of a command are the fields of a class made with `core.settings.settings`. Each field is declared as
`name: Annotated[type, "Help text.", Range(low, high)] = default`; the range is optional. The command line derives its
options from the same fields (cli/derive.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.core.settings import build

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")
Say = Callable[[str], None]
"""Takes one line of notice, for instance a warning. The default of every workflow is `to_stderr`."""


def to_stderr(line: str) -> None:
    """Print a line of notice to standard error."""
    print(f"wsi-dbps: {line}", file=sys.stderr, flush=True)


class Range(NamedTuple):
    """The smallest and the largest value that an option may have; both are allowed, None is no limit."""

    min: float | None = None
    max: float | None = None


class OptionType(NamedTuple):
    """What the declaration of an option says."""

    type: Any
    """Of one value: str, int, float, bool, Path, or Literal[...]."""
    help: str
    many: bool
    """Whether the option is a tuple of values."""
    optional: bool
    """Whether it may be None."""
    range: Range


@cache
def option_types(cls: type) -> dict[str, OptionType]:
    """The options that a class declares, by name, in order."""
    return {name: option_type(hint) for name, hint in get_type_hints(cls, include_extras=True).items()}


def option_type(hint: Any) -> OptionType:
    """What `Annotated[type, "Help.", Range(...)]` says; the type alone will do.

    Examples:
        >>> option_type(Annotated[tuple[int, ...] | None, "Sizes.", Range(1)])
        OptionType(type=<class 'int'>, help='Sizes.', many=True, optional=True, range=Range(min=1, max=None))
    """
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    optional = get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)
    if optional:
        kind = next(each for each in get_args(kind) if each is not NoneType)
    many = get_origin(kind) is tuple
    text = next((note for note in notes if isinstance(note, str)), "")
    limits = next((note for note in notes if isinstance(note, Range)), Range())
    return OptionType(get_args(kind)[0] if many else kind, text, many, optional, limits)


def options_with(options: T, changes: Mapping[str, Any]) -> T:
    """The options with some of them changed, all checked.

    A path may be a text or any path object; where several values are allowed, a list, a single value, or a mapping in
    place of texts such as `slide_id=FILENAME`, will do.

    Args:
        options: An object of an options class.
        changes: Names of options to new values.

    Raises:
        ConfigError: Naming an unknown option, or each value of a wrong type or range.
    """
    cls: Any = type(options)
    command, types = cls.__name__.removesuffix("Options").lower(), option_types(cls)
    if unknown := [name for name in changes if name not in types]:
        raise ConfigError(f"{command}: unknown option {unknown[0]!r}; the options are {', '.join(types) or 'none'}")
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(cls)} | dict(changes)
    checked: T = build(cls, {name: _plain(value, many=types[name].many) for name, value in values.items()}, command)
    for name, declared in types.items():
        _check_range(command, name, getattr(checked, name), declared.range)
    return checked


def _check_range(command: str, name: str, value: object, limits: Range) -> None:
    low, high = limits
    if not isinstance(value, (int, float)):
        return
    if (low is not None and value < low) or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        raise ConfigError(f"{command}: {name} must be {wanted}, found {value!r}")


def _plain(value: Any, *, many: bool = False) -> Any:
    """A value as JSON has it: text for a path, a list for what holds several, a Python number for one of numpy's."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return [f"{key}={each if isinstance(each, str) else json.dumps(each)}" for key, each in value.items()]
    if hasattr(value, "item"):
        value = value.item()
    return [value] if many and value is not None else value


def choices(kind: Any) -> tuple[str, ...]:
    """The values of a Literal type; none for another type."""
    return get_args(kind) if get_origin(kind) is Literal else ()
