"""Training from a cohort and its caches to a run folder."""

from __future__ import annotations

import os
import sys
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wsi_dbps.bags.bags import PatchReader
from wsi_dbps.bags.gpu_decode import pick_decoder
from wsi_dbps.core.errors import ConfigError, StoppedError
from wsi_dbps.core.output_folder import output_folder
from wsi_dbps.core.progress import Progress
from wsi_dbps.models.device import pick_device
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.training.data import fitted, load_data
from wsi_dbps.training.distributed import joined, stopped
from wsi_dbps.training.optimizer import lr_share
from wsi_dbps.training.run_folder import FILES, begin_run, check_no_run, note_changes
from wsi_dbps.training.saving import RunSaver, go_on_from, last_checkpoint
from wsi_dbps.training.stopping import told_to_stop
from wsi_dbps.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.training.checkpoint import Checkpoint
    from wsi_dbps.training.data import TrainingData
    from wsi_dbps.training.distributed import World
    from wsi_dbps.training.settings import RunConfig
    from wsi_dbps.training.stopping import Stopping


@dataclass(frozen=True)
class TrainingResult:
    """What training left in the run folder."""

    checkpoint: Path
    """best.pt"""
    history: tuple[dict[str, Any], ...]
    """A row per epoch, as in history.csv."""
    best: dict[str, Any]
    """The row of the epoch that was kept."""
    left_out: tuple[str, ...]
    """Slides without a single patch."""


def to_stderr(line: str) -> None:
    """Print a line to standard error; a progress bar moves out of its way."""
    print(line, file=sys.stderr, flush=True)


def train(
    cohort: Cohort,
    caches: PathLike,
    run: PathLike,
    config: RunConfig,
    *,
    resume: bool = False,
    say: Callable[[str], None] = to_stderr,
) -> TrainingResult:
    """Train a slide model and leave a run folder that holds all that is needed to repeat it.

    Under torchrun, each process takes its share of every batch and of the validation slides, and process 0 writes the
    folder; the losses are those of one process, to rounding.

    Args:
        cohort: With labels; records whose split is neither `train` nor `val` are dropped before any file is opened.
        caches: Folder of patch caches, or of files of features.
        run: Folder to write; its files are listed in training/checkpoint.py.
        config: Settings.
        resume: Go on from the folder's last.pt, which must come from the same settings and inputs. The result is that
            of an unbroken run; on a CPU, bit for bit. `training.epochs` may be larger than before: from here on the
            learning rate and exploration then follow the schedule of the larger number.
        say: Takes each line about the run, in process 0; by default it is printed to standard error.

    Raises:
        ConfigError: If `training.vram` is given and the device is no GPU, or `training.decode` cannot be met.
        TrainingError: If a part is empty or lacks a class, a loss or gradient is not finite, another process ends, or a
            step needs over 15 % more memory than `training.vram`.
        StoppedError: After SIGTERM or Ctrl-C, when the running step is done and saved.
        CacheError: If a cache is missing, damaged or of another kind.
        CheckpointError: If there is a run already (without `resume`), or none or another one (with it).
        OutputError: If another command is writing to the folder, or a file of somebody else would be replaced.
    """
    caches, run = Path(caches), Path(run)
    with (
        joined(config.training.wait_minutes) as world,
        told_to_stop() as stopping,
        _deterministic(config.training.deterministic),
        # process 0 alone writes the folder, and holds it for all
        output_folder(run, "train", () if resume else FILES) if world.rank == 0 else nullcontext(),
    ):
        if not resume:
            check_no_run(run)
        device = _device(config, world)
        with closing(_reader(config, device)) as reader:
            data = load_data(cohort, caches, reader, config.training, config.patches)
            config = replace(config, encoder=fitted(config.encoder, data.kind))
            last = last_checkpoint(run, config, data) if resume else None
            model = _new_model(data, config, device, load_weights=last is None)
            trainer = Trainer(model, data, config, world=world, stopping=stopping, reader=reader)
            if last is not None:
                go_on_from(last, trainer)
            world.sum([0.0])  # every process has a model before one writes: a start that fails leaves no run folder
            if world.rank == 0 and resume:
                note_changes(run, config)
            elif world.rank == 0:
                begin_run(run, config, cohort.part("train", "val"), data, f"{device} x {world.size}")
            return _fitted(trainer, run, last, stopping, say if world.rank == 0 else _silent, resumed=resume)


def _device(config: RunConfig, world: World) -> torch.device:
    """The device of this process, which must be able to do what the settings ask for."""
    loop = config.training
    device = pick_device(loop.device, num_processes=world.size, local_rank=world.local_rank)
    if world.size > 1 and config.encoder.batch_norm == "train":
        raise ConfigError("[encoder] batch_norm = 'train': not in several processes, whose statistics would differ")
    if loop.vram is not None and device.type != "cuda":
        raise ConfigError(
            f"training.vram = {loop.vram!r} limits a GPU's memory, and this run is on {device}; leave it out"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.reset_peak_memory_stats(device)
    return device


def _reader(config: RunConfig, device: torch.device) -> PatchReader:
    loop = config.training
    decoder = pick_decoder(loop.decode, device)
    return PatchReader(loop.decode_threads, pin_memory=device.type == "cuda", gpu=decoder)


def _new_model(data: TrainingData, config: RunConfig, device: torch.device, *, load_weights: bool) -> SlideModel:
    """A model whose random weights follow from the seed alone."""
    torch.manual_seed(config.training.seed)
    parts = (config.encoder, config.aggregator, config.selection)
    return SlideModel(data.task.num_outputs, *parts, load_weights=load_weights).to(device)


def _fitted(
    trainer: Trainer,
    run: Path,
    last: Checkpoint | None,
    stopping: Stopping,
    say: Callable[[str], None],
    *,
    resumed: bool,
) -> TrainingResult:
    """Say what is trained and from where, train, and return the result."""
    data, saver = trainer.data, RunSaver(run, trainer)
    if last is not None and trainer.world.rank == 0 and trainer.history:
        saver.write_history()  # a run killed between writing last.pt and history.csv has an epoch too few there
    left = (trainer.config.training.epochs - trainer.epoch) * len(data.train) - trainer.so_far.num_slides
    with Progress("training", left, "slides", silent=trainer.world.rank > 0) as progress:
        if resumed and last is None:
            say(f"{run}: has no last.pt yet; goes on from the first epoch")
        say(data.task.summary)
        say(trainer.model.parameters_line)
        for line in _where_it_goes_on(run, last, trainer) if last is not None else ():
            say(line)
        for slide_id in data.left_out:
            say(f"{slide_id}: its cache holds no patch (no tissue was found); left out")
        fit(trainer, saver, stopping, progress, say)
    return TrainingResult(run / "best.pt", tuple(trainer.history), trainer.best, data.left_out)


def fit(trainer: Trainer, saver: RunSaver, stopping: Stopping, progress: Progress, say: Callable[[str], None]) -> None:
    """Train until all epochs are done, saving as the settings say.

    Raises:
        StoppedError: If a process was told to stop, when the running step is done and saved.
        TrainingError: As `Trainer.step`.
    """

    def stop(where: str) -> StoppedError:
        saver.save_last()
        return stopped(saver.run, f"{where}; all is saved", trainer.world, stopping)

    epochs = trainer.config.training.epochs
    while not trainer.finished:
        of_epochs = f"epoch {trainer.epoch + 1} of {epochs}"
        for batches in trainer.steps_left():
            done, now = trainer.step(batches, saver.due), trainer.so_far
            waiting = f"{now.data_wait:.0%} waiting for data"
            progress.advance(done.num_slides, f"{of_epochs}, loss {now.loss:.3f}, {waiting}")
            if done.must_stop:
                raise stop(f"after step {now.step} of {trainer.num_steps} of epoch {trainer.epoch + 1}")
            if done.must_save:
                saver.save_last()
        epoch = trainer.validate()
        if epoch is None:
            raise stop(f"in the validation of epoch {trainer.epoch + 1}")
        saver.save_record(epoch)
        found = f"train loss {epoch.row['train_loss']:.3f}, {trainer.task.metrics_line(epoch.row)}"
        best_so_far = ", the best so far" if epoch.better else ""
        say(f"{of_epochs}: {found}, {epoch.row['seconds']:.0f} s{best_so_far}")
        saver.save_epoch(epoch)


def _where_it_goes_on(run: Path, last: Checkpoint, trainer: Trainer) -> list[str]:
    """What a resumed run prints first."""
    done, step, num_steps = trainer.epoch, trainer.so_far.step, trainer.num_steps
    epochs, before = trainer.config.training.epochs, last.config.training.epochs
    if done >= epochs:
        return [f"{run}: all {epochs} epochs are done (for more: --set training.epochs={2 * epochs})"]
    if trainer.finished:
        return [f"{run}: training.patience ended it after epoch {done}; nothing is left to do"]
    place = "validation" if step == num_steps else f"step {step + 1} of {num_steps}"
    lines = [f"{run}: goes on from epoch {done + 1} of {epochs}, {place}"]
    if before != epochs:
        here, warmup = min(done * num_steps + step, before * num_steps - 1), trainer.config.optimizer.warmup
        old, new = (lr_share(here, num_steps * total, warmup) for total in (before, epochs))
        lines.append(
            f"training.epochs was {before}, is {epochs}: from here on the learning rate follows the schedule of "
            f"{epochs} epochs, which is at {new:.0%} of the peak here (that of {before} epochs: {old:.0%})"
        )
    return lines


def _silent(line: str) -> None:
    """What processes other than the first say."""


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, before it is first used
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
