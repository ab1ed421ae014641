"""How good an epoch was: loss and AUROC on whole validation slides, and which epoch is the best."""

from __future__ import annotations

import zlib
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch

from wsi_dbps.models.device import autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from wsi_dbps.models.slide_model import SlideModel
    from wsi_dbps.training.data import TrainingData
    from wsi_dbps.training.distributed import World
    from wsi_dbps.training.settings import LoopConfig


def validate(
    model: SlideModel,
    data: TrainingData,
    criterion: nn.Module,
    precision: torch.dtype,
    world: World,
    stopping: Callable[[], bool],
) -> tuple[float, float | None] | None:
    """Loss and AUROC (macro one-vs-rest beyond two classes) of whole validation slides; None where it has no AUROC.

    The slides are shared out over the processes. None in all, if one of them is told to stop meanwhile.
    """
    from sklearn.metrics import roc_auc_score

    logits_BC = torch.zeros(len(data.val), len(data.classes))
    mine = list(world.mine(range(len(data.val))))
    with autocast(model.device, precision):
        for i, following in zip_longest(mine, mine[1:]):
            if stopping():
                break
            bag = data.val[i]
            if following is not None:
                coming = data.val[following]
                coming.expect(model.first_reads(torch.arange(coming.num_patches)))
            draws = torch.Generator().manual_seed(zlib.crc32(bag.record.slide_id.encode()))  # as prediction draws
            logits_BC[i] = model.predict(bag, draws).logits_C
    world.sum_tensor(logits_BC)
    if world.sum([float(stopping())])[0] > 0:
        return None
    targets_B = data.targets(data.val)
    loss = float(criterion(logits_BC.to(model.device), targets_B.to(model.device)))
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


def patience_is_over(history: Sequence[dict[str, Any]], loop: LoopConfig) -> bool:
    """Whether the last `patience` epochs brought nothing better."""
    return bool(
        history and loop.patience is not None and len(history) - best_row(history, loop)["epoch"] >= loop.patience
    )
