"""AdamW with linear warm-up and cosine decay; the learning rate is a function of the step alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.models.encoders.base import PatchEncoder

if TYPE_CHECKING:
    from torch import nn

    from wsi_dbps.models.encoders.base import Projector
    from wsi_dbps.models.slide_model import SlideModel
    from wsi_dbps.training.settings import OptimizerConfig

FINAL_SHARE: Final = 0.01
"""Fraction of the peak learning rate at which the cosine ends."""


def build_optimizer(model: SlideModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW for encoder and aggregator; each parameter group stores its peak learning rate under `peak`.

    Weight decay applies to matrices and filters only; norms, biases and the query are vectors and have none.
    """
    groups: list[dict[str, Any]] = []
    encoder_peak = config.encoder_lr or config.lr
    parts: list[tuple[nn.Module, float]] = [(model.encoder, encoder_peak), (model.aggregator, config.lr)]
    if config.layer_decay < 1:
        groups = _by_layer(model.encoder, encoder_peak, config)
        parts[0] = (model.encoder.project, encoder_peak)
    for part, peak in parts:
        parameters = [p for p in part.parameters() if p.requires_grad]
        for decay, chosen in (
            (config.weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            groups.append({"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]])


def _by_layer(encoder: PatchEncoder | Projector, peak: float, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameter groups whose peak falls by a factor `layer_decay` per layer from the top; layers as timm defines them.

    Raises:
        ConfigError: If the encoder is not one of timm's, which define their layers.
    """
    from timm.optim._param_groups import param_groups_layer_decay

    backbone = encoder.backbone if isinstance(encoder, PatchEncoder) else None
    if backbone is None or not hasattr(backbone, "group_matcher"):
        raise ConfigError("[optimizer] layer_decay: the encoder does not say which its layers are; set it to 1.0")
    found = param_groups_layer_decay(backbone, config.weight_decay, layer_decay=config.layer_decay)
    return [
        {"params": g["params"], "lr": peak, "peak": peak * g["lr_scale"], "weight_decay": g["weight_decay"]}
        for g in found
    ]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, num_steps: int) -> None:
    """Move the average weights towards the model's by 1 - decay, but at step t by at least 9 / (10 + t).

    Not torch's `AveragedModel`: it copies the weights at its first update and stores them under other names, so that
    older checkpoints would go on with other results.
    """
    decay = min(decay, (1 + num_steps) / (10 + num_steps))
    for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter, 1 - decay)
    for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)


def lr_share(step: int, num_steps: int, warmup: float) -> float:
    """Fraction of the peak learning rate at a step, counted from 0.

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
    """Set the learning rate of every group to this fraction of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
