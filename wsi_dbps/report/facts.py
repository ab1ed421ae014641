"""What a report says of the making of the predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dbps.formats.predict_json import read_predict_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from wsi_dbps.formats.predict_json import PredictedBy


def facts_of(preds: Sequence[Path]) -> dict[str, str]:
    """What predict.json says of how the predictions of these folders were made, where there is one."""
    made = [read_predict_json(pred) for pred in preds if (pred / "predict.json").exists()]
    members = [member for one in made for member in one.members]
    if not members:
        return {"predict.json": "cannot be used: it names no checkpoint"} if made else {}

    def each(say: Callable[[PredictedBy], str]) -> str:
        return "; ".join(dict.fromkeys(map(say, members)))

    def selection(member: PredictedBy) -> str:
        of = member.settings["selection"]
        return f"{of['preset']}, M = {of['num_salient']}, S = {of['num_subsalient']}"

    try:
        return {
            "Checkpoint": each(lambda m: f"{m.checkpoint} ({m.checkpoint_fingerprint}), epoch {m.epoch}"),
            "Encoder": each(lambda m: str(m.settings["encoder"]["name"])),
            "Selection": each(selection),
            "Seed": each(lambda m: str(m.settings["training"]["seed"])),
            "wsi-dbps": "; ".join(dict.fromkeys(str(one.wsi_dbps_version) for one in made)),
        }
    except (KeyError, TypeError) as error:  # settings of another version, or edited
        return {"predict.json": f"cannot be used: {type(error).__name__}: {error}"[:200]}
