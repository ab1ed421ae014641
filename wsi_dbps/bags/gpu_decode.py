"""JPEG patches decoded on the GPU by nvJPEG, in one batch, through torchvision.

A patch coded as RGB (copied scanner tiles may be) says so in an Adobe segment, which nvJPEG does not promise to heed:
such patches are decoded by the CPU and sent over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import simplejpeg
import torch

from wsi_dbps.core.errors import ConfigError, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

_ADOBE: Final = b"\xff\xee\x00\x0eAdobe"


def pick_decoder(name: str, device: torch.device) -> torch.device | None:
    """The GPU to decode on, or None for the CPU's threads.

    Args:
        name: `training.decode`. `auto` takes the GPU where it can decode.
        device: Where training runs.

    Raises:
        ConfigError: If `gpu` is asked for and cannot be had.
    """
    if name == "cpu":
        return None
    why = "this run is on " + str(device) if device.type != "cuda" else _why_not(device)
    if why and name == "gpu":
        raise ConfigError(f"training.decode = 'gpu': {why}; set it to 'cpu' or 'auto'")
    return None if why else device


def _why_not(device: torch.device) -> str:
    """What hinders decoding on a GPU; empty if nothing does."""
    import numpy as np

    jpeg = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    try:
        decode_jpegs([jpeg], device)
    except (ImportError, RuntimeError, TypeError) as error:
        return f"torchvision has no nvJPEG here ({one_line(error)})"
    return ""


def decode_jpegs(jpegs: Sequence[bytes], device: torch.device) -> torch.Tensor:
    """(L, 3, P, P) uint8 RGB on `device`, decoded there but for RGB-coded ones.

    Raises:
        RuntimeError: If one is damaged, or torchvision cannot decode there.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    there = [i for i, jpeg in enumerate(jpegs) if not coded_as_rgb(jpeg)]
    contents = [torch.frombuffer(bytearray(jpegs[i]), dtype=torch.uint8) for i in there]
    found = dict(zip(there, decode_jpeg(contents, ImageReadMode.RGB, device) if there else [], strict=True))
    for i in range(len(jpegs)):
        if i not in found:
            found[i] = torch.from_numpy(simplejpeg.decode_jpeg(jpegs[i])).permute(2, 0, 1).to(device)
    return torch.stack([found[i] for i in range(len(jpegs))])


def coded_as_rgb(jpeg: bytes) -> bool:
    """Whether a JPEG file's Adobe segment says that its components are red, green and blue."""
    place = jpeg.find(_ADOBE, 0, jpeg.find(b"\xff\xda"))
    return place >= 0 and jpeg[place + 15] == 0
