"""Training in several processes, one per GPU, started by torchrun; and one process as the special case.

Each process selects and encodes its own slides of a batch; before a step their gradients are added up, so that all take
the same step. This is done by one explicit sum over a flat buffer, not by a wrapper of the model: a slide's gradient is
weighted in the loss already, processes may have unequal numbers of slides, or none, and selection calls the encoder
without gradient at its own pace, none of which the wrapper allows for.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import torch
from torch import distributed

from wsi_dbps.core.errors import StoppedError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from wsi_dbps.training.stopping import Stopping

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run. Every process calls these in the same order."""

    rank: int = 0
    """Which of them this one is; 0 writes the files."""
    size: int = 1
    local_rank: int = 0
    """Which of those on this machine: the number of its GPU."""

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of a list that all have."""
        return items[self.rank :: self.size]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number added up over the processes.

        Raises:
            TrainingError: If another process has ended or does not answer.
        """
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self._others():
            distributed.all_reduce(total)
        return total.tolist()

    def sum_tensor(self, tensor: torch.Tensor) -> None:
        """Add a tensor up over the processes, in place."""
        if self.size > 1:
            with self._others():
                distributed.all_reduce(tensor)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add gradients up over the processes, in place; a parameter that has none anywhere keeps none."""
        if self.size == 1:
            return
        present = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        flat = torch.cat(
            [*((torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters), present]
        )
        self.sum_tensor(flat)
        *pieces, present = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, piece, anywhere in zip(parameters, pieces, present.tolist(), strict=True):
            if anywhere:
                parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_(piece.view_as(parameter))

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, on process 0; on the others none."""
        if self.size == 1:
            return items
        found: list[list[T]] | None = [[] for _ in range(self.size)] if self.rank == 0 else None
        with self._others():
            distributed.gather_object(items, found)
        return [item for part in found or [] for item in part]

    @contextmanager
    def _others(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise TrainingError(
                f"process {self.rank} of {self.size}: another process of the run has ended or does not answer "
                f"({str(error).splitlines()[0][:120]}); its own message says why; go on with --resume"
            ) from None


ALONE: Final = World()
"""A run in one process."""


@contextmanager
def joined(wait_minutes: float) -> Iterator[World]:
    """The processes that torchrun started together with this one; without torchrun, this one alone.

    Args:
        wait_minutes: How long to wait for the others before giving up.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        yield ALONE
        return
    if distributed.is_initialized():  # by a caller that joins once for several runs
        yield World(distributed.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(minutes=wait_minutes))
    together = False
    try:
        yield World(distributed.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))
        together = True
    except StoppedError:  # all processes end at the same step
        together = True
        raise
    finally:
        # Python must not end while Gloo's threads run, which then abort the process (exit code 134). Gloo's group is
        # destroyed without the other processes; NCCL's after an error waits for them, and they may be gone.
        if together or backend == "gloo":
            distributed.destroy_process_group()


def stopped(place: Path, where: str, world: World, stopping: Stopping) -> StoppedError:
    """The error to end with after a process was told to stop. All processes call it, and get the same.

    Args:
        place: The run folder, or that of all folds.
        where: How far the run came.
        world: The processes.
        stopping: What this one was told. If any was told by SIGTERM, all end with its exit code.
    """
    by, code = ("SIGTERM", 143) if world.sum([float(stopping.by_sigterm)])[0] else ("Ctrl-C", 130)
    return StoppedError(f"{place}: ended by {by} {where}", exit_code=code)
