"""Encoders by the name that settings give them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.models.encoders.base import PatchEncoder, Projector
from wsi_dbps.models.encoders.norms import batch_norms, with_group_norm
from wsi_dbps.models.encoders.small import SmallEncoder
from wsi_dbps.models.encoders.timm_models import timm_model
from wsi_dbps.models.encoders.weights_file import load_weights_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from wsi_dbps.models.settings import EncoderConfig

_HALF: Final = (0.5, 0.5, 0.5)
"""Mean and standard deviation of pixels, by channel, for a backbone that does not say what it was trained with."""

ENCODERS: Final[dict[str, Callable[[], nn.Module]]] = {"small_gn": SmallEncoder}
"""Our own backbones by name. Each has `num_features`; every other name is a model of timm, or `projector`."""


def build_encoder(config: EncoderConfig, *, load_weights: bool = True) -> PatchEncoder | Projector:
    """The encoder that the settings name, starting from the weights that they name.

    Args:
        config: Settings.
        load_weights: False where a checkpoint is loaded over it anyway.

    Raises:
        ConfigError: If timm has no such model, its weights cannot be had, or the file does not fit; for a projector, if
            the size of the features is not known or there is a weights file.
    """
    backbone: Any
    if config.name == "projector":
        if config.num_features is None or config.weights is not None:
            raise ConfigError("[encoder] a projector needs num_features, and starts without weights: leave them out")
        return Projector(config.num_features, config.dim)
    if config.name in ENCODERS:
        backbone = ENCODERS[config.name]()
    else:
        backbone = timm_model(config, fetch=load_weights and config.pretrained and config.weights is None)
    mean, std = (tuple(getattr(backbone, "pretrained_cfg", {}).get(key, _HALF)) for key in ("mean", "std"))
    if load_weights and config.weights is not None:
        load_weights_file(backbone, Path(config.weights), config.weights_match)
    if config.batch_norm == "group":
        if batch_norms(backbone) and (config.weights is not None or (config.pretrained and load_weights)):
            warnings.warn(
                "[encoder] batch_norm = 'group': pretrained weights lose the statistics they were trained with",
                stacklevel=2,
            )
        backbone = with_group_norm(backbone)
    encoder = PatchEncoder(backbone, backbone.num_features, mean, std, config.dim)
    if config.batch_norm == "train" and batch_norms(encoder):
        warnings.warn(
            "[encoder] batch_norm = 'train': running statistics will follow the salient patches only", stacklevel=2
        )
    return encoder.to(memory_format=torch.channels_last)
