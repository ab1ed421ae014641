"""AdamW with linear warm-up and cosine decay, the learning rate a plain function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from wsi_dbps.models.slide_model import SlideModel
    from wsi_dbps.training.config import OptimizerConfig

FINAL_SHARE: Final = 0.01
"""Share of the peak learning rate that the cosine ends at."""


def build_optimizer(model: SlideModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over encoder and aggregator; each group remembers its peak learning rate.

    Weight decay acts on matrices and filters; norms, biases and the query are vectors and go without.
    """
    groups = []
    for part, peak in ((model.encoder, config.encoder_lr or config.lr), (model.aggregator, config.lr)):
        parameters = [p for p in part.parameters() if p.requires_grad]
        for decay, chosen in (
            (config.weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            groups.append({"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]])


def lr_share(step: int, num_steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step, counted from 0.

    Examples:
        >>> [round(lr_share(step, 10, 0.2), 2) for step in (0, 1, 2, 9)]
        [0.5, 1.0, 1.0, 0.05]
    """
    rising = round(warmup * num_steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, num_steps - rising)
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
