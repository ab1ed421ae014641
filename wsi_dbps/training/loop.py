"""The training loop, from top to bottom."""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from wsi_dbps.bags.bags import CacheBag, PatchReader
from wsi_dbps.bags.gpu_decode import pick_decoder
from wsi_dbps.core.errors import CheckpointError, ConfigError, StoppedError, TrainingError, one_line
from wsi_dbps.core.output_folder import output_folder
from wsi_dbps.core.progress import Progress
from wsi_dbps.formats.selection_record import VisitRecord, record_path, write_selection_record
from wsi_dbps.models.device import autocast, pick_device, pick_precision
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.training.augment import augment
from wsi_dbps.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_history
from wsi_dbps.training.cost import check_budget
from wsi_dbps.training.data import TrainingData, fitted, load_data
from wsi_dbps.training.distributed import World, joined, stopped
from wsi_dbps.training.optimizer import build_optimizer, lr_share, set_learning_rate, update_average
from wsi_dbps.training.run_folder import FILES, begin_run, check_no_run, check_same_run, note_changes
from wsi_dbps.training.settings import size_bytes
from wsi_dbps.training.stopping import told_to_stop
from wsi_dbps.training.tensorboard import write_events
from wsi_dbps.training.validate import best_row, patience_is_over, validate
from wsi_dbps.training.visits import draw_visit, exploring, read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.training.settings import RunConfig
    from wsi_dbps.training.stopping import Stopping

REPAIR: Final = "put back an intact copy, or delete it, and --resume trains this run again from its first epoch"


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


@dataclass
class _Epoch:
    """How far an epoch has come: what last.pt holds beyond weights and optimizer to go on in its midst."""

    step: int = 0
    """Optimizer steps done."""
    loss_sum: float = 0.0
    """Of the losses of the slides visited."""
    num_slides: int = 0
    explored: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    """Seconds waited for pixels; of several processes the mean."""

    @property
    def loss(self) -> float:
        return self.loss_sum / max(1, self.num_slides)

    @property
    def data_wait(self) -> float:
        return self.waited_s / max(1e-9, self.seconds)


def train(
    cohort: Cohort, caches: PathLike, run: PathLike, config: RunConfig, *, resume: bool = False
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
    loop = config.training
    with (
        joined(loop.wait_minutes) as world,
        told_to_stop() as stopping,
        _deterministic(loop.deterministic),
        _held(run, world, new=not resume),
    ):
        if not resume:
            check_no_run(run)
        device = pick_device(loop.device, num_processes=world.size, local_rank=world.local_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if world.size > 1 and config.encoder.batch_norm == "train":
            raise ConfigError("[encoder] batch_norm = 'train': not in several processes, whose statistics would differ")
        budget, decoder = start_budget(loop.vram, device), pick_decoder(loop.decode, device)
        with closing(PatchReader(loop.decode_threads, pin_memory=device.type == "cuda", gpu=decoder)) as reader:
            data = load_data(cohort, caches, reader, loop, config.patches)
            config = replace(config, encoder=fitted(config.encoder, data.kind))
            last = _last_checkpoint(run, config, data) if resume else None
            torch.manual_seed(loop.seed)
            parts = (config.encoder, config.aggregator, config.selection)
            model = SlideModel(len(data.classes), *parts, load_weights=last is None).to(device)
            # All processes have a model before one writes: a start that fails leaves no folder that refuses the next.
            world.sum([0.0])
            if not resume and world.rank == 0:
                begin_run(run, config, cohort.part("train", "val"), data, f"{device} x {world.size}")
            elif world.rank == 0:
                note_changes(run, config)
                if last is None:
                    print(f"{run}: has no last.pt yet; goes on from the first epoch", file=sys.stderr)
            return _fit(model, data, run, config, last, reader, device, budget, world, stopping)


def _held(run: Path, world: World, *, new: bool) -> AbstractContextManager[None]:
    """The run folder for this run alone; process 0, which writes it, holds it for all."""
    return output_folder(run, "train", FILES if new else ()) if world.rank == 0 else nullcontext()


def _fit(  # noqa: PLR0912, PLR0915 - it reads straight down
    model: SlideModel,
    data: TrainingData,
    run: Path,
    config: RunConfig,
    last: Checkpoint | None,
    reader: PatchReader,
    device: torch.device,
    budget: int | None,
    world: World,
    stopping: Stopping,
) -> TrainingResult:
    loop, precision = config.training, pick_precision(config.training.precision, device)
    average = deepcopy(model) if loop.ema else None
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(model, config.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    weight_C = (data.class_weights() if loop.class_weights == "balanced" else torch.ones(len(data.classes))).to(device)
    history: list[dict[str, Any]] = []
    now, visited = _Epoch(), []
    if last is not None:
        try:
            model.load_state_dict(last.model_state)
            optimizer.load_state_dict(last.loop_state["optimizer"])
            scaler.load_state_dict(last.loop_state["scaler"])
            if average is not None:
                average.load_state_dict(last.loop_state["average"])
            history, now = list(last.loop_state["history"]), _Epoch(**last.loop_state["epoch"])
            visited = [_visit_from(state) for state in last.loop_state["visits"]] if world.rank == 0 else []
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            why = one_line(f"{type(error).__name__} {error}")
            raise CheckpointError(f"{last.path}: is not what a run goes on from ({why}); {REPAIR}") from None
        if world.rank == 0 and history:  # a run killed between its last two files has an epoch too few there
            write_history(run / "history.csv", history)
    if loop.compile:
        model.encoder.compile(dynamic=True)

    def save(name: str) -> None:
        """Write best.pt, or last.pt with all that it takes to go on. Every process calls it."""
        nonlocal visited
        visited = world.gather(visited)
        if world.rank == 0:
            state = (
                {}
                if name == "best.pt"
                else {
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                    "history": history,
                    "epoch": asdict(now),
                    "visits": [_visit_state(visit) for visit in visited],
                }
                | ({} if average is None else {"average": average.state_dict()})
            )
            save_checkpoint(
                run / name,
                average if average is not None and name == "best.pt" else model,
                config=config,
                classes=data.classes,
                patch_kind=data.kind,
                epoch=len(history),
                loop_state=state,
            )

    def stop(where: str) -> StoppedError:
        save("last.pt")
        return stopped(run, f"{where}; all is saved", world, stopping)

    batches = math.ceil(len(data.train) / loop.batch_slides)
    num_steps = math.ceil(batches / loop.accumulate)
    left = (loop.epochs - len(history)) * len(data.train) - now.num_slides
    last_save = time.monotonic()
    with Progress("training", left, "slides", silent=world.rank > 0) as progress:
        positive = f"; {data.classes[1]} is the positive one" if len(data.classes) == 2 else ""
        progress.say(f"classes: {', '.join(data.classes)}{positive} (training.classes sets the order)")
        progress.say(model.parameters_line)
        if last is not None:
            for line in _where_it_goes_on(run, last, now, history, num_steps, config):
                progress.say(line)
        for slide_id in data.left_out:
            progress.say(f"{slide_id}: its cache holds no patch (no tissue was found); left out")
        for epoch in range(len(history), loop.epochs):
            if patience_is_over(history, loop):
                break
            # Everything random follows from seed, epoch and slide: an epoch can go on at any step.
            order = data.order(torch.Generator().manual_seed(loop.seed * 1_000_003 + epoch))
            slides = list(enumerate(order))
            batch_of = [slides[i : i + loop.batch_slides] for i in range(0, len(slides), loop.batch_slides)]
            steps = [batch_of[i : i + loop.accumulate] for i in range(0, len(batch_of), loop.accumulate)]
            visits = read_ahead(
                model,
                (
                    draw_visit(
                        data.train[i],
                        place,
                        seed=loop.seed,
                        epoch=epoch,
                        exploration=exploring(
                            epoch + place // loop.batch_slides / batches, loop.epochs, config.selection.exploration
                        ),
                        config=config.selection,
                    )
                    for step in steps[now.step :]
                    for batch in step
                    for place, i in world.mine(batch)
                ),
            )
            model.train()
            while now.step < num_steps:
                start, waited_before, explored = time.monotonic(), reader.waited_s, 0.0
                batch_losses: list[torch.Tensor] = []
                for batch in steps[now.step]:
                    mine = list(islice(visits, len(world.mine(batch))))
                    weight = weight_C[data.targets([data.train[i] for _, i in batch])].sum()
                    loss = torch.zeros((), device=device)
                    if mine:
                        with autocast(device, precision):
                            chosen = [
                                model.select(v.bag, v.kept_N, v.draws, explore=v.explore, noise=v.noise) for v in mine
                            ]
                        seeds = [v.seed for v in mine]
                        with autocast(device, precision):  # anew: casts of weights made without gradient must not stay
                            logits_BC = model(chosen, partial(augment, config=config.augmentation), seeds)
                        targets_B = data.targets([v.bag for v in mine]).to(device)
                        loss = (
                            nn.functional.cross_entropy(logits_BC.float(), targets_B, weight_C, reduction="sum")
                            / weight
                        )
                        scaler.scale(loss / len(steps[now.step])).backward()
                    batch_losses.append(loss.detach())
                    explored += sum(v.explore for v in mine)
                    if loop.record:
                        visited += [v.record(c) for v, c in zip(mine, chosen, strict=True)] if mine else []
                waited_s = (reader.waited_s - waited_before) / world.size
                # One exchange per step: losses, so that all processes see the same, and whether to save or to stop.
                overdue = world.rank == 0 and time.monotonic() - last_save >= 60 * loop.save_every_minutes
                *losses, explored, waited_s, must_save, must_stop = world.sum(
                    [*torch.stack(batch_losses).tolist(), explored, waited_s, float(overdue), float(stopping())]
                )
                for value, batch in zip(losses, steps[now.step], strict=True):
                    _check_finite(value, "loss", epoch, [data.train[i] for _, i in batch], model)
                step = epoch * num_steps + now.step
                set_learning_rate(optimizer, lr_share(step, num_steps * loop.epochs, config.optimizer.warmup))
                world.sum_gradients(parameters)
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm or math.inf).item()
                if not scaler.is_enabled():  # in fp16 the scaler itself skips a step that overflows
                    bags = [data.train[i] for batch in steps[now.step] for _, i in batch]
                    _check_finite(norm, "gradient", epoch, bags, model)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                if budget is not None:
                    check_budget(torch.cuda.max_memory_allocated(device), budget)
                if average is not None:
                    update_average(average, model, loop.ema, step)

                sizes = [len(batch) for batch in steps[now.step]]
                now.step += 1
                now.loss_sum += sum(value * size for value, size in zip(losses, sizes, strict=True))
                now.num_slides += sum(sizes)
                now.explored += round(explored)
                now.seconds += time.monotonic() - start
                now.waited_s += waited_s
                said = f"epoch {epoch + 1} of {loop.epochs}, loss {now.loss:.3f}, {now.data_wait:.0%} waiting for data"
                progress.advance(sum(sizes), said)
                if must_stop:
                    raise stop(f"after step {now.step} of {num_steps} of epoch {epoch + 1}")
                if must_save:
                    save("last.pt")
                    last_save = time.monotonic()

            start, waited_before = time.monotonic(), reader.waited_s
            found = validate(average or model, data, nn.CrossEntropyLoss(weight_C), precision, world, stopping)
            if found is None:
                raise stop(f"in the validation of epoch {epoch + 1}")
            now.seconds += time.monotonic() - start
            now.waited_s += world.sum([(reader.waited_s - waited_before) / world.size])[0]
            history.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": now.loss,
                    "val_loss": found[0],
                    "val_auroc": found[1],
                    "lr": optimizer.param_groups[-1]["lr"],
                    "explored": round(now.explored / len(data.train), 4),
                    "seconds": round(now.seconds, 3),
                    "data_wait": round(now.data_wait, 4),
                }
            )
            visited = world.gather(visited)
            if world.rank == 0 and loop.record:
                write_selection_record(record_path(run, epoch + 1), epoch + 1, visited)
            now, visited = _Epoch(), []
            better = best_row(history, loop) is history[-1]
            progress.say(_epoch_line(history[-1], loop.epochs, better=better))
            if better:
                save("best.pt")
            save("last.pt")
            last_save = time.monotonic()
            if world.rank == 0:
                write_history(run / "history.csv", history)
                write_events(run / "tensorboard", history[-1])
    return TrainingResult(run / "best.pt", tuple(history), best_row(history, loop), data.left_out)


def start_budget(vram: str | None, device: torch.device) -> int | None:
    """The bytes that a run may use; the device's record of its peak begins anew.

    Raises:
        ConfigError: If the device is no GPU, whose memory is not counted.
    """
    if vram is None:
        return None
    if device.type != "cuda":
        raise ConfigError(f"training.vram = {vram!r} limits a GPU's memory, and this run is on {device}; leave it out")
    torch.cuda.reset_peak_memory_stats(device)
    return size_bytes(vram)


def _check_finite(value: float, what: str, epoch: int, bags: Sequence[CacheBag], model: nn.Module) -> None:
    if math.isfinite(value):
        return
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            raise TrainingError(
                f"epoch {epoch + 1}: weights {name} are not finite before the step; the file they come from is "
                "damaged; give another"
            )
    slides = ", ".join(bag.record.slide_id for bag in bags)
    raise TrainingError(
        f"epoch {epoch + 1}, slides {slides}: the {what} is {value}; no step was taken and the last checkpoint stands; "
        "lower optimizer.lr, or set training.precision = 'fp32'"
    )


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


def _visit_state(visit: VisitRecord) -> dict[str, Any]:
    """A visit as a checkpoint holds it: tensors and plain values."""
    return {k: v if isinstance(v, (str, int, bool)) else torch.from_numpy(v.copy()) for k, v in vars(visit).items()}


def _visit_from(state: dict[str, Any]) -> VisitRecord:
    fields: dict[str, Any] = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    return VisitRecord(**fields)


def _last_checkpoint(run: Path, config: RunConfig, data: TrainingData) -> Checkpoint | None:
    """The checkpoint to go on from; None if the run was ended before its first epoch was."""
    check_same_run(run, config, data)
    if not (run / "last.pt").exists():
        return None
    try:
        last = load_checkpoint(run / "last.pt")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {REPAIR}") from None
    if last.classes != data.classes:
        raise CheckpointError(f"{last.path}: has classes {', '.join(last.classes)}, not {', '.join(data.classes)}")
    return last


def _where_it_goes_on(
    run: Path, last: Checkpoint, now: _Epoch, history: list[dict[str, Any]], num_steps: int, config: RunConfig
) -> list[str]:
    """What a resumed run prints first."""
    done, epochs, before = len(history), config.training.epochs, last.config.training.epochs
    if done >= epochs:
        return [f"{run}: all {epochs} epochs are done (for more: --set training.epochs={2 * epochs})"]
    if patience_is_over(history, config.training):
        return [f"{run}: training.patience ended it after epoch {done}; nothing is left to do"]
    place = "validation" if now.step == num_steps else f"step {now.step + 1} of {num_steps}"
    lines = [f"{run}: goes on from epoch {done + 1} of {epochs}, {place}"]
    if before != epochs:
        step, warmup = min(done * num_steps + now.step, before * num_steps - 1), config.optimizer.warmup
        old, new = (lr_share(step, num_steps * total, warmup) for total in (before, epochs))
        lines.append(
            f"training.epochs was {before}, is {epochs}: from here on the learning rate follows the schedule of "
            f"{epochs} epochs, which is at {new:.0%} of the peak here (that of {before} epochs: {old:.0%})"
        )
    return lines


def _epoch_line(row: dict[str, Any], epochs: int, *, better: bool) -> str:
    auroc = "does not exist" if row["val_auroc"] is None else f"{row['val_auroc']:.3f}"
    return (
        f"epoch {row['epoch']} of {epochs}: train loss {row['train_loss']:.3f}, val loss {row['val_loss']:.3f}, "
        f"val AUROC {auroc}, {row['seconds']:.0f} s{', the best so far' if better else ''}"
    )
