"""What selection works on: chunks of scored patches, and the two buffers that they end in.

Source: R. Qin et al., "No Pains, More Gains", CVPR 2025. The paper's fundamental buffer P_M is `salient`, its auxiliary
buffer P_S is `subsalient`, and l_hj(u) is a column of `logits_RL`.

Shapes: R attention rows (heads x query tokens), L patches of a chunk, M salient and S sub-salient patches, N patches,
C x P x P pixels, D embedding. Ids are rows of the slide's plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True)
class Chunk:
    """Patches after a forward pass without gradient. Every field has the same number of patches, L."""

    ids_L: torch.Tensor
    """int64, rows of the slide's plan."""
    logits_RL: torch.Tensor
    """Attention logits, one column per patch."""
    embeddings_LD: torch.Tensor
    pixels_LCPP: torch.Tensor | None = None
    """uint8; None where the pixels are not held in memory."""

    def take(self, positions: torch.Tensor) -> Chunk:
        """The patches at these positions within the chunk, in that order."""
        pixels = None if self.pixels_LCPP is None else self.pixels_LCPP[positions]
        return Chunk(self.ids_L[positions], self.logits_RL[:, positions], self.embeddings_LD[positions], pixels)

    def of(self, ids: torch.Tensor) -> Chunk:
        """The patches with these ids, in that order; every id must be in the chunk."""
        by_id = self.ids_L.argsort()
        return self.take(by_id[torch.searchsorted(self.ids_L[by_id], ids)])

    def without_pixels(self) -> Chunk:
        """The same patches without their pixels, so that the memory can be freed."""
        return replace(self, pixels_LCPP=None)

    def joined(self, other: Chunk) -> Chunk:
        """These patches, then the other's. The result has pixels only if both have them."""
        both = self.pixels_LCPP is not None and other.pixels_LCPP is not None
        return Chunk(
            torch.cat([self.ids_L, other.ids_L]),
            torch.cat([self.logits_RL, other.logits_RL], dim=1),
            torch.cat([self.embeddings_LD, other.embeddings_LD]),
            torch.cat([self.pixels_LCPP, other.pixels_LCPP]) if both else None,  # type: ignore[list-item]
        )


@dataclass(frozen=True)
class Selection:
    """Which patches were selected. No patch is in both; a selector that ranks orders both by falling score."""

    salient_M: torch.Tensor
    """int64 ids of the salient patches, at most M."""
    subsalient_S: torch.Tensor
    """int64 ids of the sub-salient patches, at most S; empty where the bag has no more than M patches."""

    def to(self, device: torch.device | str) -> Selection:
        """The same ids on that device."""
        return Selection(self.salient_M.to(device), self.subsalient_S.to(device))


@dataclass(frozen=True)
class Buffers:
    """The two buffers after a pass over the bag. A buffer that is not full is shorter; it is never padded."""

    salient: Chunk
    subsalient: Chunk

    @property
    def selection(self) -> Selection:
        """The ids in both buffers."""
        return Selection(self.salient.ids_L, self.subsalient.ids_L)

    @property
    def ranked_by(self) -> torch.Tensor:
        """(R, K) attention logits of the salient patches, then of the sub-salient ones."""
        return torch.cat([self.salient.logits_RL, self.subsalient.logits_RL], dim=1)


def perturbed(chunks: Iterable[Chunk], noise_N: torch.Tensor) -> Iterator[Chunk]:
    """The same patches with noise added to their logits: one number per patch, the same in every attention row.

    Args:
        chunks: Chunks of any sizes.
        noise_N: One number per patch, in the order in which the patches come.
    """
    start = 0
    for chunk in chunks:
        noise_L = noise_N[start : start + len(chunk.ids_L)].to(chunk.logits_RL)
        yield replace(chunk, logits_RL=chunk.logits_RL + noise_L)
        start += len(chunk.ids_L)


def gathered(chunks: Iterable[Chunk]) -> Chunk:
    """All patches of all chunks in one chunk, without pixels.

    Raises:
        ValueError: If there is no chunk.
    """
    parts = [(c.ids_L, c.logits_RL, c.embeddings_LD) for c in chunks]
    if not parts:
        raise ValueError("a bag must hold at least one patch")
    ids, logits, embeddings = zip(*parts, strict=True)
    return Chunk(torch.cat(ids), torch.cat(logits, dim=1), torch.cat(embeddings))
