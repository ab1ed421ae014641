"""What every patch of a bag contributed to a prediction: the numbers behind a heatmap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from wsi_dbps.models.bag import BagOutput, Explained

if TYPE_CHECKING:
    from wsi_dbps.models.aggregators.base import Aggregator
    from wsi_dbps.models.spill import EmbeddingSpill

_PART: Final = 4096
"""Embeddings attributed at once, so that memory does not grow with the bag."""


def with_attribution(output: BagOutput, aggregator: Aggregator, spill: EmbeddingSpill) -> Explained:
    """The prediction with the contribution of every patch; call it in evaluation mode and without gradient.

    The method is that of `Aggregator.reading`: integrated gradients from nothing pooled to what was pooled.

    Args:
        output: A prediction.
        aggregator: What predicted.
        spill: The (N, D) embeddings that it was predicted from.
    """
    selection = output.selection
    device = next(aggregator.parameters()).device
    salient_MD, subsalient_SD = (spill.rows(ids).to(device) for ids in (selection.salient_M, selection.subsalient_S))
    reading = aggregator.reading(salient_MD, subsalient_SD)
    role_N = torch.zeros(spill.num_rows, dtype=torch.int8)
    role_N[selection.salient_M], role_N[selection.subsalient_S] = 1, 2
    parts = [
        reading.contribution(part_LD.to(device), role_N[at : at + len(part_LD)].to(device)).cpu()
        for at, part_LD in spill.parts(_PART)
    ]
    return Explained(
        **vars(output),
        evidence_NC=torch.cat(parts).float(),
        empty_logits_C=reading.empty_logits_C.float().cpu(),
        embedding_D=reading.embedding_D.float().cpu(),
    )
