"""A bag on its way through the slide model: where its pixels come from, what selection left of it, what is predicted.

Shapes: N patches, M salient and S sub-salient ones, K = M + S, C x P x P pixels, D embedding, R attention rows (heads x
query tokens), C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from wsi_dbps.dbps.buffers import Selection


class PatchSource(Protocol):
    """Where a bag's pixels come from: a cache on disk, or a tensor.

    A bag for a model with `aggregator.position = "sinusoidal"` also has `positions`, as `TensorBag` has.
    """

    @property
    def num_patches(self) -> int:
        """N."""

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its (L, 3, P, P) uint8 pixels; the next may be read while this one is used."""


@dataclass(frozen=True)
class TensorBag:
    """A bag in memory."""

    pixels_NCPP: torch.Tensor
    """uint8, or floats from 0 to 1."""
    positions: torch.Tensor | None = None
    """(N, 2) float32 (x, y) of the patches' top-left corners on the slide, in patch sides, on the CPU; only needed for
    `aggregator.position`."""

    @property
    def num_patches(self) -> int:
        """N."""
        return len(self.pixels_NCPP)

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its (L, 3, P, P) pixels."""
        return (self.pixels_NCPP[ids] for ids in id_lists)


@dataclass(frozen=True)
class SubsalientEmbeddings:
    """The sub-salient buffer where `subsalient_grad` is `none`: embeddings that are pooled as they are."""

    embeddings_SD: torch.Tensor
    """Without gradient, with their position added; row i belongs to `Selection.subsalient_S[i]`."""


@dataclass(frozen=True)
class SubsalientPixels:
    """The sub-salient buffer where `subsalient_grad` is `exact`: patches still to be encoded, with gradient."""

    pixels_SCPP: torch.Tensor
    """uint8; row i belongs to `Selection.subsalient_S[i]`."""
    positions_S2: torch.Tensor
    """(S, 2) in patch sides; (S, 0) where `aggregator.position` is `none`."""


@dataclass(frozen=True)
class Chosen:
    """A bag after selection: all that the gradient stage needs of it."""

    selection: Selection
    """Ids, on the CPU."""
    salient_pixels_MCPP: torch.Tensor
    """uint8; row i belongs to `selection.salient_M[i]`."""
    salient_positions_M2: torch.Tensor
    """(M, 2) in patch sides; (M, 0) where `aggregator.position` is `none`."""
    subsalient: SubsalientEmbeddings | SubsalientPixels
    logits_RK: torch.Tensor
    """Attention logits of the salient, then of the sub-salient patches, as they were ranked; (0, K) where the selector
    scored nothing."""


@dataclass(frozen=True)
class BagOutput:
    """A prediction, and how much attention every patch got."""

    logits_C: torch.Tensor
    """On the CPU, as all fields."""
    attention_RN: torch.Tensor
    """(R, N) attention logits of every patch of the bag, by row of the slide's plan."""
    weights_N: torch.Tensor
    """(N,) softmax of them over the whole bag, averaged over R."""
    selection: Selection
    """The patches that the logits were pooled from."""


@dataclass(frozen=True)
class Explained(BagOutput):
    """A prediction with every patch's attribution."""

    evidence_NC: torch.Tensor
    """(N, C) contribution of each patch to each logit (`Reading.contribution`)."""
    empty_logits_C: torch.Tensor
    """Logits where nothing is pooled."""
    embedding_D: torch.Tensor
    """What the last linear layer gets."""
