"""Validation: outputs of the model on whole validation slides, and the rule for the best epoch."""

from __future__ import annotations

import zlib
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch

from wsi_dbps.models.device import autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wsi_dbps.bags.bags import CacheBag
    from wsi_dbps.models.slide_model import SlideModel
    from wsi_dbps.tasks.task import Task
    from wsi_dbps.training.distributed import World


def whole_slide_outputs(
    model: SlideModel,
    bags: Sequence[CacheBag],
    num_outputs: int,
    precision: torch.dtype,
    world: World,
    stopping: Callable[[], bool],
) -> torch.Tensor | None:
    """(B, C) outputs for whole slides, on the CPU; None if a process was told to stop meanwhile.

    The slides are divided among the processes; every process returns the outputs of all slides, or None.
    """
    outputs_BC = torch.zeros(len(bags), num_outputs)
    mine = list(world.mine(range(len(bags))))
    with autocast(model.device, precision):
        for i, following in zip_longest(mine, mine[1:]):
            if stopping():
                break
            bag = bags[i]
            if following is not None:
                coming = bags[following]
                coming.expect(model.first_reads(torch.arange(coming.num_patches)))
            draws = torch.Generator().manual_seed(zlib.crc32(bag.record.slide_id.encode()))  # as prediction draws
            outputs_BC[i] = model.predict(bag, draws).logits_C
    world.sum_tensor(outputs_BC)
    if world.sum([float(stopping())])[0] > 0:
        return None
    return outputs_BC


def best_row(history: Sequence[dict[str, Any]], task: Task) -> dict[str, Any]:
    """The best epoch so far by the task's measure; the first one among equals."""
    return max(history, key=task.goodness)


def patience_is_over(history: Sequence[dict[str, Any]], task: Task, patience: int | None) -> bool:
    """Whether the last `patience` epochs brought no better one; never if `patience` is None."""
    return bool(history and patience is not None and len(history) - best_row(history, task)["epoch"] >= patience)
