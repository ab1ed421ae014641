"""Where a patch lies on its slide, as numbers that can be added to its embedding."""

from __future__ import annotations

from typing import Final

import torch

LONGEST: Final = 10_000.0
"""Wavelengths run from 2 pi patch sides to this many times as much."""


def sinusoids(positions_N2: torch.Tensor, dim: int) -> torch.Tensor:
    """(N, dim) sines and cosines of x in the first half, of y in the second; each from -1 to 1.

    Source: A. Vaswani et al., "Attention is all you need", NeurIPS 2017, in two dimensions.

    Args:
        positions_N2: (x, y) in patch sides.
        dim: Divides by 4.

    Examples:
        >>> sinusoids(torch.tensor([[0.0, torch.pi]]), 4).abs().round().tolist()
        [[0.0, 1.0, 0.0, 1.0]]
    """
    wave = torch.arange(dim // 4, device=positions_N2.device) / max(1, dim // 4)
    angles_N2K = positions_N2.float()[:, :, None] * LONGEST**-wave
    return torch.cat([angles_N2K.sin(), angles_N2K.cos()], dim=2).flatten(1)
