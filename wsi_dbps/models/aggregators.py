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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.dbps.ranking import masked_softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsi_dbps.models.settings import AggregatorConfig


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


PATH_POINTS: Final = 64
"""Points at which the gradient along the path from nothing to the whole bag is taken."""


@dataclass(frozen=True)
class Reading:
    """How one bag's buffers became logits, and what each patch did to them; on the aggregator's device.

    Source: M. Sundararajan et al., "Axiomatic attribution for deep networks", ICML 2017 (integrated gradients), along
    the straight line from nothing pooled to what was pooled, with the attention weights as they are. Where the layers
    after pooling are linear (`abmil`, `abmilx`) that is the weight of a patch times what the head makes of it.
    """

    logits_C: torch.Tensor
    empty_logits_C: torch.Tensor
    """Logits where nothing is pooled."""
    embedding_D: torch.Tensor
    """What the last linear layer sees."""
    contribution: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """(L, C) signed contributions of patches to the logits, from their (L, D) embeddings and (L,) roles, 1 salient and
    2 recycled: over both buffers they sum to `logits_C - empty_logits_C`. A patch of role 0 counts as if it alone were
    added to the recycled ones (where there are none, to the salient)."""


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

    def reading(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> Reading:
        """How a bag is classified: pools add up to one vector, along whose way from the query the gradient is taken."""
        pools = [_Pool(self.attention, *pool) for pool in self._pools(salient_MD, subsalient_SD)]
        start_D, end_D = self.query, self.query + torch.stack([pool.pooled_D for pool in pools]).sum(dim=0)
        ends_2C = self.head(self._embedded(torch.stack([start_D, end_D])))
        slope_CD = _mean_gradient(lambda points: self.head(self._embedded(points)), start_D, end_D)
        way_D = end_D - start_D
        missing_C = ends_2C[1] - ends_2C[0] - slope_CD @ way_D  # what so many points leave out; shared along the way
        slope_CD = slope_CD + missing_C[:, None] * way_D / way_D.square().sum().clamp(min=1e-12)

        def contribution(embeddings_LD: torch.Tensor, role_L: torch.Tensor) -> torch.Tensor:
            values_LC = torch.empty(len(embeddings_LD), len(slope_CD), device=embeddings_LD.device)
            for role in role_L.unique().tolist():
                pool = pools[0] if role == 1 else pools[-1]
                values_LC[role_L == role] = pool.shares(embeddings_LD[role_L == role], member=role != 0) @ slope_CD.T
            return values_LC

        return Reading(ends_2C[1], ends_2C[0], self._embedded(end_D[None])[0], contribution)

    def _pools(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(query, its patches) of each pooling; salient patches in the first, recycled ones in the last."""
        raise NotImplementedError

    def _embedded(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        z_BD = self.norm(pooled_BD)
        embedding_BD: torch.Tensor = self.norm_out(z_BD + self.drop(self.mlp(z_BD)))
        return embedding_BD

    def _classify(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        logits_BC: torch.Tensor = self.head(self._embedded(pooled_BD))
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

    def _pools(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        first = (self.query, salient_MD)
        if not len(subsalient_SD):
            return [first]
        first_D = self.query + _Pool(self.attention, *first).pooled_D
        return [first, (self.norm(first_D), subsalient_SD)]


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

    def _pools(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.query, torch.cat([salient_MD, subsalient_SD]))]


class _Pool:
    """One cross-attention of one bag, taken apart into what each patch puts in."""

    def __init__(self, attention: CrossAttention, query_D: torch.Tensor, patches_ND: torch.Tensor) -> None:
        self._attention, self._query_D = attention, query_D
        self._log_sum_H = torch.logsumexp(attention.logits(query_D[None], patches_ND[None])[0], dim=1)
        self.pooled_D = self.shares(patches_ND, member=True).sum(dim=0)

    def shares(self, patches_LD: torch.Tensor, *, member: bool) -> torch.Tensor:
        """(L, D) what each patch puts in; of a patch that is no member, were it added alone to those that are."""
        excess_HL = self._attention.logits(self._query_D[None], patches_LD[None])[0] - self._log_sum_H[:, None]
        weights_LH = (excess_HL.exp() if member else excess_HL.sigmoid()).T
        values_LHd = self._attention.to_value(patches_LD).unflatten(1, (self._attention.num_heads, -1))
        share_LD: torch.Tensor = self._attention.to_out((weights_LH[..., None] * values_LHd).flatten(1))
        return share_LD


def _mean_gradient(
    classify: Callable[[torch.Tensor], torch.Tensor], start_D: torch.Tensor, end_D: torch.Tensor
) -> torch.Tensor:
    """(C, D) mean gradient of each logit over the straight line, by the midpoint rule."""
    share_T = (torch.arange(PATH_POINTS, device=start_D.device) + 0.5) / PATH_POINTS
    with torch.enable_grad():
        points_TD = (start_D + share_T[:, None] * (end_D - start_D)).detach().requires_grad_()
        mean_C = classify(points_TD).mean(dim=0)
        rows = [torch.autograd.grad(logit, points_TD, retain_graph=True)[0].sum(dim=0) for logit in mean_C]
    return torch.stack(rows)


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

    def reading(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> Reading:
        """How a bag is classified: the head is linear, so that a patch's weight and value are all there is."""
        pool_1ND = torch.cat([salient_MD, subsalient_SD])[None]
        present_1N = torch.ones(pool_1ND.shape[:2], dtype=torch.bool, device=pool_1ND.device)
        raw_1HN = self._logits(pool_1ND)
        log_sum_H = torch.logsumexp(self._refined(raw_1HN, pool_1ND, present_1N)[0], dim=1)
        head_CHd = self.head.weight.unflatten(1, (self.num_heads, -1))

        def shares(patches_LD: torch.Tensor, member_L: torch.Tensor) -> torch.Tensor:
            """(L, H, d) what each patch puts in."""
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
        """(B, H, N) logits as they are pooled by; `pool`: patches and raw logits to refine from, if not these."""
        del patches_BND, present_BN, pool
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


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ConfigError(f"[aggregator] num_heads = {num_heads} does not divide the embedding size {dim}")


AGGREGATORS: dict[str, Callable[[int, int, AggregatorConfig], Aggregator]] = {
    "dual": DualAttention,
    "concat": ConcatAttention,
    "abmil": GatedAttention,
    "abmilx": RefinedGatedAttention,
}
