"""Encoders: from uint8 patches to embeddings. timm's models by name, a small one for training on a CPU, and a projector
for patches that are features already."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from wsi_dbps.core.errors import ConfigError, one_line, torch_said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsi_dbps.models.settings import EncoderConfig

_HALF = (0.5, 0.5, 0.5)
_HUB_SECONDS: Final = 5
"""How long Hugging Face may take to answer at all."""


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
    if not (fetch or from_hub):  # of a model on the hub the architecture is fetched too
        return timm.create_model(config.name, num_classes=0)
    with _hub_asked_once() as out_of_reach:
        try:
            return timm.create_model(config.name, pretrained=fetch, num_classes=0)
        except Exception as error:
            said = f"{type(error).__name__}: {one_line(error)}"
            if out_of_reach and "LocalEntryNotFound" in said:
                said = out_of_reach
            raise ConfigError(
                f"[encoder] weights of {config.name} cannot be fetched ({said}); "
                "without a network give a file as encoder.weights, or set encoder.pretrained = false to start from "
                "random weights"
            ) from error


@contextmanager
def _hub_asked_once() -> Iterator[str]:
    """Yield what keeps Hugging Face out of reach, empty where nothing does; meanwhile it logs nothing but errors.

    Where it is out of reach, its cache alone is used: by itself huggingface_hub tries for 48 seconds, with 12 lines.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, logging  # type: ignore[attr-defined]

    offline, level, out_of_reach = constants.HF_HUB_OFFLINE, logging.get_verbosity(), ""
    if not offline:
        try:
            get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)  # any answer will do
        except Exception as error:  # requests' or httpx's, by the version
            said = one_line(error) or type(error).__name__
            cache = f"and they are not in the cache {constants.HF_HUB_CACHE}"
            out_of_reach = f"{constants.ENDPOINT} cannot be reached: {said}; {cache}"
    try:
        constants.HF_HUB_OFFLINE = offline or bool(out_of_reach)
        logging.set_verbosity_error()
        yield out_of_reach
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(level)


def load_weights_file(backbone: nn.Module, path: Path, match: str) -> None:
    """Load a local weights file into a backbone, whole; only a classifier head that the file has beyond it is left out.

    Args:
        backbone: What to load into.
        path: .safetensors, or anything `torch.load` reads with `weights_only`.
        match: `name`, or `order`: tensor after tensor, each of the same shape.

    Raises:
        ConfigError: If the file is missing or not weights; or if a tensor of the backbone is not in it or has another
            shape, or one of the file has no place in the backbone; naming the first of them.
    """
    held, wanted = _read_weights(path), backbone.state_dict()
    repair = "set encoder.name to the model that this file was saved from (one on Hugging Face: hf-hub:OWNER/MODEL)"
    if match == "order":
        ours, theirs = _lasting(wanted), _lasting(held)
        if len(theirs) < len(ours):
            raise ConfigError(f"{path}: holds {len(theirs)} tensors, the encoder has {len(ours)}; {repair}")
        given = {name: held[other] for name, other in zip(ours, theirs, strict=False)}
        left = _without_head_by_shape(theirs[len(ours) :], held, backbone)
    else:
        given, left = held, _without_head([name for name in _lasting(held) if name not in wanted], backbone)
    missing = [name for name in _lasting(wanted) if name not in given]
    if missing:
        renamed = "if its names differ from timm's, try encoder.weights_match = 'order'; else " if left else ""
        raise ConfigError(
            f"{path}: {len(missing)} of the encoder's {len(wanted)} tensors are not in it, the first {missing[0]!r}; "
            f"{renamed}{repair}"
        )
    unlike = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    if unlike:
        name, others = unlike[0], f" ({len(unlike)} tensors differ in shape)" if len(unlike) > 1 else ""
        raise ConfigError(
            f"{path}: {name} has shape {tuple(given[name].shape)}, the encoder wants {tuple(wanted[name].shape)}"
            f"{others}; {repair}"
        )
    if left:
        raise ConfigError(
            f"{path}: {len(left)} of its {len(held)} tensors have no place in the encoder, the first {left[0]!r}, "
            f"so its features would not be those that it was trained for; {repair}"
        )
    backbone.load_state_dict({name: given.get(name, tensor) for name, tensor in wanted.items()})


def _without_head(left: list[str], backbone: Any) -> list[str]:
    """The names without those of the model's classifier: of timm's `head.fc` all that is left of `head`."""
    classifier = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    return [name for name in left if not name.startswith(tuple(f"{h.rpartition('.')[0] or h}." for h in heads))]


def _without_head_by_shape(left: list[str], held: dict[str, torch.Tensor], backbone: Any) -> list[str]:
    """Where names say nothing: a classifier is one linear layer from the features to its K outputs, with or without K
    biases."""
    if not left:
        return []
    weights, *biases = (tuple(held[name].shape) for name in left)
    sizes = (backbone.num_features, getattr(backbone, "head_hidden_size", None))
    is_linear = len(weights) > 1 and weights[1] in sizes and set(weights[2:]) <= {1}
    return [] if is_linear and biases in ([], [weights[:1]]) else left


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


def _lasting(state: dict[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that take part in computing features."""
    return [name for name in state if not name.endswith(("num_batches_tracked", "mask_token"))]
