"""When and what a run writes into its folder while it trains: checkpoints, selection records, curves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from wsi_dbps.core.errors import CheckpointError, one_line
from wsi_dbps.formats.selection_record import record_path, write_selection_record
from wsi_dbps.training.checkpoint import load_checkpoint, save_checkpoint, write_history
from wsi_dbps.training.run_folder import check_same_run
from wsi_dbps.training.tensorboard import write_events

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_dbps.training.checkpoint import Checkpoint
    from wsi_dbps.training.data import TrainingData
    from wsi_dbps.training.settings import RunConfig
    from wsi_dbps.training.trainer import EpochDone, Trainer

REPAIR: Final = "put back an intact copy, or delete it, and --resume trains this run again from its first epoch"


@dataclass
class RunSaver:
    """Writes the state of a trainer into its run folder. Every process calls it; process 0 writes."""

    run: Path
    trainer: Trainer
    last_save: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether `training.save_every_minutes` have passed since the last save."""
        return time.monotonic() - self.last_save >= 60 * self.trainer.config.training.save_every_minutes

    def save_last(self) -> None:
        """Write last.pt, with all that it takes to go on."""
        state = self.trainer.state_dict()
        if self.trainer.world.rank == 0:
            self._save("last.pt", {name: value for name, value in state.items() if name != "model"})
        self.last_save = time.monotonic()

    def save_record(self, epoch: EpochDone) -> None:
        """Write which patches were selected in the visits of an epoch, if the settings ask for it."""
        if self.trainer.world.rank == 0 and self.trainer.config.training.record:
            number = epoch.row["epoch"]
            write_selection_record(record_path(self.run, number), number, epoch.visits)

    def save_epoch(self, epoch: EpochDone) -> None:
        """Write best.pt if the epoch is the best so far, then last.pt and the curves."""
        if epoch.better and self.trainer.world.rank == 0:
            self._save("best.pt", {})
        self.save_last()
        if self.trainer.world.rank == 0:
            self.write_history()
            write_events(self.run / "tensorboard", epoch.row)

    def write_history(self) -> None:
        """Write history.csv."""
        write_history(self.run / "history.csv", self.trainer.history)

    def _save(self, name: str, loop_state: dict[str, object]) -> None:
        trainer = self.trainer
        save_checkpoint(
            self.run / name,
            trainer.validated_model if name == "best.pt" else trainer.model,
            config=trainer.config,
            classes=trainer.task.classes,
            patch_kind=trainer.data.kind,
            epoch=trainer.epoch,
            loop_state=loop_state,
            task=trainer.task.name,
        )


def last_checkpoint(run: Path, config: RunConfig, data: TrainingData) -> Checkpoint | None:
    """The checkpoint to go on from; None if the run ended before it wrote one.

    Raises:
        CheckpointError: If the folder holds no run, or another one, or last.pt is damaged.
    """
    check_same_run(run, config, data)
    if not (run / "last.pt").exists():
        return None
    try:
        last = load_checkpoint(run / "last.pt")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {REPAIR}") from None
    if last.classes != data.task.classes:
        raise CheckpointError(f"{last.path}: has classes {', '.join(last.classes)}, not {', '.join(data.task.classes)}")
    return last


def go_on_from(last: Checkpoint, trainer: Trainer) -> None:
    """Put a trainer into the state of a last.pt.

    Raises:
        CheckpointError: If it holds no such state.
    """
    try:
        trainer.load_state_dict({"model": last.model_state, **last.loop_state})
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        why = one_line(f"{type(error).__name__} {error}")
        raise CheckpointError(f"{last.path}: is not what a run goes on from ({why}); {REPAIR}") from None
