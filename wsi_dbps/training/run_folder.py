"""What a run folder says about how it was made, and whether a resumed run has the same settings and inputs."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wsi_dbps.cohort.manifest import write_manifest
from wsi_dbps.core.errors import CheckpointError, one_line
from wsi_dbps.core.files import write_json, write_text
from wsi_dbps.core.options import to_stderr
from wsi_dbps.core.settings import build, to_dict, to_toml
from wsi_dbps.core.version import __version__
from wsi_dbps.formats.reuse import differences
from wsi_dbps.models.settings import with_preset
from wsi_dbps.training.settings import RunConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.training.checkpoint import Checkpoint
    from wsi_dbps.training.data import TrainingData


FILES: Final = ("run.toml", "run.json", "cohort.csv", "history.csv", "last.pt", "best.pt")
"""The files that a run writes directly into its folder."""


def check_no_run(run: Path) -> None:
    """Check that a folder holds no run, before caches are opened and weights downloaded for a new one.

    Raises:
        CheckpointError: If it holds a run.
    """
    if (run / "run.json").exists():
        raise CheckpointError(f"{run}: holds a run already; pass --resume to go on, or another --out folder")


def begin_run(run: Path, config: RunConfig, cohort: Cohort, data: TrainingData, device: str) -> None:
    """Write run.toml, run.json and cohort.csv into a fresh run folder (`check_no_run`)."""
    write_text(run / "run.toml", to_toml(config))
    write_manifest(run / "cohort.csv", cohort)
    write_json(run / "run.json", _inputs(config, data) | {"made_with": _versions() | {"device": device}})


def settings_to_go_on(run: Path, given: Mapping[str, Any], source: str) -> RunConfig:
    """The settings of a run that was begun, updated with newly given ones that may change.

    Args:
        run: Its folder.
        given: Tables of settings; settings that they leave out stay as they were when the run began.
        source: Where they come from, for error messages.

    Raises:
        CheckpointError: If the folder holds no run, or a setting that may not change differs.
        ConfigError: If a setting is unknown or out of range.
    """
    begun = _begun(run)["settings"]
    tables = {name: dict(table) for name, table in begun.items()}
    for name, table in with_preset(given, source).items():
        tables[name] = {**tables.get(name, {}), **table} if isinstance(table, dict) else table
    config = build(RunConfig, tables, f"{run / 'run.json'} with {source}" if given else f"{run / 'run.json'}")
    _refuse_changes(run, begun, config)
    return config


def check_same_run(run: Path, config: RunConfig, data: TrainingData) -> None:
    """Check that settings and inputs are those with which the run of the folder began.

    Raises:
        CheckpointError: If the folder holds no run, or another one; naming what differs.
    """
    begun = _begun(run)
    _refuse_changes(run, begun["settings"], config)
    for name, value in _inputs(config, data).items():
        if name != "settings" and begun.get(name) != value:
            raise CheckpointError(f"{run}: cannot resume, {name} differ from when the run began; begin another run")


def note_changes(run: Path, config: RunConfig) -> None:
    """Rewrite run.toml and run.json if settings have changed, so that the next --resume uses them."""
    begun, settings = _begun(run), _plain(config)
    if begun["settings"] != settings:
        write_text(run / "run.toml", to_toml(config))
        write_json(run / "run.json", begun | {"settings": settings})


_FREE: Final = tuple(
    f"training.{key}" for key in ("device", "decode_threads", "decode", "vram", "save_every_minutes", "wait_minutes")
)
"""Settings that may change on resuming, because they decide where a run takes place and not what it computes."""


_EPOCHS: Final = "training.epochs"


def _begun(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(table, dict) for table in begun["settings"].values()):
            raise TypeError("settings are no tables")
    except FileNotFoundError:
        raise CheckpointError(f"{run}: no run to resume here; leave --resume out to begin one") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = one_line(f"{type(error).__name__} {error}")
        raise CheckpointError(
            f"{path}: is damaged ({why}); put back an intact copy, or begin another run in another --out folder"
        ) from None
    found: dict[str, Any] = begun
    return found


def _refuse_changes(run: Path, begun: dict[str, Any], config: RunConfig) -> None:
    if changed := _changed(begun, _plain(config)):
        raise CheckpointError(
            f"{run}: cannot resume with other settings ({', '.join(changed)}); leave them out, or begin another run"
        )


def _plain(config: RunConfig) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(to_dict(config)))  # as run.json holds them
    return plain


def _inputs(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    return {
        "settings": _plain(config),
        "classes": list(data.task.classes),
        "patches": asdict(data.kind),
        "caches": {
            part: [[bag.record.slide_id, bag.record.label, bag.cache.fingerprint] for bag in bags]
            for part, bags in (("train", data.train), ("val", data.val))
        },
        "left_out": list(data.left_out),
    }


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs and may not, each as one says it."""
    now = {f"{table}.{key}": value for table, keys in new.items() for key, value in keys.items()}
    begun = {f"{table}.{key}": old.get(table, {}).get(key) for table, keys in new.items() for key in keys}
    epochs, before = now[_EPOCHS], begun[_EPOCHS]
    if isinstance(before, int) and epochs >= before:
        del now[_EPOCHS]
    return differences(
        begun,
        {name: value for name, value in now.items() if name not in _FREE},
        words={_EPOCHS: f"{_EPOCHS} was {before!r}, now {epochs!r}, and may only grow"},
        sentence="{name} was {before}, now {now}",
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import torch

    return {
        "wsi_dbps": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),  # importing it takes as long as an epoch of a small run
        "platform": platform.platform(),
    }


def warn_of_more_to_come(run: PathLike, checkpoint: Checkpoint, say: Say = to_stderr) -> None:
    """Say so if the run's training has not ended, as far as its history tells: its best epoch may be yet to come."""
    run = Path(run)
    if not (run / "history.csv").is_file():
        return
    loop = checkpoint.config.training
    epochs = len((run / "history.csv").read_text(encoding="utf-8").splitlines()) - 1
    out_of_patience = loop.patience is not None and epochs - checkpoint.epoch >= loop.patience
    if epochs < loop.epochs and not out_of_patience:
        say(f"{run} has trained {epochs} of {loop.epochs} epochs; its best so far, epoch {checkpoint.epoch}, is taken")
