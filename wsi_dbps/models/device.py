"""Which device a model runs on, and in which number format."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from wsi_dbps.core.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def pick_device(name: str, *, num_processes: int = 1, local_rank: int = 0) -> torch.device:
    """The device of that name; `auto` is the first GPU, else the CPU; of several processes each has a GPU of its own.

    Args:
        name: Such as `auto`, `cpu`, `cuda` or `cuda:1`.
        num_processes: How many processes train together.
        local_rank: Which of those on this machine this one is: the number of its GPU.

    Raises:
        ConfigError: If there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if num_processes > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise ConfigError(f"device {name!r} cannot be used by {num_processes} processes at once; set it to 'cuda'")
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # from `meta` nothing comes back
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0][:200]}") from None
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that the forward pass computes in."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Compute in that precision where it is not fp32."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)
