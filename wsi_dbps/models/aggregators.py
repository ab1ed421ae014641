"""From the embeddings of a bag to class logits: dual attention, and one attention over both buffers in three kinds.

Source of `dual`: R. Qin et al., "No Pains, More Gains", CVPR 2025. V = {q, Wq, Wk, Wv, Wo, LN} is `query`, `attention`
and `norm`; its weights are shared by both poolings. P^_M is `salient_BMD`, P_S `subsalient_BSD`, z1 `first_BD`, s the
salient query, z2 `second_BD`, C `head`.

Source of `abmil`: M. Ilse et al., "Attention-based deep multiple instance learning", ICML 2018; V `to_content`, U
`to_gate`, w `to_attention`. Source of `abmilx`: W. Tang, R. Qin et al., "Revisiting end-to-end learning with
slide-level supervision in computational pathology", NeurIPS 2025; A is what `score_logits` gives, alpha `alpha`.

Shapes: B bags, M salient, S sub-salient, N patches, D embedding, H heads, d = D / H, C classes. One query token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from wsi_dbps.dbps.scores import masked_softmax
from wsi_dbps.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsi_dbps.models.config import AggregatorConfig


GATE_WIDTH: Final = 128
"""Inner width of gated attention, as published."""


class CrossAttention(nn.Module):
    """Multi-head attention of one query over a bag's patches."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
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
    """What selection and the slide model ask of an aggregator."""

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
        """(B, C) class logits. Every bag has a salient patch; none need have a sub-salient one, and S may be 0."""
        raise NotImplementedError


class QueryAggregator(Aggregator):
    """What `dual` and `concat` share: the query, one attention, and the layers from a pooled bag to class logits."""

    def __init__(self, dim: int, num_classes: int, config: AggregatorConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(dim).uniform_(-1, 1))
        self.attention = CrossAttention(dim, config.num_heads)
        self.norm, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.drop = nn.Dropout(config.dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.head = nn.Linear(dim, num_classes)

    def score_logits(self, embeddings_ND: torch.Tensor) -> torch.Tensor:
        """(H, N) logits of each patch under the query."""
        return self.attention.logits(self.query[None], embeddings_ND[None])[0]

    def _classify(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        z_BD = self.norm(pooled_BD)
        logits_BC: torch.Tensor = self.head(self.norm_out(z_BD + self.drop(self.mlp(z_BD))))
        return logits_BC


class DualAttention(QueryAggregator):
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


class ConcatAttention(QueryAggregator):
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


class GatedAttention(Aggregator):
    """ABMIL: one gated attention over salient and recycled patches together, pooled as they are."""

    def __init__(self, dim: int, num_classes: int, config: AggregatorConfig, *, num_heads: int = 1) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.to_content, self.to_gate = nn.Linear(dim, GATE_WIDTH), nn.Linear(dim, GATE_WIDTH)
        self.to_attention = nn.Linear(GATE_WIDTH, num_heads, bias=False)
        self.drop, self.head = nn.Dropout(config.dropout), nn.Linear(dim, num_classes)

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
        """(B, C) class logits; head h pools the h-th of H equal slices of the embeddings."""
        patches_BND = torch.cat([salient_BMD, subsalient_BSD], dim=1)
        present_BN = torch.cat([salient_present_BM, subsalient_present_BS], dim=1)
        logits_BHN = self._refined(self._logits(patches_BND), patches_BND, present_BN)
        weights_BHN = masked_softmax(logits_BHN, present_BN[:, None])
        slices_BNHd = patches_BND.unflatten(2, (self.num_heads, -1))
        pooled_BHd = torch.einsum("bhn,bnhd->bhd", weights_BHN, slices_BNHd.to(weights_BHN.dtype))
        logits_BC: torch.Tensor = self.head(self.drop(pooled_BHd.flatten(1)))
        return logits_BC

    def _logits(self, patches_BND: torch.Tensor) -> torch.Tensor:
        gated = torch.tanh(self.to_content(patches_BND)) * torch.sigmoid(self.to_gate(patches_BND))
        logits_BNH: torch.Tensor = self.to_attention(gated)
        return logits_BNH.transpose(1, 2)

    def _refined(self, logits_BHN: torch.Tensor, patches_BND: torch.Tensor, present_BN: torch.Tensor) -> torch.Tensor:
        del patches_BND, present_BN
        return logits_BHN


class RefinedGatedAttention(GatedAttention):
    """ABMILX: gated attention of several heads, where a patch also gets attention from the patches that are like it.

    A' = A + alpha softmax(Q K^T / sqrt(d)) A in each head, then softmax over the bag. Selection ranks by A, as it
    scores patches one by one. Memory grows with N where torch has a fused attention, else with its square.
    """

    def __init__(self, dim: int, num_classes: int, config: AggregatorConfig) -> None:
        super().__init__(dim, num_classes, config, num_heads=config.num_heads)
        self.to_query, self.to_key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.alpha = nn.Parameter(torch.ones(1))

    def _refined(self, logits_BHN: torch.Tensor, patches_BND: torch.Tensor, present_BN: torch.Tensor) -> torch.Tensor:
        query_BHNd, key_BHNd = (
            to(patches_BND).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for to in (self.to_query, self.to_key)
        )
        # fused attention wants values as wide as the keys: A is the first column, the others are 0
        value_BHNd = nn.functional.pad(logits_BHN[..., None], (0, key_BHNd.shape[-1] - 1)).to(key_BHNd.dtype)
        spread_BHNd = nn.functional.scaled_dot_product_attention(
            query_BHNd, key_BHNd, value_BHNd, attn_mask=present_BN[:, None, None]
        )
        return logits_BHN + self.alpha * spread_BHNd[..., 0]


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ConfigError(f"[aggregator] num_heads = {num_heads} does not divide the embedding size {dim}")


AGGREGATORS: dict[str, Callable[[int, int, AggregatorConfig], Aggregator]] = {
    "dual": DualAttention,
    "concat": ConcatAttention,
    "abmil": GatedAttention,
    "abmilx": RefinedGatedAttention,
}
