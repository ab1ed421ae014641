"""A training visit: what is drawn for a slide at an epoch, from the seed, the epoch and the slide alone.

So a visit is the same in whatever process, batch or order it comes, after whatever interruption.
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
    """A slide, and all that chance decides about it."""

    bag: CacheBag
    place: int
    """Position in the epoch's order, from 0."""
    seed: int
    """Of augmentation and dropout."""
    draws: torch.Generator
    """Of random selection."""
    kept_N: torch.Tensor
    """Ids that random drop left, ascending."""
    explore: bool
    """Select at random."""
    noise: float
    """Scale of the Gumbel noise that patches are ranked with."""

    def record(self, chosen: Chosen) -> VisitRecord:
        """What became of every patch."""
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
    """A seed for one visit to one slide.

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
        seed: The run's.
        epoch: From 0.
        exploration: From 1 down to 0: chance of a random selection, or scale of the noise.
        config: Says how many patches are kept, and which of the two falls.
    """
    its_seed = visit_seed(seed, epoch, bag.record.slide_id)
    draws = torch.Generator().manual_seed(its_seed)
    chance, noise = (0.0, exploration) if config.exploration_kind == "gumbel" else (exploration, 0.0)
    explore = torch.rand((), generator=draws).item() < chance
    kept = num_kept(bag.num_patches, config.num_salient, rate=config.drop_rate, count=config.num_kept)
    return Visit(bag, place, its_seed, draws, draw_kept(bag.num_patches, kept, draws), explore, noise)


def read_ahead(model: SlideModel, visits: Iterable[Visit]) -> Iterator[Visit]:
    """The visits, each one's bag being told what it will be asked for while the one before is at work."""
    for visit, following in pairwise(chain(visits, [None])):
        if following is not None:
            following.bag.expect(model.will_read(following.kept_N, following.draws, explore=following.explore))
        assert visit is not None
        yield visit


def exploring(epoch: float, epochs: int, exploration: float) -> float:
    """Chance of a random selection, or scale of the noise: from 1 evenly down to 0 over a first share of training.

    >>> [exploring(epoch, 10, 0.4) for epoch in (0, 1, 2, 4, 9)]
    [1.0, 0.75, 0.5, 0.0, 0.0]
    """
    return max(0.0, 1 - epoch / (exploration * epochs)) if exploration else 0.0
