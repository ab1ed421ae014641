"""What a run folder says of its making, and whether a run that goes on is the same run."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from wsi_dbps.cohort.manifest import write_manifest
from wsi_dbps.config import to_dict, to_toml
from wsi_dbps.errors import CheckpointError
from wsi_dbps.files import write_json, write_text
from wsi_dbps.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.training.config import RunConfig
    from wsi_dbps.training.data import TrainingData


def begin_run(run: Path, config: RunConfig, cohort: Cohort, data: TrainingData, device: str) -> None:
    """Write run.toml, run.json and cohort.csv into a fresh run folder.

    Raises:
        CheckpointError: If the folder holds a run already.
    """
    if (run / "run.json").exists():
        raise CheckpointError(f"{run}: holds a run already; pass --resume to go on, or another --out folder")
    write_text(run / "run.toml", to_toml(config))
    write_manifest(run / "cohort.csv", cohort)
    write_json(run / "run.json", _inputs(config, data) | {"made_with": _versions() | {"device": device}})


def check_same_run(run: Path, config: RunConfig, data: TrainingData) -> None:
    """Check that settings and inputs are those that the folder's run began with.

    Raises:
        CheckpointError: If the folder holds no run, or another one; naming what differs.
    """
    try:
        begun = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{run}: no run to resume here; leave --resume out to begin one") from None
    for name, value in _inputs(config, data).items():
        if name == "settings" and (changed := _changed(begun[name], value)):
            raise CheckpointError(f"{run}: cannot resume with other settings ({', '.join(changed)}); begin another run")
        if name != "settings" and begun.get(name) != value:
            raise CheckpointError(f"{run}: cannot resume, {name} differ from when the run began; begin another run")


_FREE: Final = tuple(
    f"training.{key}" for key in ("device", "decode_threads", "decode", "vram", "save_every_minutes", "wait_minutes")
)
"""Settings that a run may go on with changed: where it runs, not what it computes."""


def _inputs(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    return {
        "settings": json.loads(json.dumps(to_dict(config))),  # as run.json will hold them
        "classes": list(data.classes),
        "patches": asdict(data.kind),
        "caches": {
            part: [[bag.record.slide_id, bag.record.label, bag.cache.fingerprint] for bag in bags]
            for part, bags in (("train", data.train), ("val", data.val))
        },
        "left_out": list(data.left_out),
    }


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{table}.{key} was {old.get(table, {}).get(key)!r}, now {value!r}"
        for table, keys in new.items()
        for key, value in keys.items()
        if old.get(table, {}).get(key) != value and f"{table}.{key}" not in _FREE
    ]


def _versions() -> dict[str, str]:
    import timm
    import torch

    return {
        "wsi_dbps": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "platform": platform.platform(),
    }
