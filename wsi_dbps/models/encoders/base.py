"""What every encoder is to the rest of the package: plain pixels, or features, in; embeddings out."""

from __future__ import annotations

import torch
from torch import nn


class PatchEncoder(nn.Module):
    """A backbone with the normalisation that it was trained with, so that every caller hands it plain pixels.

    Args:
        backbone: (N, 3, P, P) normalised pixels to (N, num_features).
        num_features: Size of what the backbone gives.
        mean: By channel, of pixels from 0 to 1.
        std: Standard deviation, likewise.
        dim: D, size of the embedding, after a linear projection and layer norm; None: that of the backbone, as it is.
    """

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
    """What `dim` adds to a pixel encoder, alone: a linear layer and layer norm from features to embeddings.

    On the features of a frozen encoder it is that encoder with this `dim`.

    Args:
        num_features: F, size of the features.
        dim: D, size of the embedding; None: F.
    """

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
