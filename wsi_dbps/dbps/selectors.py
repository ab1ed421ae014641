"""Selectors: which patches of a bag are salient, which are sub-salient, and which are left out.

A selector is one object. It says what it reads first (`will_read`), whether every patch must be scored before it can
select (it is then a `ScoringSelector`), what it selects in training (`fill` or `draw`) and in prediction
(`select_scored`), which selector takes its place at a visit that explores (`exploring`), and what it costs
(`workload`). Another selector is one more class here and its name in `SELECTORS` and `SelectionConfig`.

Source: R. Qin et al., "No Pains, More Gains", CVPR 2025. M is `num_salient`, S `most_subsalient`, L `chunk_size`, P_M
the `salient` buffer, P_S the `subsalient` buffer, l_hj(u) a column of `logits_RN`.

Shapes: R attention rows (heads x query tokens), L patches of a chunk, N patches of the bag that random drop left.

Where figure and published code differ: the figure sorts all of [P_M ; chunk ; P_S] anew with each chunk, the code never
promotes a sub-salient patch. Only P_M and the chunk have their pixels in memory, so only they can enter P_M, and a
sub-salient patch is never promoted; with one attention row none would be.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from wsi_dbps.dbps.buffers import Buffers, Chunk, Selection, gathered
from wsi_dbps.dbps.ranking import gumbel, log_scores, top_ids

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Workload:
    """What it costs to fill the buffers of one bag, counted in patches."""

    num_salient: int
    """Patches in the fundamental buffer."""
    num_subsalient: int
    """Patches in the auxiliary buffer."""
    num_encoded: int
    """Patches encoded without gradient."""
    num_read: int
    """Patches read; one that is read twice counts twice."""
    num_pixels: int
    """Most patches whose pixels are in memory at once."""
    num_embeddings: int
    """Most patches whose embeddings are in memory at once."""


@dataclass(frozen=True)
class Selector(ABC):
    """Fills the two buffers of a bag. Its fields are the settings that it obeys, with their names."""

    num_salient: int
    """M, at least 1."""
    most_subsalient: int | None
    """S, at least 0; None: every patch that is not salient."""
    chunk_size: int = 64
    """L, patches read and encoded at once."""

    @abstractmethod
    def will_read(self, kept_N: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
        """The lists of ids that selection from these patches begins to read.

        Args:
            kept_N: Ids of the patches that random drop left.
            generator: As selection will get it; it is not advanced.
        """

    @abstractmethod
    def select_scored(self, logits_RN: torch.Tensor, ids_K: torch.Tensor, generator: torch.Generator) -> Selection:
        """What is selected in prediction, where every patch of the bag has been scored already.

        Args:
            logits_RN: Attention logits of all patches of the bag, one column per id.
            ids_K: Ids of the patches to select from, at least one.
            generator: For what is random.

        Raises:
            ValueError: If `ids_K` is empty.
        """

    @abstractmethod
    def workload(self, num_kept: int, *, keep_pixels: bool) -> Workload:
        """What selection from a bag of so many patches costs.

        Args:
            num_kept: Patches that random drop left.
            keep_pixels: Whether the pixels of the sub-salient patches are wanted in place of their embeddings.
        """

    def exploring(self) -> AnySelector:
        """The selector of a visit that explores: it draws the same numbers of patches at random."""
        return RandomSelector(self.num_salient, self.most_subsalient, self.chunk_size)

    def in_chunks(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """These ids in lists of `chunk_size`; the last may be shorter."""
        return [part for part in ids.split(self.chunk_size) if len(part)]

    def first_reads(self, ids_N: torch.Tensor) -> list[torch.Tensor]:
        """The lists of ids in which a pass over these patches reads them: the first M, then chunks of L."""
        m = self.num_salient
        return [part for part in (ids_N[:m], *self.in_chunks(ids_N[m:])) if len(part)]

    def sizes(self, num_kept: int) -> tuple[int, int]:
        """How many salient and how many sub-salient patches a bag of so many patches has."""
        salient = min(self.num_salient, num_kept)
        rest = num_kept - salient
        return salient, rest if self.most_subsalient is None else min(self.most_subsalient, rest)

    def _workload(self, num_kept: int, *, encoded: int, read: int, embeddings: int, keep_pixels: bool) -> Workload:
        salient, subsalient = self.sizes(num_kept)
        # the salient buffer meets the chunk at hand; sub-salient patches are held beside them only where asked for
        pixels = salient + min(self.chunk_size, num_kept) + (subsalient if keep_pixels else 0)
        return Workload(salient, subsalient, encoded, read, pixels, embeddings)


class ScoringSelector(Selector):
    """A selector that ranks patches by attention: every patch is read, encoded and scored for it."""

    @abstractmethod
    def fill(self, chunks: Iterable[Chunk], generator: torch.Generator, *, keep_pixels: bool = False) -> Buffers:
        """Both buffers, filled from scored chunks. The salient patches need not have kept their pixels.

        Args:
            chunks: All patches that random drop left, as `first_reads` orders them; at least one chunk.
            generator: For what is random.
            keep_pixels: Keep the pixels of the sub-salient buffer too, where the selector keeps any.

        Raises:
            ValueError: If there is no chunk.
        """

    def will_read(self, kept_N: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
        """All patches: the first M, then chunks of L."""
        del generator
        return self.first_reads(kept_N)

    def select_scored(self, logits_RN: torch.Tensor, ids_K: torch.Tensor, generator: torch.Generator) -> Selection:
        """As `fill` selects; embeddings have no part in it."""
        reads = self.first_reads(ids_K)
        chunks = (Chunk(ids, logits_RN[:, ids], logits_RN.new_empty(len(ids), 0)) for ids in reads)
        return self.fill(chunks, generator).selection


class StreamingSelector(ScoringSelector):
    """Keeps the M most salient patches and the S next while chunks stream by; memory O(M + L + S).

    For each chunk C: U = [P_M ; C], P_M <- top-M of a over U; W = [the losers of U ; P_S], P_S <- top-S of b over W,
    where a and b are the mean over heads of the softmax over U and over W. With one head this equals `global`; with
    several the outcome depends on the order of patches.
    """

    def fill(self, chunks: Iterable[Chunk], generator: torch.Generator, *, keep_pixels: bool = False) -> Buffers:
        """Both buffers; salient patches keep their pixels. The published procedure starts with a chunk of M patches."""
        del generator
        salient: Chunk | None = None
        subsalient: Chunk | None = None
        for chunk in chunks:
            union = chunk if salient is None else salient.joined(chunk)
            order = top_ids(log_scores(union.logits_RL), union.ids_L)
            salient = union.take(order[: self.num_salient])
            losers = (union if keep_pixels else union.without_pixels()).take(order[self.num_salient :])
            rest = losers if subsalient is None else losers.joined(subsalient)
            if len(rest.ids_L) > 0:
                rest = rest.take(top_ids(log_scores(rest.logits_RL), rest.ids_L)[: self.most_subsalient])
            subsalient = rest
        if salient is None or subsalient is None:
            raise ValueError("a bag must hold at least one patch")
        return Buffers(salient, subsalient)

    def workload(self, num_kept: int, *, keep_pixels: bool) -> Workload:
        """Every patch is read and encoded once; nothing in memory grows with the bag."""
        held = sum(self.sizes(num_kept)) + min(self.chunk_size, num_kept)
        return self._workload(num_kept, encoded=num_kept, read=num_kept, embeddings=held, keep_pixels=keep_pixels)


class WholeBagSelector(ScoringSelector):
    """A selector that sees the scores of all patches at once; their embeddings are held meanwhile, their pixels not."""

    @abstractmethod
    def choose(self, logits_RN: torch.Tensor, ids_N: torch.Tensor, generator: torch.Generator) -> Selection:
        """What is selected from a bag of at least one patch, all on the CPU.

        Args:
            logits_RN: Attention logits, one column per patch.
            ids_N: The patches' ids, in the order of the columns.
            generator: For what is random.
        """

    def fill(self, chunks: Iterable[Chunk], generator: torch.Generator, *, keep_pixels: bool = False) -> Buffers:
        """Both buffers, without pixels: those of the chosen patches are read again."""
        del keep_pixels
        whole = gathered(chunks)
        chosen = self.choose(whole.logits_RL.cpu(), whole.ids_L.cpu(), generator).to(whole.ids_L.device)
        return Buffers(whole.of(chosen.salient_M), whole.of(chosen.subsalient_S))

    def workload(self, num_kept: int, *, keep_pixels: bool) -> Workload:
        """Every patch is read and encoded, the chosen ones are read again, and every embedding is held."""
        salient, subsalient = self.sizes(num_kept)
        read = num_kept + salient + (subsalient if keep_pixels else 0)
        return self._workload(num_kept, encoded=num_kept, read=read, embeddings=num_kept, keep_pixels=keep_pixels)


class GlobalSelector(WholeBagSelector):
    """The M most salient patches of the whole bag and the S next, by one softmax over all of it.

    Independent of the order of patches and of the chunks that they come in.
    """

    def choose(self, logits_RN: torch.Tensor, ids_N: torch.Tensor, generator: torch.Generator) -> Selection:
        """The first M and the next S by score."""
        del generator
        ranked = ids_N[top_ids(log_scores(logits_RN), ids_N)]
        return Selection(ranked[: self.num_salient], ranked[self.num_salient :][: self.most_subsalient])


@dataclass(frozen=True)
class SampledSelector(WholeBagSelector):
    """M patches, half of them drawn among the M of highest score and the rest among the others; then the S next.

    With random drop before it this is triple sampling (DBPS+). Patches are drawn without replacement, with chances in
    proportion to a(u) ** (1 / temperature). (Published code: a softmax of a softmax, which draws almost evenly.) Of an
    odd M the larger half comes from the top, and more where the others are too few.

    Raises:
        ValueError: If `temperature` is not above 0.
    """

    temperature: float = 1.0
    """Above 0. Near 0 the highest scores of each half are taken; far above 1 the draw is uniform."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, found {self.temperature}")

    def choose(self, logits_RN: torch.Tensor, ids_N: torch.Tensor, generator: torch.Generator) -> Selection:
        """Both buffers, each ordered by falling score."""
        m, num = self.num_salient, len(ids_N)
        scores_N = log_scores(logits_RN)
        order_N = top_ids(scores_N, ids_N)
        noisy_N = scores_N[order_N] / self.temperature + gumbel(num, generator)  # Gumbel top-k
        from_top = max(m - m // 2, m - max(0, num - m))
        drawn_N = torch.zeros(num, dtype=torch.bool)
        drawn_N[noisy_N[:m].topk(min(from_top, num)).indices] = True
        drawn_N[m + noisy_N[m:].topk(m - from_top).indices] = True
        ranked = ids_N[order_N]
        return Selection(ranked[drawn_N], ranked[~drawn_N][: self.most_subsalient])


class UnscoredSelector(Selector):
    """A selector that chooses by ids alone, before anything is read; only the chosen patches are read."""

    @abstractmethod
    def draw(self, ids_N: torch.Tensor, generator: torch.Generator) -> Selection:
        """What is selected.

        Args:
            ids_N: Ids to select from, at least one.
            generator: For what is random.

        Raises:
            ValueError: If `ids_N` is empty.
        """

    def will_read(self, kept_N: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
        """The salient patches that will be drawn, in chunks of L."""
        same = torch.Generator()
        same.set_state(generator.get_state())
        return self.in_chunks(self.draw(kept_N, same).salient_M)

    def select_scored(self, logits_RN: torch.Tensor, ids_K: torch.Tensor, generator: torch.Generator) -> Selection:
        """As `draw` selects; the scores have no part in it."""
        del logits_RN
        return self.draw(ids_K, generator)

    def workload(self, num_kept: int, *, keep_pixels: bool) -> Workload:
        """Only the chosen patches are read, and of these only the sub-salient ones encoded without gradient."""
        salient, subsalient = self.sizes(num_kept)
        encoded = 0 if keep_pixels else subsalient
        return self._workload(
            num_kept, encoded=encoded, read=salient + subsalient, embeddings=encoded, keep_pixels=keep_pixels
        )


class RandomSelector(UnscoredSelector):
    """M patches and S others, drawn uniformly without replacement: the baseline to beat."""

    def draw(self, ids_N: torch.Tensor, generator: torch.Generator) -> Selection:
        """Both buffers, in the order drawn."""
        _check_not_empty(ids_N)
        drawn = ids_N[torch.randperm(len(ids_N), generator=generator)]
        return Selection(drawn[: self.num_salient], drawn[self.num_salient :][: self.most_subsalient])


class AllSelector(UnscoredSelector):
    """Every patch is salient: plain end-to-end multiple-instance learning. M and S have no part in it."""

    def draw(self, ids_N: torch.Tensor, generator: torch.Generator) -> Selection:
        """All ids in their order; nothing is sub-salient."""
        del generator
        _check_not_empty(ids_N)
        return Selection(ids_N, ids_N[:0])

    def exploring(self) -> AnySelector:
        """Itself: there is nothing to explore."""
        return self

    def sizes(self, num_kept: int) -> tuple[int, int]:
        """All, and none."""
        return num_kept, 0


def _check_not_empty(ids_N: torch.Tensor) -> None:
    if len(ids_N) == 0:
        raise ValueError("a bag must hold at least one patch")


AnySelector = ScoringSelector | UnscoredSelector
"""Either kind; a new selector is one of the two."""

SELECTORS: dict[str, type[ScoringSelector] | type[UnscoredSelector]] = {
    "streaming": StreamingSelector,
    "global": GlobalSelector,
    "sampled": SampledSelector,
    "random": RandomSelector,
    "all": AllSelector,
}
"""By the name that settings give them; all of them are allowed in training."""


def build_selector(name: str, settings: object) -> AnySelector:
    """The selector of that name.

    Args:
        name: Of `SELECTORS`.
        settings: Has an attribute for each field of the selector, as `SelectionConfig` has.
    """
    kind = SELECTORS[name]
    return kind(**{field.name: getattr(settings, field.name) for field in fields(kind)})
