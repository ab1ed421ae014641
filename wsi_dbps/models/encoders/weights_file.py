"""Weights of an encoder from a local file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsi_dbps.core.errors import ConfigError, torch_said

if TYPE_CHECKING:
    from pathlib import Path


def load_weights_file(backbone: nn.Module, path: Path, match: str) -> None:
    """Load a local weights file into a backbone; it must fit completely, only a classifier head may be left over.

    Args:
        backbone: What to load into.
        path: .safetensors, or anything `torch.load` reads with `weights_only`.
        match: How tensors are matched. `name`: by their names. `order`: one after the other, each of the same shape.

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
