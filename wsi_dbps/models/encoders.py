"""Encoders: from uint8 patches to embeddings. timm's models by name, a small one for training on a CPU, and a projector
for patches that are features already."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsi_dbps.errors import ConfigError, torch_said

if TYPE_CHECKING:
    from wsi_dbps.models.config import EncoderConfig

_HALF = (0.5, 0.5, 0.5)


class PatchEncoder(nn.Module):
    """A backbone with the normalisation that it was trained with, so that every caller hands it plain pixels."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, backbone: nn.Module, num_features: int, mean: tuple[float, ...], std: tuple[float, ...], dim: int | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Identity() if dim is None else _projection(num_features, dim)
        self.dim = dim or num_features
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixels_NCPP: torch.Tensor) -> torch.Tensor:
        """(N, D) embeddings of patches given as uint8, or as floats from 0 to 1."""
        if pixels_NCPP.dtype == torch.uint8:
            pixels_NCPP = pixels_NCPP / 255
        normal_NCPP = ((pixels_NCPP - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        embeddings_ND: torch.Tensor = self.project(self.backbone(normal_NCPP))
        return embeddings_ND


class Projector(nn.Module):
    """What `dim` adds to a pixel encoder, alone: on a frozen encoder's features it is that encoder with this `dim`."""

    def __init__(self, num_features: int, dim: int | None) -> None:
        super().__init__()
        self.dim = dim or num_features
        self.project = _projection(num_features, self.dim)

    def forward(self, features_NF: torch.Tensor) -> torch.Tensor:
        """(N, D) embeddings of (N, F) features."""
        embeddings_ND: torch.Tensor = self.project(features_NF)
        return embeddings_ND


def _projection(num_features: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_features, dim), nn.LayerNorm(dim))


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
    if config.name == "small_gn":
        backbone, mean, std = SmallEncoder(), _HALF, _HALF
    else:
        backbone = _timm_model(config, fetch=load_weights and config.pretrained and config.weights is None)
        mean, std = (tuple(backbone.pretrained_cfg.get(key, _HALF)) for key in ("mean", "std"))
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


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Every layer that normalises by the statistics of its batch."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def with_group_norm(module: nn.Module) -> nn.Module:
    """The module with group norm in place of every batch norm, whose scale and shift it keeps; changed in place.

    32 groups (Y. Wu and K. He, "Group normalization", ECCV 2018), or fewer, so that a group has 8 channels or more.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        channels = module.num_features
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (channels >= 8 * g or g == 1))
        norm = nn.GroupNorm(groups, channels, eps=module.eps, affine=module.affine)
        if module.affine:
            norm.weight, norm.bias = module.weight, module.bias
        # timm's fused layers drop and activate after they normalise
        after = [part for name in ("drop", "act") if isinstance(part := getattr(module, name, None), nn.Module)]
        return nn.Sequential(norm, *after) if after else norm
    for name, child in module.named_children():
        setattr(module, name, with_group_norm(child))
    return module


class SmallEncoder(nn.Sequential):
    """Four strided convolutions with group norm, 0.16 M parameters: independent of its batch, and quick on a CPU.

    Each patch is first brought to the same mean and contrast per channel, so that it cannot tell slides by their stain.
    A position of its last map sees 31 px, which is what it is for: the texture of nuclei at 1 to 2 µm per pixel.
    """

    num_features = 128

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.InstanceNorm2d(3, eps=1e-3)]
        for before, after in pairwise((3, 24, 48, 96, self.num_features)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(8, after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _timm_model(config: EncoderConfig, *, fetch: bool) -> Any:
    import timm

    from_hub = config.name.startswith(("hf-hub:", "hf_hub:"))
    if not from_hub and not timm.is_model(config.name):
        near = timm.list_models(f"*{config.name}*")[:5]
        hint = f"; there are {', '.join(near)}" if near else "; see timm.list_models()"
        raise ConfigError(f"[encoder] name: timm {timm.__version__} has no model {config.name!r}{hint}, or small_gn")
    try:
        return timm.create_model(config.name, pretrained=fetch, num_classes=0)
    except Exception as error:
        if not (fetch or from_hub):  # of a model on the hub the architecture is fetched too
            raise
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"[encoder] weights of {config.name} cannot be fetched ({type(error).__name__}: {said}); "
            "without a network give a file as encoder.weights, or set encoder.pretrained = false to start from random "
            "weights"
        ) from error


def load_weights_file(backbone: nn.Module, path: Path, match: str) -> None:
    """Load a local weights file into a backbone; a classifier head that the file has beyond it is left out.

    Args:
        backbone: What to load into.
        path: .safetensors, or anything `torch.load` reads with `weights_only`.
        match: `name`, or `order`: tensor after tensor, each of the same shape.

    Raises:
        ConfigError: If the file is missing or not weights, or does not fit; with the first tensor that does not.
    """
    given, wanted = _read_weights(path), backbone.state_dict()
    if match == "order":
        given = _renamed_by_order(given, wanted, path)
    if missing := [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]:
        raise ConfigError(
            f"{path}: {len(missing)} of {len(wanted)} tensors are not in it, the first {missing[0]!r}; "
            "if its names differ from timm's, try encoder.weights_match = 'order'"
        )
    for name, tensor in wanted.items():
        if name in given and given[name].shape != tensor.shape:
            raise ConfigError(
                f"{path}: {name} has shape {tuple(given[name].shape)}, the encoder wants {tuple(tensor.shape)}"
            )
    backbone.load_state_dict({name: given.get(name, tensor) for name, tensor in wanted.items()})


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"{path}: not a weights file: {torch_said(error)}") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(f"{path}: holds no table of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _renamed_by_order(
    given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    def listed(state: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        return [item for item in state.items() if not item[0].endswith("num_batches_tracked")]

    pairs = list(zip(listed(wanted), listed(given), strict=False))
    if len(pairs) < len(listed(wanted)):
        raise ConfigError(f"{path}: holds {len(pairs)} tensors, the encoder has {len(listed(wanted))}")
    return {name: tensor for (name, _), (_, tensor) in pairs}
