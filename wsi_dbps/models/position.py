"""Where a patch lies on its slide, as numbers that are added to its embedding: the choices of `aggregator.position`."""

from __future__ import annotations

from typing import Final

import torch

from wsi_dbps.core.errors import ConfigError

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


class NoPosition:
    """`none`: an embedding says nothing about where its patch lies."""

    def __init__(self, dim: int) -> None:
        del dim

    def of(self, bag: object, ids: torch.Tensor) -> torch.Tensor:
        """(len(ids), 0): no coordinates are needed, and the bag need not know any."""
        del bag
        return torch.empty(len(ids), 0)

    def added(self, embeddings_ND: torch.Tensor, positions_N0: torch.Tensor) -> torch.Tensor:
        """The embeddings as they are."""
        del positions_N0
        return embeddings_ND


class SinusoidalPosition:
    """`sinusoidal`: the sinusoids of a patch's corner are added to its embedding.

    Raises:
        ConfigError: If the embedding size does not divide by 4.
    """

    def __init__(self, dim: int) -> None:
        if dim % 4:
            raise ConfigError(f"[aggregator] position: the embedding size must divide by 4, found {dim}")
        self._dim = dim

    def of(self, bag: object, ids: torch.Tensor) -> torch.Tensor:
        """(len(ids), 2) float32 (x, y) of the patches' top-left corners in patch sides, on the CPU.

        Raises:
            ConfigError: If the bag does not know them.
        """
        positions_N2: torch.Tensor | None = getattr(bag, "positions", None)
        if positions_N2 is None:
            raise ConfigError("[aggregator] position = 'sinusoidal' needs bags that know where their patches lie")
        return positions_N2[ids]

    def added(self, embeddings_ND: torch.Tensor, positions_N2: torch.Tensor) -> torch.Tensor:
        """(N, D) embeddings plus sinusoids, both on one device."""
        return embeddings_ND + sinusoids(positions_N2, self._dim)


POSITIONS: Final[dict[str, type[NoPosition] | type[SinusoidalPosition]]] = {
    "none": NoPosition,
    "sinusoidal": SinusoidalPosition,
}
"""By the name in `AggregatorConfig`."""
