"""predict.json: how a folder of predictions was made. Documented in docs/formats/predictions.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsi_dbps.core.files import PathLike

TABLE_DIGEST: Final = "predictions_fingerprint"
"""The key of predict.json that binds it to its predictions.csv."""


@dataclass(frozen=True)
class PredictedBy:
    """One model behind the predictions; several make an ensemble."""

    checkpoint: Path
    """Where it lay when it was used."""
    checkpoint_fingerprint: str
    epoch: int | None
    """Epochs that it had been trained for."""
    settings: Mapping[str, Mapping[str, Any]]
    """Every setting of its run, table by table; empty where the file does not say."""


@dataclass(frozen=True)
class PredictJson:
    """What a predict.json says; what it lacks, as those of earlier versions may, is None or empty."""

    members: tuple[PredictedBy, ...] = ()
    checkpoint_fingerprint: str | None = None
    """Of the member, or of all members together."""
    failed: tuple[str, ...] = ()
    """One line, beginning with its id, for each slide that could not be predicted."""
    predictions_fingerprint: str | None = None
    """Digest of the predictions.csv that was written with it."""
    wsi_dbps_version: str | None = None


def read_predict_json(folder: PathLike) -> PredictJson:
    """What predict.json of a folder of predictions says; nothing where it is missing or holds something else."""
    said = json_object(Path(folder) / "predict.json")
    failed = said.get("failed")
    return PredictJson(
        members=_members(said),
        checkpoint_fingerprint=_text(said.get("checkpoint_fingerprint")),
        failed=tuple(str(line) for line in failed) if isinstance(failed, list) else (),
        predictions_fingerprint=_text(said.get(TABLE_DIGEST)),
        wsi_dbps_version=_text(said.get("wsi_dbps_version")),
    )


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is missing or holds something else."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _members(said: dict[str, Any]) -> tuple[PredictedBy, ...]:
    """The models, if each is named as it should be; version 0.1 knew one, and named it beside everything else."""
    members = said.get("members", [said])
    try:
        return tuple(
            PredictedBy(
                Path(member["checkpoint"]),
                str(member["checkpoint_fingerprint"]),
                epoch if isinstance(epoch := member.get("epoch"), int) else None,
                settings if isinstance(settings := member.get("settings"), dict) else {},
            )
            for member in members
        )
    except (AttributeError, KeyError, TypeError):
        return ()


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
