"""The training loop, from top to bottom."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsi_dbps.dbps.drop import draw_kept, num_kept
from wsi_dbps.errors import CheckpointError, ConfigError, TrainingError
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.progress import Progress
from wsi_dbps.training.augment import augment
from wsi_dbps.training.bags import CacheBag, PatchReader
from wsi_dbps.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_history
from wsi_dbps.training.config import size_bytes
from wsi_dbps.training.cost import check_budget
from wsi_dbps.training.data import TrainingData, fitted, load_data
from wsi_dbps.training.gpu_decode import pick_decoder
from wsi_dbps.training.optimizer import build_optimizer, lr_share, set_learning_rate
from wsi_dbps.training.run_folder import begin_run, check_same_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.training.config import LoopConfig, RunConfig


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


def train(  # noqa: PLR0915 - it reads straight down
    cohort: Cohort, caches: Path, run: Path, config: RunConfig, *, resume: bool = False
) -> TrainingResult:
    """Train a slide model and leave a run folder that holds all that is needed to repeat it.

    Args:
        cohort: With labels; records whose split is neither `train` nor `val` are dropped before any file is opened.
        caches: Folder of patch caches, or of files of features.
        run: Folder to write; its files are listed in training/checkpoint.py.
        config: Settings.
        resume: Go on from the folder's last.pt, which must come from the same settings and inputs. The result is that
            of an unbroken run; on a CPU, bit for bit.

    Raises:
        ConfigError: If `training.vram` is given and the device is no GPU, or `training.decode` cannot be met.
        TrainingError: If a part is empty or lacks a class, a loss or gradient is not finite, or a step needs over 15 %
            more memory than `training.vram`.
        CacheError: If a cache is missing, damaged or of another kind.
        CheckpointError: If there is a run already (without `resume`), or none or another one (with it).
    """
    loop, device = config.training, pick_device(config.training.device)
    precision = pick_precision(loop.precision, device)
    budget = start_budget(loop.vram, device)
    reader = PatchReader(loop.decode_threads, pin_memory=device.type == "cuda", gpu=pick_decoder(loop.decode, device))
    data = load_data(cohort, caches, reader, monitor=loop.monitor, patch_filter=config.patches)
    config = replace(config, encoder=fitted(config.encoder, data.kind))
    last = _last_checkpoint(run, config, data) if resume else None
    if not resume:
        begin_run(run, config, cohort.part("train", "val"), data, str(device))

    torch.manual_seed(loop.seed)
    parts = (config.encoder, config.aggregator, config.selection)
    model = SlideModel(len(data.classes), *parts, load_weights=last is None).to(device)
    optimizer = build_optimizer(model, config.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    weight = data.class_weights() if loop.class_weights == "balanced" else torch.ones(len(data.classes))
    criterion = nn.CrossEntropyLoss(weight=weight.to(device))
    history: list[dict[str, Any]] = []
    if last is not None:
        model.load_state_dict(last.model_state)
        optimizer.load_state_dict(last.loop_state["optimizer"])
        scaler.load_state_dict(last.loop_state["scaler"])
        history = last.loop_state["history"]

    num_batches = math.ceil(len(data.train) / loop.batch_slides)
    num_steps = math.ceil(num_batches / loop.accumulate)
    left = range(len(history), loop.epochs)
    with Progress("training", len(left) * len(data.train), "slides") as progress, _Board(run, len(history)) as board:
        for slide_id in data.left_out:
            progress.say(f"{slide_id}: its cache holds no patch (no tissue was found); left out")
        for epoch in left:
            if _patience_is_over(history, loop):
                break
            start = time.monotonic()
            epoch_seed = loop.seed * 1_000_003 + epoch  # a resumed epoch draws what an unbroken run would have drawn
            torch.manual_seed(epoch_seed)
            draws = torch.Generator().manual_seed(epoch_seed)
            order = data.order(draws)
            explored = 0
            model.train()
            losses: list[float] = []
            for batch in range(num_batches):
                bags = [data.train[i] for i in order[batch * loop.batch_slides : (batch + 1) * loop.batch_slides]]
                share = exploring(epoch + batch / num_batches, loop.epochs, config.selection.exploration)
                chance, noise = (0.0, share) if config.selection.exploration_kind == "gumbel" else (share, 0.0)
                explores = (torch.rand(len(bags), generator=draws) < chance).tolist()
                explored += sum(explores)
                with autocast(device, precision):
                    chosen = [
                        model.select(bag, _kept(bag, config, draws), draws, explore=explore, noise=noise)
                        for bag, explore in zip(bags, explores, strict=True)
                    ]
                    logits_BC = model(chosen, partial(augment, config=config.augmentation))
                loss = criterion(logits_BC.float(), data.targets(bags).to(device))
                _check_finite(loss, "loss", epoch, bags)
                losses += [loss.item()] * len(bags)
                first = batch - batch % loop.accumulate
                scaler.scale(loss / min(loop.accumulate, num_batches - first)).backward()
                if (batch + 1) % loop.accumulate == 0 or batch + 1 == num_batches:
                    step = epoch * num_steps + batch // loop.accumulate
                    set_learning_rate(optimizer, lr_share(step, num_steps * loop.epochs, config.optimizer.warmup))
                    scaler.unscale_(optimizer)
                    norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm or math.inf)
                    if not scaler.is_enabled():  # in fp16 the scaler itself skips a step that overflows
                        _check_finite(norm, "gradient", epoch, bags)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                    if budget is not None:
                        check_budget(torch.cuda.max_memory_allocated(device), budget)
                progress.advance(len(bags), f"epoch {epoch + 1} of {loop.epochs}, loss {_mean(losses):.3f}")

            val_loss, val_auroc = validate(model, data, criterion, device, precision)
            history.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": _mean(losses),
                    "val_loss": val_loss,
                    "val_auroc": val_auroc,
                    "lr": optimizer.param_groups[-1]["lr"],
                    "explored": round(explored / len(data.train), 4),
                    "seconds": round(time.monotonic() - start, 3),
                }
            )
            save = partial(save_checkpoint, config=config, classes=data.classes, patch_kind=data.kind, epoch=epoch + 1)
            if best_row(history, loop) is history[-1]:
                save(run / "best.pt", model, loop_state={})
            state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "history": history}
            save(run / "last.pt", model, loop_state=state)
            write_history(run / "history.csv", history)
            board.add(history[-1])
    reader.close()
    return TrainingResult(run / "best.pt", tuple(history), best_row(history, loop), data.left_out)


def exploring(epoch: float, epochs: int, exploration: float) -> float:
    """Chance of a random selection, or scale of noise: from 1 evenly down to 0 over the first share of training.

    >>> [exploring(epoch, 10, 0.4) for epoch in (0, 1, 2, 4, 9)]
    [1.0, 0.75, 0.5, 0.0, 0.0]
    """
    return max(0.0, 1 - epoch / (exploration * epochs)) if exploration else 0.0


def validate(
    model: SlideModel,
    data: TrainingData,
    criterion: nn.Module,
    device: torch.device,
    precision: torch.dtype,
) -> tuple[float, float | None]:
    """Loss and AUROC (macro one-vs-rest beyond two classes) of whole validation slides; None where it has no AUROC."""
    from sklearn.metrics import roc_auc_score

    draws = torch.Generator().manual_seed(0)
    with autocast(device, precision):
        logits_BC = torch.stack([model.predict(bag, draws).logits_C for bag in data.val])
    targets_B = data.targets(data.val)
    loss = float(criterion(logits_BC.to(device), targets_B.to(device)))
    probabilities_BC = logits_BC.double().softmax(dim=1).numpy()
    if len(targets_B.unique()) < len(data.classes):
        return loss, None
    scores = probabilities_BC[:, 1] if len(data.classes) == 2 else probabilities_BC
    return loss, float(roc_auc_score(targets_B.numpy(), scores, multi_class="ovr"))


def best_row(history: Sequence[dict[str, Any]], loop: LoopConfig) -> dict[str, Any]:
    """The best epoch so far: of highest validation AUROC and, among equals or by setting, of lowest validation loss."""

    def goodness(row: dict[str, Any]) -> tuple[float, float]:
        return (row["val_auroc"] if loop.monitor == "auroc" else 0.0), -row["val_loss"]

    return max(history, key=goodness)


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU, else the CPU.

    Raises:
        ConfigError: If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


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


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that the forward pass computes in."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Forward passes inside compute in that type where it is safe."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


def _kept(bag: CacheBag, config: RunConfig, draws: torch.Generator) -> torch.Tensor:
    s = config.selection
    kept = num_kept(bag.num_patches, s.num_salient, rate=s.drop_rate, count=s.num_kept)
    return draw_kept(bag.num_patches, kept, draws)


def _check_finite(value: torch.Tensor, what: str, epoch: int, bags: Sequence[CacheBag]) -> None:
    if not math.isfinite(value.item()):
        slides = ", ".join(bag.record.slide_id for bag in bags)
        raise TrainingError(
            f"epoch {epoch + 1}, slides {slides}: the {what} is {value.item()}; no step was taken and the last epoch's "
            "checkpoint stands; lower optimizer.lr, or set training.precision = 'fp32'"
        )


def _patience_is_over(history: Sequence[dict[str, Any]], loop: LoopConfig) -> bool:
    return bool(
        history and loop.patience is not None and len(history) - best_row(history, loop)["epoch"] >= loop.patience
    )


def _last_checkpoint(run: Path, config: RunConfig, data: TrainingData) -> Checkpoint | None:
    """The checkpoint to go on from; None if the run was ended before its first epoch was."""
    check_same_run(run, config, data)
    if not (run / "last.pt").exists():
        return None
    last = load_checkpoint(run / "last.pt")
    if last.classes != data.classes:
        raise CheckpointError(f"{last.path}: has classes {', '.join(last.classes)}, not {', '.join(data.classes)}")
    return last


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class _Board:
    """TensorBoard where it is installed, else nothing."""

    def __init__(self, run: Path, epochs_done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=epochs_done + 1)

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        for name in ("train_loss", "val_loss", "val_auroc", "lr"):
            if self._writer is not None and row[name] is not None:
                self._writer.add_scalar(name, row[name], row["epoch"])
