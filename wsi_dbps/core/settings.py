"""Settings: frozen dataclasses, read strictly from TOML, written back whole, and known by a fingerprint."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from wsi_dbps.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsi_dbps.core.files import PathLike

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass whose unknown keys and wrong types `build` refuses."""
    cls.__pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def check_ranges(config: object, **ranges: tuple[float, float]) -> None:
    """Refuse a number of `config` that is outside its range; both ends belong to it. None and text pass.

    The upper ends are far beyond any use: they keep a slip of the keyboard (1e23) from reaching code that it breaks.

    Raises:
        ValueError: Naming the setting, its range and what was found.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise ValueError(f"{name} must lie in {low} .. {high}, found {value!r}")


def read_toml(path: PathLike) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: If the file is missing or not TOML.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such settings file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def with_overrides(tables: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `tables` with each `table.key=value` set; the value is TOML, or else taken as text.

    Raises:
        ConfigError: If an assignment has no `=` or no table.

    Examples:
        >>> with_overrides({"a": {"b": 1}}, ["a.b=2", "a.c=adam"])
        {'a': {'b': 2, 'c': 'adam'}}
    """
    result = {name: dict(table) if isinstance(table, dict) else table for name, table in tables.items()}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        table, dot, key = name.strip().partition(".")
        if not (equals and dot and table and key):
            raise ConfigError(f"--set {assignment}: write it as table.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        if not isinstance(result.setdefault(table, {}), dict):
            raise ConfigError(f"--set {assignment}: {table} is not a table")
        result[table][key] = value
    return result


def build(cls: type[T], tables: dict[str, Any], source: str) -> T:
    """A settings object from plain tables; what is absent takes its default.

    Args:
        cls: A class made with `settings`, whose fields may be such classes too.
        tables: Keys to values, as read from TOML.
        source: What to call the origin in an error: a file's path, or "--set".

    Raises:
        ConfigError: On one line, naming every unknown key and every value of a wrong type or range.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        text = json.dumps(tables)  # in JSON form a TOML array can become a tuple while the check stays strict
    except TypeError as error:
        raise ConfigError(f"{source}: {error}") from None
    try:
        return TypeAdapter(cls).validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_said(cls, dict(item)) for item in error.errors())) from None


def to_toml(value: object) -> str:
    """Every setting as TOML, one table per nested class; a setting that is None is left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(to_dict(value)))


def to_dict(value: Any) -> dict[str, Any]:
    """Every setting as plain values, nested classes as dicts."""
    return dataclasses.asdict(value)


def _without_none(tables: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in tables.items() if v is not None}


def _said(cls: type, item: dict[str, Any]) -> str:
    where = [str(part) for part in item["loc"]]
    name = f"[{where[0]}] {'.'.join(where[1:])}" if len(where) > 1 else ".".join(where)
    if item["type"] == "unexpected_keyword_argument":
        return f"unknown setting {name}; known: {', '.join(_names(cls, where[:-1]))}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] != "value_error":
        message = f"{message}, found {item['input']!r}"
    return f"{name}: {message}" if name else message


def _names(cls: type, path: list[str]) -> list[str]:
    for part in path:
        field = next(f for f in dataclasses.fields(cls) if f.name == part)
        cls = field.default_factory if field.default_factory is not dataclasses.MISSING else cls  # type: ignore[assignment]
    return [f.name for f in dataclasses.fields(cls)]
