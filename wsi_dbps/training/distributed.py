"""Training in several processes, one per GPU, started by torchrun; and one process as the special case.

Each process selects and encodes its own slides of a batch. Before a step the gradients are added up over the processes,
so that all take the same step. This is one explicit sum over a flat buffer instead of DistributedDataParallel, which
does not fit here: the loss weights each slide's gradient already, processes may have unequal numbers of slides, or
none, and selection calls the encoder without gradient a different number of times in each process.
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
    """The processes of a run. Every process must call these methods in the same order."""

    rank: int = 0
    """The number of this process; process 0 writes the files."""
    size: int = 1
    local_rank: int = 0
    """The number of this process on its machine, which is also the number of its GPU."""

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of a list that every process has."""
        return items[self.rank :: self.size]

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over the processes of each number.

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
        """Add gradients up over the processes, in place; a parameter without gradient in any process stays without."""
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
        """The items of all processes, in process 0; an empty list in the others."""
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
    """Join the processes that torchrun started together with this one; without torchrun, this one is alone.

    Args:
        wait_minutes: How long a process waits for the others before it gives up.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        yield ALONE
        return
    if distributed.is_initialized():  # by a caller that joins once and trains several runs
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
        # If Python ends while Gloo's threads run, they abort the process (exit code 134). Gloo's group can be destroyed
        # without the other processes; NCCL's would wait for them after an error, and they may have ended.
        if together or backend == "gloo":
            distributed.destroy_process_group()


def stopped(place: Path, where: str, world: World, stopping: Stopping) -> StoppedError:
    """The error with which all processes end after one was told to stop. All of them call it, and get the same.

    Args:
        place: The run folder, or the folder of all folds.
        where: How far the run has come.
        world: The processes.
        stopping: What this process was told. If SIGTERM reached any process, all end with its exit code.
    """
    by, code = ("SIGTERM", 143) if world.sum([float(stopping.by_sigterm)])[0] else ("Ctrl-C", 130)
    return StoppedError(f"{place}: ended by {by} {where}", exit_code=code)
