"""Dual-buffer patch selection: which patches of a bag learn, which are recycled, and which are let go.

Source: R. Qin et al., "No Pains, More Gains", CVPR 2025. M is `num_salient`, S `num_subsalient`, P_M the `salient`
buffer, P_S the `subsalient` buffer, l_hj(u) a column of `logits_RN`.

Shapes: R attention rows (heads x query tokens), L patches of a chunk, N' kept patches, C x P x P pixels, D embedding.
Ids are rows of the slide's plan throughout; positions within a buffer never leave this file.

Where figure and published code differ: the figure sorts all of [P_M ; chunk ; P_S] anew with each chunk, the code never
promotes a sub-salient patch. Only P_M and the chunk have pixels at hand, so only they can enter P_M, and a sub-salient
patch is never promoted; with one attention row none would be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from wsi_dbps.dbps.ranking import gumbel, log_scores, top_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True)
class Chunk:
    """Patches after a forward pass without gradient. Every field has the same number of rows, L."""

    ids_L: torch.Tensor
    """int64, rows of the slide's plan."""
    logits_RL: torch.Tensor
    """Attention logits, one column per patch."""
    embeddings_LD: torch.Tensor
    pixels_LCPP: torch.Tensor | None = None
    """uint8; None where the pixels are not to be held."""

    def take(self, positions: torch.Tensor) -> Chunk:
        """The patches at the named positions, in that order."""
        pixels = None if self.pixels_LCPP is None else self.pixels_LCPP[positions]
        return Chunk(self.ids_L[positions], self.logits_RL[:, positions], self.embeddings_LD[positions], pixels)

    def of(self, ids: torch.Tensor) -> Chunk:
        """The patches of these ids, in that order."""
        by_id = self.ids_L.argsort()
        return self.take(by_id[torch.searchsorted(self.ids_L[by_id], ids)])

    def without_pixels(self) -> Chunk:
        """The same patches, their pixels let go."""
        return replace(self, pixels_LCPP=None)

    def joined(self, other: Chunk) -> Chunk:
        """These patches, then the other's; pixels only if both have them."""
        both = self.pixels_LCPP is not None and other.pixels_LCPP is not None
        return Chunk(
            torch.cat([self.ids_L, other.ids_L]),
            torch.cat([self.logits_RL, other.logits_RL], dim=1),
            torch.cat([self.embeddings_LD, other.embeddings_LD]),
            torch.cat([self.pixels_LCPP, other.pixels_LCPP]) if both else None,  # type: ignore[list-item]
        )


@dataclass(frozen=True)
class Selection:
    """Which patches were chosen. The two are disjoint; both are ordered from the highest score down."""

    salient_M: torch.Tensor
    """int64 ids in the fundamental buffer, at most M."""
    subsalient_S: torch.Tensor
    """int64 ids in the auxiliary buffer, at most S; empty where the bag has no more than M patches."""


def perturbed(chunks: Iterable[Chunk], noise_N: torch.Tensor) -> Iterator[Chunk]:
    """The same patches, each with its own number added to its logits, the same in every row.

    Args:
        chunks: In any sizes.
        noise_N: One number per patch, in the order in which they come.
    """
    start = 0
    for chunk in chunks:
        noise_L = noise_N[start : start + len(chunk.ids_L)].to(chunk.logits_RL)
        yield replace(chunk, logits_RL=chunk.logits_RL + noise_L)
        start += len(chunk.ids_L)


def gathered(chunks: Iterable[Chunk]) -> Chunk:
    """All patches of all chunks as one, without pixels.

    Raises:
        ValueError: If there is no chunk.
    """
    parts = [(c.ids_L, c.logits_RL, c.embeddings_LD) for c in chunks]
    if not parts:
        raise ValueError("a bag must hold at least one patch")
    ids, logits, embeddings = zip(*parts, strict=True)
    return Chunk(torch.cat(ids), torch.cat(logits, dim=1), torch.cat(embeddings))


@dataclass(frozen=True)
class Buffers:
    """The two buffers after a pass over the bag; a buffer that is not full is short, never padded."""

    salient: Chunk
    subsalient: Chunk

    @property
    def selection(self) -> Selection:
        """The ids of both."""
        return Selection(self.salient.ids_L, self.subsalient.ids_L)


def select_streaming(
    chunks: Iterable[Chunk], num_salient: int, num_subsalient: int | None, *, keep_pixels: bool = False
) -> Buffers:
    """Keep the M most salient patches and the S next while chunks stream by; memory O(M + L + S).

    For each chunk C: U = [P_M ; C], P_M <- top-M of a over U; W = [the losers of U ; P_S], P_S <- top-S of b over W,
    where a and b are the mean over heads of the softmax over U and over W. With one head this equals `select_global`;
    with several the outcome depends on the order of patches.

    Args:
        chunks: At least one, in any sizes; the published procedure starts with a chunk of M patches.
        num_salient: M, at least 1.
        num_subsalient: S, may be 0; None: all that are not salient.
        keep_pixels: Keep the pixels of the auxiliary buffer too, where chunks have them.

    Raises:
        ValueError: If there is no chunk.
    """
    salient: Chunk | None = None
    subsalient: Chunk | None = None
    for chunk in chunks:
        union = chunk if salient is None else salient.joined(chunk)
        order = top_ids(log_scores(union.logits_RL), union.ids_L)
        salient = union.take(order[:num_salient])
        losers = (union if keep_pixels else union.without_pixels()).take(order[num_salient:])
        rest = losers if subsalient is None else losers.joined(subsalient)
        if len(rest.ids_L) > 0:
            rest = rest.take(top_ids(log_scores(rest.logits_RL), rest.ids_L)[:num_subsalient])
        subsalient = rest
    if salient is None or subsalient is None:
        raise ValueError("a bag must hold at least one patch")
    return Buffers(salient, subsalient)


def select_global(
    logits_RN: torch.Tensor, ids_N: torch.Tensor, num_salient: int, num_subsalient: int | None
) -> Selection:
    """The M most salient patches of the whole kept bag and the S next (None: all others), by one softmax over it.

    Independent of the order of patches and of chunking.

    Raises:
        ValueError: If the bag is empty.
    """
    if len(ids_N) == 0:
        raise ValueError("a bag must hold at least one patch")
    ranked = ids_N[top_ids(log_scores(logits_RN), ids_N)]
    return Selection(ranked[:num_salient], ranked[num_salient:][:num_subsalient])


def select_sampled(
    logits_RN: torch.Tensor,
    ids_N: torch.Tensor,
    num_salient: int,
    num_subsalient: int | None,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
) -> Selection:
    """M patches, half of them drawn among the M of highest score and the rest among the others; then the S next.

    With random drop before it this is triple sampling (DBPS+). Patches are drawn without replacement, with chances in
    proportion to a(u) ** (1 / temperature). (Published code: a softmax of a softmax, which draws almost evenly.)

    Args:
        logits_RN: Attention logits of the kept bag.
        ids_N: Its ids.
        num_salient: M. Of an odd M the larger half comes from the top, and more where the others are too few.
        num_subsalient: S, by score; None: all that are not salient.
        generator: Draws.
        temperature: Above 0; near 0 the highest scores are taken, far above 1 the draw is uniform.

    Returns:
        Both buffers from the highest score down.

    Raises:
        ValueError: If the bag is empty, or `temperature` is not above 0.
    """
    if len(ids_N) == 0:
        raise ValueError("a bag must hold at least one patch")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    scores_N = log_scores(logits_RN)
    order_N = top_ids(scores_N, ids_N)
    noisy_N = (scores_N[order_N] / temperature).cpu() + gumbel(len(ids_N), generator)
    from_top = max(num_salient - num_salient // 2, num_salient - max(0, len(ids_N) - num_salient))
    drawn_N = torch.zeros(len(ids_N), dtype=torch.bool)
    drawn_N[noisy_N[:num_salient].topk(min(from_top, len(ids_N))).indices] = True
    drawn_N[num_salient + noisy_N[num_salient:].topk(num_salient - from_top).indices] = True
    ranked, drawn_N = ids_N[order_N], drawn_N.to(ids_N.device)
    return Selection(ranked[drawn_N], ranked[~drawn_N][:num_subsalient])


def select_random(
    ids_N: torch.Tensor, num_salient: int, num_subsalient: int | None, generator: torch.Generator
) -> Selection:
    """M patches and S others (None: all), drawn uniformly; neither is read before.

    Raises:
        ValueError: If the bag is empty.
    """
    if len(ids_N) == 0:
        raise ValueError("a bag must hold at least one patch")
    drawn = ids_N[torch.randperm(len(ids_N), generator=generator)]
    return Selection(drawn[:num_salient], drawn[num_salient:][:num_subsalient])
