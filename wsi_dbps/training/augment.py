"""Random changes to salient patches, on the device: flips, turns, and stain jitter in the range of H&E."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from wsi_dbps.training.settings import AugmentationConfig

STAINS = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
"""Rows: optical density of haematoxylin, eosin and a residual, per RGB channel (Ruifrok and Johnston, 2001)."""


def augment(pixels_NCPP: torch.Tensor, config: AugmentationConfig) -> torch.Tensor:
    """(N, 3, P, P) floats from 0 to 1, each patch changed on its own; draws from torch's global generator.

    Features, (N, D), stay as they are.
    """
    if pixels_NCPP.ndim == 2:
        return pixels_NCPP
    pixels_NCPP = pixels_NCPP / 255
    if config.flips:
        chosen = torch.rand(len(pixels_NCPP), 1, 1, 1, device=pixels_NCPP.device) < 0.5
        pixels_NCPP = torch.where(chosen, pixels_NCPP.flip(3), pixels_NCPP)
    if config.turns:
        quarter = torch.randint(4, (len(pixels_NCPP), 1, 1, 1), device=pixels_NCPP.device)
        pixels_NCPP = torch.where(quarter % 2 == 1, pixels_NCPP.transpose(2, 3).flip(3), pixels_NCPP)
        pixels_NCPP = torch.where(quarter >= 2, pixels_NCPP.flip(2, 3), pixels_NCPP)
    if config.stain_jitter > 0:
        pixels_NCPP = jitter_stains(pixels_NCPP, config.stain_jitter)
    return pixels_NCPP


def jitter_stains(pixels_NCPP: torch.Tensor, strength: float) -> torch.Tensor:
    """Scale and shift each stain's optical density.

    Source: D. Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train
    distilled stain-invariant convolutional networks", 2018. White glass, of density 0, moves only by the shift.
    """
    stains = torch.nn.functional.normalize(STAINS, dim=1).to(pixels_NCPP)
    density_NPPC = -torch.log10(pixels_NCPP.clamp(min=1 / 255)).permute(0, 2, 3, 1)
    amounts_NPPC = density_NPPC @ torch.linalg.inv(stains)
    shape = (len(pixels_NCPP), 1, 1, 3)
    factor = 1 + strength * (2 * torch.rand(shape, device=pixels_NCPP.device) - 1)
    shift = strength * 0.1 * (2 * torch.rand(shape, device=pixels_NCPP.device) - 1)
    changed_NPPC = (amounts_NPPC * factor + shift) @ stains
    return torch.pow(10, -changed_NPPC).permute(0, 3, 1, 2).clamp(0, 1)
