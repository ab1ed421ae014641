"""A training visit: everything random about one slide in one epoch, drawn from the seed, the epoch and the slide alone.

A visit is therefore the same in any process, batch or order, and after any interruption.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_dbps.core.digests import digest
from wsi_dbps.dbps.drop import draw_kept, num_kept
from wsi_dbps.formats.selection_record import VisitRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from wsi_dbps.bags.bags import CacheBag
    from wsi_dbps.models.bag import Chosen
    from wsi_dbps.models.settings import SelectionConfig
    from wsi_dbps.models.slide_model import SlideModel


@dataclass(frozen=True)
class Visit:
    """A slide, and everything random about one visit to it."""

    bag: CacheBag
    place: int
    """Position in the epoch's order, from 0."""
    seed: int
    """Random seed of augmentation and dropout."""
    draws: torch.Generator
    """Generator of random selection."""
    kept_N: torch.Tensor
    """Ids of the patches that random drop kept, ascending."""
    explore: bool
    """Whether patches are selected at random, as exploration."""
    noise: float
    """Scale of the Gumbel noise added to the logits by which patches are ranked."""

    def record(self, chosen: Chosen) -> VisitRecord:
        """What the selection record keeps: which patches were kept and selected, and their logits."""
        selection = chosen.selection
        kept_N = np.zeros(self.bag.num_patches, bool)
        kept_N[self.kept_N.numpy()] = True
        return VisitRecord(
            slide_id=self.bag.record.slide_id,
            place=self.place,
            explored=self.explore,
            kept_N=kept_N,
            salient_M=selection.salient_M.numpy(),
            recycled_S=selection.subsalient_S.numpy(),
            logits_KR=chosen.logits_RK.float().cpu().numpy().T,
        )


def visit_seed(seed: int, epoch: int, slide_id: str) -> int:
    """Random seed for one visit to one slide.

    >>> visit_seed(0, 3, "a") == visit_seed(0, 3, "a") != visit_seed(0, 4, "a")
    True
    """
    return int(digest([seed, epoch, slide_id]), 16) >> 2


def draw_visit(
    bag: CacheBag, place: int, *, seed: int, epoch: int, exploration: float, config: SelectionConfig
) -> Visit:
    """Draw a visit.

    Args:
        bag: The slide.
        place: Position in the epoch's order, from 0.
        seed: Random seed of the run.
        epoch: Counted from 0.
        exploration: Between 1 and 0: probability of a random selection, or scale of the noise.
        config: How many patches are kept, and which of the two kinds of exploration is used.
    """
    its_seed = visit_seed(seed, epoch, bag.record.slide_id)
    draws = torch.Generator().manual_seed(its_seed)
    chance, noise = (0.0, exploration) if config.exploration_kind == "gumbel" else (exploration, 0.0)
    explore = torch.rand((), generator=draws).item() < chance
    kept = num_kept(bag.num_patches, config.num_salient, rate=config.drop_rate, count=config.num_kept)
    return Visit(bag, place, its_seed, draws, draw_kept(bag.num_patches, kept, draws), explore, noise)


def read_ahead(model: SlideModel, visits: Iterable[Visit]) -> Iterator[Visit]:
    """The visits; while one is at work, the bag of the next is told what to read ahead."""
    for visit, following in pairwise(chain(visits, [None])):
        if following is not None:
            following.bag.expect(model.will_read(following.kept_N, following.draws, explore=following.explore))
        assert visit is not None
        yield visit


def exploring(epoch: float, epochs: int, exploration: float) -> float:
    """Probability of a random selection, or scale of the noise: decays linearly from 1 to 0.

    It reaches 0 after a fraction `exploration` of training; with 0, there is none.

    >>> [exploring(epoch, 10, 0.4) for epoch in (0, 1, 2, 4, 9)]
    [1.0, 0.75, 0.5, 0.0, 0.0]
    """
    return max(0.0, 1 - epoch / (exploration * epochs)) if exploration else 0.0
