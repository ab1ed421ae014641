"""Dual attention: the aggregator of the published method.

Source: R. Qin et al., "No Pains, More Gains", CVPR 2025. The weights of V are shared by both poolings. P^_M is
`salient_BMD`, P_S `subsalient_BSD`, z1 `first_BD`, s the salient query `norm(first_BD)`, z2 `second_BD`, C `head`.

Shapes: B bags, M salient and S sub-salient patches, D embedding, C outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dbps.models.aggregators.cross_attention import Pool, QueryAggregator

if TYPE_CHECKING:
    import torch


class DualAttention(QueryAggregator):
    """Salient patches are pooled into a query, with which the sub-salient ones are pooled in turn."""

    def forward(
        self,
        salient_BMD: torch.Tensor,
        salient_present_BM: torch.Tensor,
        subsalient_BSD: torch.Tensor,
        subsalient_present_BS: torch.Tensor,
    ) -> torch.Tensor:
        """(B, C) logits. A bag without sub-salient patches gets z2 = 0."""
        pooled_BD, _ = self.attention(self.query.expand(len(salient_BMD), -1), salient_BMD, salient_present_BM)
        first_BD = self.query + self.drop(pooled_BD)
        second_BD, _ = self.attention(self.norm(first_BD), subsalient_BSD, subsalient_present_BS)
        return self._classify(first_BD + self.drop(second_BD))

    def _pools(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        first = (self.query, salient_MD)
        if not len(subsalient_SD):
            return [first]
        first_D = self.query + Pool(self.attention, *first).pooled_D
        return [first, (self.norm(first_D), subsalient_SD)]
