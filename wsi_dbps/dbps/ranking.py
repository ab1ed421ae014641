"""From attention logits to one score per patch.

Shapes: R attention rows (heads x query tokens), N patches, B bags. Source: R. Qin et al., CVPR 2025; the score a(u) is
the mean over h and j of the softmax over the patches of l_hj(u).
"""

from __future__ import annotations

import math

import torch


def log_scores(logits_RN: torch.Tensor) -> torch.Tensor:
    """(N,) logarithm of each patch's mean attention, in float64 where the device has it.

    Ranking the logarithm ranks the score, and loses no order where the score itself would underflow: with one row the
    order is exactly that of the logits, which makes the streaming and the global selector agree to the last patch.
    """
    exact = logits_RN if logits_RN.device.type == "mps" else logits_RN.double()
    return torch.logsumexp(torch.log_softmax(exact, dim=1), dim=0) - math.log(len(logits_RN))


def gumbel(size: int, generator: torch.Generator) -> torch.Tensor:
    """(size,) draws from the standard Gumbel distribution.

    The k largest of `log p + gumbel` are a draw of k without replacement with chances in proportion to p (Gumbel top-k;
    W. Kool et al., "Stochastic beams and where to find them", ICML 2019).
    """
    return -torch.empty(size, dtype=torch.float64).exponential_(generator=generator).log()


def masked_softmax(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Softmax over the last axis where absent entries get exactly 0, and a row without any entry gets only zeros.

    Args:
        logits: (..., N).
        present: bool, broadcastable to `logits`.
    """
    if logits.shape[-1] == 0:
        return logits
    filled = logits.masked_fill(~present, -torch.inf)
    top = filled.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    weights = torch.exp(filled - top.detach())
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)


def top_ids(scores_N: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """(N,) positions from the highest score to the lowest; ties are broken by the smaller id."""
    by_id = ids_N.argsort()
    return by_id[scores_N[by_id].argsort(descending=True, stable=True)]
