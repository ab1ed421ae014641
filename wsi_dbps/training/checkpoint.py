"""Checkpoints, and the files of a run folder: all that is needed to resume, to predict and to repeat a run.

run.toml      every setting, resolved           history.csv   a row per epoch
run.json      versions, classes, slides,        last.pt       to resume from
              fingerprints of every input       best.pt       to predict with
cohort.csv    the cohort as it was used         tensorboard/  where TensorBoard is installed
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from wsi_dbps.bags.bags import FeatureKind, PatchKind, kind_from
from wsi_dbps.core.digests import file_digest
from wsi_dbps.core.errors import CheckpointError, one_line, torch_said
from wsi_dbps.core.files import write_text, written_whole
from wsi_dbps.core.settings import build, to_dict
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.tasks.by_name import DEFAULT_TASK, stored_task
from wsi_dbps.training.settings import RunConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wsi_dbps.core.files import PathLike
    from wsi_dbps.tasks.task import Task

FORMAT: Final = "wsi-dbps checkpoint"
FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, with the settings and the classes it was trained with."""

    path: Path
    config: RunConfig
    classes: tuple[str, ...]
    patch_kind: PatchKind | FeatureKind
    epoch: int
    """Number of epochs done."""
    model_state: dict[str, torch.Tensor]
    loop_state: dict[str, Any]
    """What `Trainer.state_dict` holds besides the model; empty in best.pt."""
    task: Task
    """What the slides were asked."""

    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the file's content."""
        return file_digest(self.path)

    def build_model(self, device: torch.device) -> SlideModel:
        """The model with its weights, in evaluation mode."""
        c = self.config
        model = SlideModel(self.task.num_outputs, c.encoder, c.aggregator, c.selection, load_weights=False)
        try:
            model.load_state_dict(self.model_state)
        except RuntimeError as error:
            raise CheckpointError(f"{self.path}: weights do not fit its settings: {one_line(error)}") from None
        return model.to(device).eval()


def save_checkpoint(
    path: Path,
    model: SlideModel,
    *,
    config: RunConfig,
    classes: Sequence[str],
    patch_kind: PatchKind | FeatureKind,
    epoch: int,
    loop_state: Mapping[str, Any],
    task: str = DEFAULT_TASK,
) -> None:
    """Write a checkpoint atomically; the default task is not written, as in files of earlier versions.

    Raises:
        OutputError: If it cannot be written; an older one of the same name stays.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": to_dict(config),
        "classes": list(classes),
        "patch_kind": asdict(patch_kind),
        "epoch": epoch,
        "model": model.state_dict(),
        "loop": dict(loop_state),
    } | ({} if task == DEFAULT_TASK else {"task": task})
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with written_whole(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def load_checkpoint(path: PathLike) -> Checkpoint:
    """Read a checkpoint on the CPU; nothing in it is executed.

    Raises:
        CheckpointError: If it is missing, damaged, or of another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; is this a run folder of `wsi-dbps train`?")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint: {type(error).__name__} {torch_said(error)}"
        ) from None
    found = (content.get("format"), content.get("format_version")) if isinstance(content, dict) else (None, None)
    if found != (FORMAT, FORMAT_VERSION):
        raise CheckpointError(f"{path}: is {found[0]!r} version {found[1]}, not {FORMAT!r} version {FORMAT_VERSION}")
    try:
        return Checkpoint(
            path=path,
            config=build(RunConfig, content["config"], str(path)),
            classes=tuple(content["classes"]),
            patch_kind=kind_from(content["patch_kind"]),
            epoch=content["epoch"],
            model_state=dict(content["model"]),
            loop_state=content["loop"],
            task=stored_task(path, content.get("task", DEFAULT_TASK), content["classes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: a checkpoint that is not whole: {type(error).__name__} {one_line(error)}"
        ) from None


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write history.csv, a row per epoch."""
    out = io.StringIO()
    if history:
        writer = csv.DictWriter(out, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    write_text(path, out.getvalue())
