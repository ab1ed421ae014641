"""What every aggregator does, and what it says about each patch.

Shapes: B bags, M salient and S sub-salient patches, N patches, D embedding, H heads, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from wsi_dbps.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Reading:
    """How the buffers of one bag became logits, and what each patch contributed; on the aggregator's device.

    Source: M. Sundararajan et al., "Axiomatic attribution for deep networks", ICML 2017 (integrated gradients), along
    the straight line from nothing pooled to what was pooled, with the attention weights as they are. Where the layers
    after pooling are linear (`abmil`, `abmilx`) that is the weight of a patch times what the head makes of it.
    """

    logits_C: torch.Tensor
    empty_logits_C: torch.Tensor
    """Logits where nothing is pooled."""
    embedding_D: torch.Tensor
    """What the last linear layer gets."""
    contribution: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """(L, C) signed contributions of patches to the logits, from their (L, D) embeddings and (L,) roles, 1 salient and
    2 sub-salient: over both buffers they sum to `logits_C - empty_logits_C`. A patch of role 0 counts as if it alone
    were added to the sub-salient ones (where there are none, to the salient)."""


class Aggregator(nn.Module):
    """What selection, prediction and the slide model ask of an aggregator."""

    def reading(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> Reading:
        """How a bag with these embeddings in its buffers is classified; in evaluation mode, without gradient."""
        raise NotImplementedError

    def score_logits(self, embeddings_ND: torch.Tensor) -> torch.Tensor:
        """(H, N) attention logits of each patch on its own: what selection ranks by."""
        raise NotImplementedError

    def forward(
        self,
        salient_BMD: torch.Tensor,
        salient_present_BM: torch.Tensor,
        subsalient_BSD: torch.Tensor,
        subsalient_present_BS: torch.Tensor,
    ) -> torch.Tensor:
        """(B, C) logits. Every bag has a salient patch; none need have a sub-salient one, and S may be 0.

        Args:
            salient_BMD: Embeddings with gradient, padded to the longest bag.
            salient_present_BM: bool; False where a row is padding.
            subsalient_BSD: Embeddings of the sub-salient patches, padded likewise.
            subsalient_present_BS: bool; False where a row is padding.
        """
        raise NotImplementedError


def check_heads(dim: int, num_heads: int) -> None:
    """Check that every head gets an equal slice of the embedding.

    Raises:
        ConfigError: If `num_heads` does not divide `dim`.
    """
    if dim % num_heads:
        raise ConfigError(f"[aggregator] num_heads = {num_heads} does not divide the embedding size {dim}")
