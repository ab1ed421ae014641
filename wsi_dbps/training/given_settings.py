"""The settings of a run from a file, a mapping and single changes."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

from wsi_dbps.core.settings import read_toml, with_overrides

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from wsi_dbps.core.files import PathLike

SetOption = Annotated[tuple[str, ...], "Change one setting: selection.num_salient=8. May be repeated."]


def run_tables(
    config: Path | None, settings: Mapping[str, Any] | PathLike | None, changes: Sequence[str], device: str | None
) -> tuple[dict[str, Any], str]:
    """The tables of a run's settings, and what to call their source in an error.

    What comes later replaces what came before: the file, the mapping, the changes, the device.

    Args:
        config: A TOML file.
        settings: Tables as in TOML, `{"encoder": {"name": "resnet18"}}`, or keys with a dot, `{"encoder.name":
            "resnet18"}`, or both; or the path of a TOML file.
        changes: Texts such as `selection.num_salient=8`.
        device: For `training.device`; None leaves it.

    Raises:
        ConfigError: If a file cannot be read, or a change is not `table.key=value`.
    """
    if isinstance(settings, (str, os.PathLike)):
        config, settings = settings, None  # type: ignore[assignment]
    tables = read_toml(config) if config is not None else {}
    for name, value in (settings or {}).items():
        _place(tables, name, value)
    tables = with_overrides(tables, changes)
    if device is not None:
        tables = with_overrides(tables, [f"training.device={json.dumps(device)}"])
    given = [*([str(config)] if config is not None else []), *(["settings"] if settings else [])]
    given += ["--set"] * bool(changes) + ["--device"] * (device is not None)
    return tables, " with ".join(given)


def _place(tables: dict[str, Any], name: str, value: Any) -> None:
    """Put a setting, or a table of them, into the tables; a wrong one stays where the check of settings finds it."""
    table, dot, key = name.partition(".")
    if dot and isinstance(tables.setdefault(table, {}), dict):
        tables[table][key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    elif hasattr(value, "items"):
        for each, its in value.items():
            _place(tables, f"{name}.{each}", its)
    else:
        tables[name] = value
