"""Cross-attention of a learnt query over a bag's patches: what `dual` and `concat` are made of.

Source: R. Qin et al., "No Pains, More Gains", CVPR 2025. V = {q, Wq, Wk, Wv, Wo, LN} is `query`, `attention` and
`norm`.

Shapes: B bags, N patches, L patches asked about, D embedding, H heads, d = D / H, C outputs, T points on a path.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from wsi_dbps.dbps.ranking import masked_softmax
from wsi_dbps.models.aggregators.base import Aggregator, Reading, check_heads

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsi_dbps.models.settings import AggregatorConfig

PATH_POINTS: Final = 64
"""T, points at which the gradient is taken on the path from nothing pooled to the whole bag."""


class CrossAttention(nn.Module):
    """Multi-head attention of one query over a bag's patches.

    Args:
        dim: D.
        num_heads: H, divides D.

    Raises:
        ConfigError: If H does not divide D.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
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


class QueryAggregator(Aggregator):
    """What `dual` and `concat` share: the query, one attention, and the layers from a pooled bag to logits."""

    def __init__(self, dim: int, num_outputs: int, config: AggregatorConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(dim).uniform_(-1, 1))
        self.attention = CrossAttention(dim, config.num_heads)
        self.norm, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.drop = nn.Dropout(config.dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.head = nn.Linear(dim, num_outputs)

    def score_logits(self, embeddings_ND: torch.Tensor) -> torch.Tensor:
        """(H, N) logits of each patch under the query."""
        return self.attention.logits(self.query[None], embeddings_ND[None])[0]

    def reading(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> Reading:
        """How a bag gets its logits: pools add up to one vector; the gradient is taken along its way from the query."""
        pools = [Pool(self.attention, *pool) for pool in self._pools(salient_MD, subsalient_SD)]
        start_D, end_D = self.query, self.query + torch.stack([pool.pooled_D for pool in pools]).sum(dim=0)
        ends_2C = self.head(self._embedded(torch.stack([start_D, end_D])))
        slope_CD = _mean_gradient(lambda points: self.head(self._embedded(points)), start_D, end_D)
        way_D = end_D - start_D
        # The midpoint rule misses a little of the difference; added along the way, the contributions sum to all of it.
        missing_C = ends_2C[1] - ends_2C[0] - slope_CD @ way_D
        slope_CD = slope_CD + missing_C[:, None] * way_D / way_D.square().sum().clamp(min=1e-12)

        def contribution(embeddings_LD: torch.Tensor, role_L: torch.Tensor) -> torch.Tensor:
            values_LC = torch.empty(len(embeddings_LD), len(slope_CD), device=embeddings_LD.device)
            for role in role_L.unique().tolist():
                pool = pools[0] if role == 1 else pools[-1]
                values_LC[role_L == role] = pool.shares(embeddings_LD[role_L == role], member=role != 0) @ slope_CD.T
            return values_LC

        return Reading(ends_2C[1], ends_2C[0], self._embedded(end_D[None])[0], contribution)

    def _pools(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(query, its patches) of each pooling; salient patches in the first, sub-salient ones in the last."""
        raise NotImplementedError

    def _embedded(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        """(B, D) input of the head, z' of the paper."""
        z_BD = self.norm(pooled_BD)
        embedding_BD: torch.Tensor = self.norm_out(z_BD + self.drop(self.mlp(z_BD)))
        return embedding_BD

    def _classify(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        logits_BC: torch.Tensor = self.head(self._embedded(pooled_BD))
        return logits_BC


class Pool:
    """One cross-attention over one bag, split into the shares that its patches have in the pooled vector.

    Args:
        attention: Its weights.
        query_D: What the bag is pooled with.
        patches_ND: The patches that are pooled, at least one.
    """

    def __init__(self, attention: CrossAttention, query_D: torch.Tensor, patches_ND: torch.Tensor) -> None:
        self._attention, self._query_D = attention, query_D
        self._log_sum_H = torch.logsumexp(attention.logits(query_D[None], patches_ND[None])[0], dim=1)
        self.pooled_D = self.shares(patches_ND, member=True).sum(dim=0)

    def shares(self, patches_LD: torch.Tensor, *, member: bool) -> torch.Tensor:
        """(L, D) share of each patch in the pooled vector.

        Args:
            patches_LD: Embeddings.
            member: Whether these are among the patches that are pooled. Else a share is what the patch would have if it
                alone were added to them.
        """
        # exp(l) / sum = exp(l - log sum), and with the patch added exp(l) / (sum + exp(l)) = sigmoid(l - log sum)
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
