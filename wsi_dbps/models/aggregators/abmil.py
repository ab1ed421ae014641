"""Gated attention over salient and sub-salient patches alike.

Source: M. Ilse et al., "Attention-based deep multiple instance learning", ICML 2018; V is `to_content`, U `to_gate`,
w `to_attention`.

Shapes: B bags, M salient and S sub-salient patches, N = M + S, L patches asked about, D embedding, H heads, d = D / H,
C outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from wsi_dbps.dbps.ranking import masked_softmax
from wsi_dbps.models.aggregators.base import Aggregator, Reading, check_heads

if TYPE_CHECKING:
    from wsi_dbps.models.settings import AggregatorConfig

GATE_WIDTH: Final = 128
"""Inner width of gated attention, as published."""


class GatedAttention(Aggregator):
    """ABMIL: one gated attention over salient and sub-salient patches together, pooled as they are."""

    def __init__(self, dim: int, num_outputs: int, config: AggregatorConfig, *, num_heads: int = 1) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.to_content, self.to_gate = nn.Linear(dim, GATE_WIDTH), nn.Linear(dim, GATE_WIDTH)
        self.to_attention = nn.Linear(GATE_WIDTH, num_heads, bias=False)
        self.drop, self.head = nn.Dropout(config.dropout), nn.Linear(dim, num_outputs)

    def score_logits(self, embeddings_ND: torch.Tensor) -> torch.Tensor:
        """(H, N) gated logits A_h(u) = <w_h, tanh(V u) * sigmoid(U u)>; under `abmilx` before they are refined."""
        return self._logits(embeddings_ND[None])[0]

    def forward(
        self,
        salient_BMD: torch.Tensor,
        salient_present_BM: torch.Tensor,
        subsalient_BSD: torch.Tensor,
        subsalient_present_BS: torch.Tensor,
    ) -> torch.Tensor:
        """(B, C) logits; head h pools the h-th of H equal slices of the embeddings."""
        patches_BND = torch.cat([salient_BMD, subsalient_BSD], dim=1)
        present_BN = torch.cat([salient_present_BM, subsalient_present_BS], dim=1)
        logits_BHN = self._refined(self._logits(patches_BND), patches_BND, present_BN)
        weights_BHN = masked_softmax(logits_BHN, present_BN[:, None])
        slices_BNHd = patches_BND.unflatten(2, (self.num_heads, -1))
        pooled_BHd = torch.einsum("bhn,bnhd->bhd", weights_BHN, slices_BNHd.to(weights_BHN.dtype))
        logits_BC: torch.Tensor = self.head(self.drop(pooled_BHd.flatten(1)))
        return logits_BC

    def reading(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> Reading:
        """How a bag gets its logits: the head is linear, so that a patch's weight and value are all there is."""
        pool_1ND = torch.cat([salient_MD, subsalient_SD])[None]
        present_1N = torch.ones(pool_1ND.shape[:2], dtype=torch.bool, device=pool_1ND.device)
        raw_1HN = self._logits(pool_1ND)
        log_sum_H = torch.logsumexp(self._refined(raw_1HN, pool_1ND, present_1N)[0], dim=1)
        head_CHd = self.head.weight.unflatten(1, (self.num_heads, -1))

        def shares(patches_LD: torch.Tensor, member_L: torch.Tensor) -> torch.Tensor:
            """(L, H, d) share of each patch in the pooled vector; as `Pool.shares`, of members and others."""
            logits_HL = self._refined(self._logits(patches_LD[None]), patches_LD[None], None, (pool_1ND, raw_1HN))[0]
            excess_HL = logits_HL - log_sum_H[:, None]
            weights_HL = torch.where(member_L, excess_HL.exp(), excess_HL.sigmoid())
            return weights_HL.T[..., None] * patches_LD.unflatten(1, (self.num_heads, -1))

        def contribution(embeddings_LD: torch.Tensor, role_L: torch.Tensor) -> torch.Tensor:
            return torch.einsum("lhd,chd->lc", shares(embeddings_LD, role_L != 0), head_CHd)

        embedding_D = shares(pool_1ND[0], present_1N[0]).sum(dim=0).flatten()
        return Reading(self.head(embedding_D), self.head.bias.detach(), embedding_D, contribution)

    def _logits(self, patches_BND: torch.Tensor) -> torch.Tensor:
        gated = torch.tanh(self.to_content(patches_BND)) * torch.sigmoid(self.to_gate(patches_BND))
        logits_BNH: torch.Tensor = self.to_attention(gated)
        return logits_BNH.transpose(1, 2)

    def _refined(
        self,
        logits_BHN: torch.Tensor,
        patches_BND: torch.Tensor,
        present_BN: torch.Tensor | None,
        pool: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """(B, H, N) logits that patches are pooled by: here the raw ones; `abmilx` refines them.

        Args:
            logits_BHN: Raw logits of the patches.
            patches_BND: Their embeddings.
            present_BN: bool; False where a row is padding. None: all are patches.
            pool: Patches and their raw logits to refine from, where these are not the patches themselves.
        """
        del patches_BND, present_BN, pool
        return logits_BHN
