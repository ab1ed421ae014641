"""From the embeddings of a bag to class logits: dual attention, and one attention over both buffers.

Source: R. Qin et al., "No Pains, More Gains", CVPR 2025. V = {q, Wq, Wk, Wv, Wo, LN} is `query`, `attention` and
`norm`; its weights are shared by both poolings. P^_M is `salient_BMD`, P_S `subsalient_BSD`, z1 `first_BD`, s the
salient query, z2 `second_BD`, C `head`.

Shapes: B bags, M salient, S sub-salient, N patches, D embedding, H heads, d = D / H, C classes. One query token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from wsi_dbps.dbps.scores import masked_softmax
from wsi_dbps.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsi_dbps.models.config import AggregatorConfig


class CrossAttention(nn.Module):
    """Multi-head attention of one query over a bag's patches."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"[aggregator] num_heads = {num_heads} does not divide the embedding size {dim}")
        self.num_heads = num_heads
        self.to_query, self.to_key, self.to_value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.to_out = nn.Linear(dim, dim, bias=False)
        for linear in (self.to_query, self.to_key, self.to_value, self.to_out):
            nn.init.xavier_uniform_(linear.weight)

    def logits(self, query_BD: torch.Tensor, patches_BND: torch.Tensor) -> torch.Tensor:
        """(B, H, N) attention logits l = <(Wq q)_h, (Wk u)_h> / sqrt(d)."""
        query_BHd = self.to_query(query_BD).unflatten(1, (self.num_heads, -1))
        keys_BNHd = self.to_key(patches_BND).unflatten(2, (self.num_heads, -1))
        return torch.einsum("bhd,bnhd->bhn", query_BHd, keys_BNHd) / math.sqrt(query_BHd.shape[-1])

    def forward(
        self, query_BD: torch.Tensor, patches_BND: torch.Tensor, present_BN: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, D) pooled patches, exactly 0 for a bag without any, and (B, H, N) weights, exactly 0 where absent."""
        weights_BHN = masked_softmax(self.logits(query_BD, patches_BND), present_BN[:, None])
        values_BNHd = self.to_value(patches_BND).unflatten(2, (self.num_heads, -1))
        pooled_BHd = torch.einsum("bhn,bnhd->bhd", weights_BHN, values_BNHd)
        return self.to_out(pooled_BHd.flatten(1)), weights_BHN


class Aggregator(nn.Module):
    """What both aggregators share: the query, one attention, and the layers from a pooled bag to class logits."""

    def __init__(self, dim: int, num_classes: int, config: AggregatorConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(dim).uniform_(-1, 1))
        self.attention = CrossAttention(dim, config.num_heads)
        self.norm, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.drop = nn.Dropout(config.dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.head = nn.Linear(dim, num_classes)

    def score_logits(self, embeddings_ND: torch.Tensor) -> torch.Tensor:
        """(H, N) attention logits of each patch on its own: what selection ranks by."""
        return self.attention.logits(self.query[None], embeddings_ND[None])[0]

    def _classify(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        z_BD = self.norm(pooled_BD)
        logits_BC: torch.Tensor = self.head(self.norm_out(z_BD + self.drop(self.mlp(z_BD))))
        return logits_BC


class DualAttention(Aggregator):
    """Salient patches are pooled into a query, with which the recycled ones are pooled in turn."""

    def forward(
        self,
        salient_BMD: torch.Tensor,
        salient_present_BM: torch.Tensor,
        subsalient_BSD: torch.Tensor,
        subsalient_present_BS: torch.Tensor,
    ) -> torch.Tensor:
        """(B, C) class logits. A bag without sub-salient patches gets z2 = 0."""
        pooled_BD, _ = self.attention(self.query.expand(len(salient_BMD), -1), salient_BMD, salient_present_BM)
        first_BD = self.query + self.drop(pooled_BD)
        second_BD, _ = self.attention(self.norm(first_BD), subsalient_BSD, subsalient_present_BS)
        return self._classify(first_BD + self.drop(second_BD))


class ConcatAttention(Aggregator):
    """One attention over salient and recycled patches together."""

    def forward(
        self,
        salient_BMD: torch.Tensor,
        salient_present_BM: torch.Tensor,
        subsalient_BSD: torch.Tensor,
        subsalient_present_BS: torch.Tensor,
    ) -> torch.Tensor:
        """(B, C) class logits."""
        patches_BND = torch.cat([salient_BMD, subsalient_BSD], dim=1)
        present_BN = torch.cat([salient_present_BM, subsalient_present_BS], dim=1)
        pooled_BD, _ = self.attention(self.query.expand(len(salient_BMD), -1), patches_BND, present_BN)
        return self._classify(self.query + self.drop(pooled_BD))


AGGREGATORS: dict[str, Callable[[int, int, AggregatorConfig], Aggregator]] = {
    "dual": DualAttention,
    "concat": ConcatAttention,
}
