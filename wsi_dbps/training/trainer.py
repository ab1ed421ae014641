"""One training run in memory: a step, a validation, and the state that it takes to go on.

`Trainer` computes and exchanges numbers between processes; it opens no file and prints nothing (training/loop.py does).
Everything random follows from the seed, the epoch and the slide, so that an epoch can go on at any step.
"""

from __future__ import annotations

import math
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from wsi_dbps.core.errors import TrainingError
from wsi_dbps.formats.selection_record import VisitRecord
from wsi_dbps.models.device import autocast, pick_precision
from wsi_dbps.training.augment import augment
from wsi_dbps.training.cost import check_budget
from wsi_dbps.training.distributed import ALONE
from wsi_dbps.training.optimizer import build_optimizer, lr_share, set_learning_rate, update_average
from wsi_dbps.training.settings import size_bytes
from wsi_dbps.training.validate import best_row, patience_is_over, whole_slide_outputs
from wsi_dbps.training.visits import Visit, draw_visit, exploring, read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from wsi_dbps.bags.bags import CacheBag, PatchReader
    from wsi_dbps.models.slide_model import SlideModel
    from wsi_dbps.training.data import TrainingData
    from wsi_dbps.training.distributed import World
    from wsi_dbps.training.settings import RunConfig

T = TypeVar("T")


@dataclass
class EpochSoFar:
    """Progress within an epoch, as last.pt stores it."""

    step: int = 0
    """Optimizer steps done."""
    loss_sum: float = 0.0
    """Sum of the losses of the slides visited."""
    num_slides: int = 0
    explored: int = 0
    """Visits whose patches were selected at random."""
    seconds: float = 0.0
    waited_s: float = 0.0
    """Seconds waited for pixels; the mean over the processes."""

    @property
    def loss(self) -> float:
        """Mean loss of a slide."""
        return self.loss_sum / max(1, self.num_slides)

    @property
    def data_wait(self) -> float:
        """Fraction of the time that was spent waiting for pixels."""
        return self.waited_s / max(1e-9, self.seconds)


@dataclass(frozen=True)
class Batch:
    """Slides that are encoded and pooled together."""

    bags: tuple[CacheBag, ...]
    """Those of all processes."""
    visits: Iterable[Visit]
    """Visits to this process's share of them; drawn one by one, so that the next bag is read while one is at work."""


@dataclass(frozen=True)
class StepDone:
    """What the loop needs to know after a step; the same in every process."""

    num_slides: int
    must_save: bool
    must_stop: bool


@dataclass(frozen=True)
class EpochDone:
    """What an epoch leaves."""

    row: dict[str, Any]
    """The row of history.csv."""
    visits: list[VisitRecord]
    """Visits of all processes, on process 0; on the others none."""
    better: bool
    """Whether it is the best epoch so far."""


def _never() -> bool:
    return False


class Trainer:
    """A model, its optimizer and its history, trained step by step.

    With several processes, each has a trainer and calls the same methods in the same order.
    """

    def __init__(
        self,
        model: SlideModel,
        data: TrainingData,
        config: RunConfig,
        *,
        world: World = ALONE,
        stopping: Callable[[], bool] = _never,
        reader: PatchReader | None = None,
    ) -> None:
        """Begin with the weights of the model.

        Args:
            model: On the device where it is to be trained; changed in place.
            data: Slides and task.
            config: Settings of the run.
            world: The processes of the run.
            stopping: Whether this process has been told to stop.
            reader: What the bags are read with; its waiting time is reported.
        """
        loop = config.training
        self.model, self.data, self.config, self.world = model, data, config, world
        self.task, self.device = data.task, model.device
        self.average = deepcopy(model) if loop.ema else None
        self.optimizer = build_optimizer(model, config.optimizer)
        self.history: list[dict[str, Any]] = []
        self.so_far = EpochSoFar()
        self.visited: list[VisitRecord] = []
        self._precision = pick_precision(loop.precision, self.device)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._precision == torch.float16)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._stopping, self._reader = stopping, reader
        self._budget_bytes = None if loop.vram is None else size_bytes(loop.vram)
        if loop.compile:
            model.encoder.compile(dynamic=True)

    # ---- where training stands

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0: the number of epochs done."""
        return len(self.history)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(self._num_batches / self.config.training.accumulate)

    @property
    def _num_batches(self) -> int:
        return math.ceil(len(self.data.train) / self.config.training.batch_slides)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the last ones brought no better one (`training.patience`)."""
        loop = self.config.training
        return self.epoch >= loop.epochs or patience_is_over(self.history, self.task, loop.patience)

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best epoch so far."""
        return best_row(self.history, self.task)

    @property
    def validated_model(self) -> SlideModel:
        """The model that is validated and kept: the moving average of the weights if there is one."""
        return self.model if self.average is None else self.average

    # ---- a step

    def steps_left(self) -> Iterator[list[Batch]]:
        """The batches of each step that is left of the current epoch."""
        loop = self.config.training
        order = self.data.order(torch.Generator().manual_seed(loop.seed * 1_000_003 + self.epoch))
        batches = _parts(list(enumerate(order)), loop.batch_slides)
        steps = _parts(batches, loop.accumulate)[self.so_far.step :]
        draws = (self._draw(place, i) for step in steps for batch in step for place, i in self.world.mine(batch))
        visits = read_ahead(self.model, draws)
        for step in steps:
            yield [
                Batch(tuple(self.data.train[i] for _, i in batch), islice(visits, len(self.world.mine(batch))))
                for batch in step
            ]

    def _draw(self, place: int, i: int) -> Visit:
        loop, selection = self.config.training, self.config.selection
        epochs_done = self.epoch + place // loop.batch_slides / self._num_batches
        exploration = exploring(epochs_done, loop.epochs, selection.exploration)
        return draw_visit(
            self.data.train[i], place, seed=loop.seed, epoch=self.epoch, exploration=exploration, config=selection
        )

    def step(self, batches: Sequence[Batch], save_due: Callable[[], bool] = _never) -> StepDone:
        """Take one optimizer step with the gradients of these batches.

        Args:
            batches: One item of `steps_left`.
            save_due: Whether it is time to save; asked on process 0 after the gradients are computed.

        Raises:
            TrainingError: If a loss or gradient is not finite (no step is taken), another process has ended, or the
                step needed more memory than the budget.
        """
        start, waited_before = time.monotonic(), self._waited_s()
        self.model.train()
        losses_and_explored = [self._gradient(batch, len(batches)) for batch in batches]
        explored: float = sum(explored for _, explored in losses_and_explored)
        waited_s = (self._waited_s() - waited_before) / self.world.size
        overdue = self.world.rank == 0 and save_due()
        # One exchange per step: losses, so that all processes see the same, and whether to save or to stop.
        *losses, explored, waited_s, must_save, must_stop = self.world.sum(
            [
                *torch.stack([loss for loss, _ in losses_and_explored]).tolist(),
                explored,
                waited_s,
                float(overdue),
                float(self._stopping()),
            ]
        )
        for loss, batch in zip(losses, batches, strict=True):
            self._check_finite(loss, "loss", batch.bags)
        self._update([bag for batch in batches for bag in batch.bags])
        sizes = [len(batch.bags) for batch in batches]
        now = self.so_far
        now.step += 1
        now.loss_sum += sum(loss * size for loss, size in zip(losses, sizes, strict=True))
        now.num_slides += sum(sizes)
        now.explored += round(explored)
        now.seconds += time.monotonic() - start
        now.waited_s += waited_s
        return StepDone(sum(sizes), bool(must_save), bool(must_stop))

    def _gradient(self, batch: Batch, num_batches: int) -> tuple[torch.Tensor, int]:
        """Add the gradient of this process's share of a batch; its loss, and how many visits were explorations."""
        with autocast(self.device, self._precision):
            chosen = [
                (v, self.model.select(v.bag, v.kept_N, v.draws, explore=v.explore, noise=v.noise)) for v in batch.visits
            ]
        if not chosen:
            return torch.zeros((), device=self.device), 0
        seeds = [visit.seed for visit, _ in chosen]
        with autocast(self.device, self._precision):  # anew: casts of weights made without gradient must not stay
            change = partial(augment, config=self.config.augmentation)
            outputs_BC = self.model([selected for _, selected in chosen], change, seeds)
        targets_B = self.data.targets([visit.bag for visit, _ in chosen]).to(self.device)
        weight = self.task.weights(self.data.targets(batch.bags)).sum()
        loss = self.task.loss(outputs_BC.float(), targets_B) / weight
        self._scaler.scale(loss / num_batches).backward()
        if self.config.training.record:
            self.visited += [visit.record(selected) for visit, selected in chosen]
        return loss.detach(), sum(visit.explore for visit, _ in chosen)

    def _update(self, bags: Sequence[CacheBag]) -> None:
        """Exchange the gradients, limit their norm, and change the weights."""
        config, step = self.config, self.epoch * self.num_steps + self.so_far.step
        share = lr_share(step, self.num_steps * config.training.epochs, config.optimizer.warmup)
        set_learning_rate(self.optimizer, share)
        self.world.sum_gradients(self._parameters)
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, config.optimizer.clip_norm or math.inf).item()
        if not self._scaler.is_enabled():  # in fp16 the scaler itself skips a step that overflows
            self._check_finite(norm, "gradient", bags)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self._budget_bytes is not None:
            check_budget(torch.cuda.max_memory_allocated(self.device), self._budget_bytes)
        if self.average is not None:
            update_average(self.average, self.model, config.training.ema, step)

    def _check_finite(self, value: float, what: str, bags: Sequence[CacheBag]) -> None:
        if math.isfinite(value):
            return
        for name, weights in self.model.named_parameters():
            if not torch.isfinite(weights).all():
                raise TrainingError(
                    f"epoch {self.epoch + 1}: weights {name} are not finite before the step; the file they come from "
                    "is damaged; give another"
                )
        slides = ", ".join(bag.record.slide_id for bag in bags)
        raise TrainingError(
            f"epoch {self.epoch + 1}, slides {slides}: the {what} is {value}; no step was taken and the last "
            "checkpoint stands; lower optimizer.lr, or set training.precision = 'fp32'"
        )

    def _waited_s(self) -> float:
        return 0.0 if self._reader is None else self._reader.waited_s

    # ---- a validation

    def validate(self) -> EpochDone | None:
        """Validate on whole slides and end the epoch; None if a process was told to stop meanwhile."""
        start, waited_before = time.monotonic(), self._waited_s()
        outputs_BC = whole_slide_outputs(
            self.validated_model,
            self.data.val,
            self.task.num_outputs,
            self._precision,
            self.world,
            self._stopping,
        )
        if outputs_BC is None:
            return None
        targets_B = self.data.targets(self.data.val).to(self.device)
        metrics = self.task.metrics(outputs_BC.to(self.device), targets_B)
        now = self.so_far
        now.seconds += time.monotonic() - start
        now.waited_s += self.world.sum([(self._waited_s() - waited_before) / self.world.size])[0]
        row = {
            "epoch": self.epoch + 1,
            "train_loss": now.loss,
            **metrics,
            "lr": self.optimizer.param_groups[-1]["lr"],
            "explored": round(now.explored / len(self.data.train), 4),
            "seconds": round(now.seconds, 3),
            "data_wait": round(now.data_wait, 4),
        }
        self.history.append(row)
        visits = self.world.gather(self.visited)
        self.so_far, self.visited = EpochSoFar(), []
        return EpochDone(row, visits, better=self.best is row)

    # ---- to go on

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on from here. Every process calls it; that of process 0 is whole."""
        self.visited = self.world.gather(self.visited)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "history": list(self.history),
            "epoch": asdict(self.so_far),
            "visits": [_visit_state(visit) for visit in self.visited],
        }
        return state if self.average is None else state | {"average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, also in an earlier version or in another number of processes.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError, AttributeError: If it is not such a state.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.history, self.so_far = list(state["history"]), EpochSoFar(**state["epoch"])
        self.visited = [_visit_from(visit) for visit in state["visits"]] if self.world.rank == 0 else []


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in parts of this size; the last part may be smaller."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def _visit_state(visit: VisitRecord) -> dict[str, Any]:
    """A visit as a checkpoint holds it: tensors and plain values."""
    return {k: v if isinstance(v, (str, int, bool)) else torch.from_numpy(v.copy()) for k, v in vars(visit).items()}


def _visit_from(state: dict[str, Any]) -> VisitRecord:
    fields: dict[str, Any] = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    return VisitRecord(**fields)
