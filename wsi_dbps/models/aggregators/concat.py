"""One attention over salient and sub-salient patches alike.

Shapes: B bags, M salient and S sub-salient patches, N = M + S, D embedding, C outputs.
"""

from __future__ import annotations

import torch

from wsi_dbps.models.aggregators.cross_attention import QueryAggregator


class ConcatAttention(QueryAggregator):
    """One attention over salient and sub-salient patches together."""

    def forward(
        self,
        salient_BMD: torch.Tensor,
        salient_present_BM: torch.Tensor,
        subsalient_BSD: torch.Tensor,
        subsalient_present_BS: torch.Tensor,
    ) -> torch.Tensor:
        """(B, C) logits."""
        patches_BND = torch.cat([salient_BMD, subsalient_BSD], dim=1)
        present_BN = torch.cat([salient_present_BM, subsalient_present_BS], dim=1)
        pooled_BD, _ = self.attention(self.query.expand(len(salient_BMD), -1), patches_BND, present_BN)
        return self._classify(self.query + self.drop(pooled_BD))

    def _pools(self, salient_MD: torch.Tensor, subsalient_SD: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.query, torch.cat([salient_MD, subsalient_SD]))]
