"""Gated attention with several heads, in which patches that are alike share their attention.

Source: W. Tang, R. Qin et al., "Revisiting end-to-end learning with slide-level supervision in computational
pathology", NeurIPS 2025; A is what `score_logits` gives, alpha `alpha`.

Shapes: B bags, N patches, D embedding, H heads, d = D / H.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from wsi_dbps.models.aggregators.abmil import GatedAttention

if TYPE_CHECKING:
    from wsi_dbps.models.settings import AggregatorConfig


class RefinedGatedAttention(GatedAttention):
    """ABMILX: gated attention of several heads, where a patch also gets attention from the patches that are like it.

    A' = A + alpha softmax(Q K^T / sqrt(d)) A in each head, then softmax over the bag. Selection ranks by A, as it
    scores patches one by one. Memory grows with N where torch has a fused attention, else with its square.
    """

    def __init__(self, dim: int, num_outputs: int, config: AggregatorConfig) -> None:
        super().__init__(dim, num_outputs, config, num_heads=config.num_heads)
        self.to_query, self.to_key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.alpha = nn.Parameter(torch.ones(1))

    def _refined(
        self,
        logits_BHN: torch.Tensor,
        patches_BND: torch.Tensor,
        present_BN: torch.Tensor | None,
        pool: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        pool_BND, raw_BHN = pool or (patches_BND, logits_BHN)
        query_BHNd, key_BHNd = (
            to(of_BND).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for to, of_BND in ((self.to_query, patches_BND), (self.to_key, pool_BND))
        )
        # fused attention wants values as wide as the keys: A is the first column, the others are 0
        value_BHNd = nn.functional.pad(raw_BHN[..., None], (0, key_BHNd.shape[-1] - 1)).to(key_BHNd.dtype)
        mask = None if present_BN is None else present_BN[:, None, None]
        spread_BHNd = nn.functional.scaled_dot_product_attention(query_BHNd, key_BHNd, value_BHNd, attn_mask=mask)
        return logits_BHN + self.alpha * spread_BHNd[..., 0]
