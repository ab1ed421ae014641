"""Encoder, selection and aggregator joined: a bag of patches in, class logits out.

Source: R. Qin et al., "No Pains, More Gains", CVPR 2025; special cases are IPS (B. Bergner et al., ICLR 2023: S = 0),
random selection, and plain end-to-end multiple-instance learning. Shapes as in dbps/select.py and aggregators.py.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from wsi_dbps.dbps.scores import log_scores
from wsi_dbps.dbps.select import Chunk, Selection, select_global, select_random, select_streaming
from wsi_dbps.models.aggregators import AGGREGATORS
from wsi_dbps.models.encoders import batch_norms, build_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from wsi_dbps.models.config import AggregatorConfig, EncoderConfig, SelectionConfig


class PatchSource(Protocol):
    """Where a bag's pixels come from: a cache on disk, or a tensor."""

    @property
    def num_patches(self) -> int:
        """N."""

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its (L, 3, P, P) uint8 pixels; the next may be read while this one is used."""


@dataclass(frozen=True)
class Chosen:
    """A bag after selection: all that the gradient stage needs of it."""

    selection: Selection
    salient_pixels_MCPP: torch.Tensor
    """uint8, row i belongs to `selection.salient_M[i]`."""
    subsalient_SD: torch.Tensor
    """Recycled embeddings, without gradient; row i belongs to `selection.subsalient_S[i]`."""
    logits_RK: torch.Tensor | None = None
    """Attention logits of the salient, then of the sub-salient; None where nothing was scored."""


@dataclass(frozen=True)
class BagOutput:
    """A prediction and how every patch was looked at."""

    logits_C: torch.Tensor
    attention_RN: torch.Tensor
    """(R, N) attention logits of every patch of the bag, by row of the slide's plan."""
    weights_N: torch.Tensor
    """(N,) softmax of them over the whole bag, averaged over R."""
    selection: Selection


class SlideModel(nn.Module):
    """A slide-level classifier whose encoder learns from the patches that its own attention selects."""

    def __init__(
        self,
        num_classes: int,
        encoder: EncoderConfig,
        aggregator: AggregatorConfig,
        selection: SelectionConfig,
        *,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, load_weights=load_weights)
        self.aggregator = AGGREGATORS[aggregator.name](self.encoder.dim, num_classes, aggregator)
        self.config = selection
        self._freeze_batch_norm = encoder.batch_norm == "frozen"

    def train(self, mode: bool = True) -> SlideModel:
        """Set train or evaluation mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if mode and self._freeze_batch_norm:
            for layer in batch_norms(self):
                layer.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.aggregator.query.device

    def select(
        self, bag: PatchSource, kept_N: torch.Tensor, generator: torch.Generator, *, explore: bool = False
    ) -> Chosen:
        """Fill the two buffers from the kept patches, without gradient and in evaluation mode.

        Args:
            bag: Where the pixels come from.
            kept_N: Ids left after random drop, at least one.
            generator: For random selection only.
            explore: Select at random whatever the settings say.
        """
        config = self.config
        name = "random" if explore and config.selector != "all" else config.selector
        with evaluation_mode(self), torch.no_grad():
            if name == "streaming":
                chunks = self._encode(bag, self.first_reads(kept_N))
                buffers = select_streaming(chunks, config.num_salient, config.num_subsalient)
                pixels = buffers.salient.pixels_LCPP
                assert pixels is not None
                logits_RK = torch.cat([buffers.salient.logits_RL, buffers.subsalient.logits_RL], dim=1)
                return Chosen(_on_cpu(buffers.selection), pixels, buffers.subsalient.embeddings_LD, logits_RK)
            scored_RK = None
            if name == "global":
                logits_RN = torch.cat([c.logits_RL for c in self._encode(bag, self.first_reads(kept_N))], dim=1)
                selection = select_global(logits_RN.cpu(), kept_N, config.num_salient, config.num_subsalient)
                chosen = torch.cat([selection.salient_M, selection.subsalient_S])
                ascending = kept_N.argsort()
                scored_RK = logits_RN[:, ascending[torch.searchsorted(kept_N[ascending], chosen)]]
            elif name == "random":
                selection = select_random(kept_N, config.num_salient, config.num_subsalient, generator)
            else:
                selection = Selection(kept_N, kept_N[:0])
            pixels = torch.cat(list(self._pixels(bag, _split(selection.salient_M, config))))
            return Chosen(selection, pixels, self._embed(bag, selection.subsalient_S), scored_RK)

    def will_read(
        self, kept_N: torch.Tensor, generator: torch.Generator, *, explore: bool = False
    ) -> list[torch.Tensor]:
        """The lists of ids that `select` with the same arguments begins to read; the generator is not advanced."""
        name = "random" if explore and self.config.selector != "all" else self.config.selector
        if name in ("streaming", "global"):
            return self.first_reads(kept_N)
        if name == "random":
            same = torch.Generator()
            same.set_state(generator.get_state())
            kept_N = select_random(kept_N, self.config.num_salient, self.config.num_subsalient, same).salient_M
        return _split(kept_N, self.config)

    def first_reads(self, ids_N: torch.Tensor) -> list[torch.Tensor]:
        """The lists of ids in which a pass over these patches reads them: the first M, then chunks."""
        m = self.config.num_salient
        return [ids for ids in (ids_N[:m], *_split(ids_N[m:], self.config)) if len(ids)]

    def forward(
        self,
        bags: Sequence[Chosen],
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """(B, C) class logits of bags after selection; the salient patches of all are encoded together, with gradient.

        Args:
            bags: At least one; they may differ in their numbers of patches.
            augment: Applied to the salient pixels, (n, 3, P, P) uint8 to float.
            seeds: One per bag, of its augmentation and its aggregator's dropout, which then do not depend on what else
                is in the batch; torch's global generator is left seeded. None: it is taken as it is.
        """
        parts = []
        for i, bag in enumerate(bags):
            if seeds is not None:
                torch.manual_seed(seeds[i])
            parts.append(bag.salient_pixels_MCPP if augment is None else augment(bag.salient_pixels_MCPP))
        salient = self.encoder(torch.cat(parts)).split([len(part) for part in parts])
        if seeds is None:
            return self._aggregate(salient, [bag.subsalient_SD for bag in bags])
        logits_BC = []
        for seed, salient_MD, bag in zip(seeds, salient, bags, strict=True):
            torch.manual_seed(seed + 1)
            logits_BC.append(self._aggregate([salient_MD], [bag.subsalient_SD]))
        return torch.cat(logits_BC)

    @torch.no_grad()
    def predict(self, bag: PatchSource, generator: torch.Generator) -> BagOutput:
        """The prediction for a whole bag: nothing dropped, nothing augmented, and memory for one chunk of pixels.

        Every patch is scored; then the selected ones are encoded again and pooled.
        """
        config = self.config
        ids_N = torch.arange(bag.num_patches)
        with evaluation_mode(self):
            seen: list[torch.Tensor] = []
            chunks = self._encode(bag, self.first_reads(ids_N))
            if config.predict_selector == "streaming":
                buffers = select_streaming(_noting(chunks, seen), config.num_salient, config.num_subsalient)
                selection = _on_cpu(buffers.selection)
            else:
                for _ in _noting(chunks, seen):
                    pass
            attention_RN = torch.cat(seen, dim=1).float().cpu()
            if config.predict_selector == "global":
                selection = select_global(attention_RN, ids_N, config.num_salient, config.num_subsalient)
            elif config.predict_selector == "random":
                selection = select_random(ids_N, config.num_salient, config.num_subsalient, generator)
            elif config.predict_selector == "all":
                selection = Selection(ids_N, ids_N[:0])
            salient_MD, subsalient_SD = (self._embed(bag, ids) for ids in (selection.salient_M, selection.subsalient_S))
            logits_C = self._aggregate([salient_MD], [subsalient_SD])[0].float().cpu()
        return BagOutput(logits_C, attention_RN, log_scores(attention_RN).exp().float(), selection)

    def _pixels(self, bag: PatchSource, id_lists: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        for pixels in bag.read([ids for ids in id_lists if len(ids)]):
            yield pixels.to(self.device, non_blocking=True)

    def _encode(self, bag: PatchSource, id_lists: Sequence[torch.Tensor]) -> Iterator[Chunk]:
        id_lists = [ids for ids in id_lists if len(ids)]
        for ids, pixels in zip(id_lists, self._pixels(bag, id_lists), strict=True):
            embeddings_LD = self.encoder(pixels).float()
            logits_RL = self.aggregator.score_logits(embeddings_LD).float()
            yield Chunk(ids.to(self.device), logits_RL, embeddings_LD, pixels)

    def _embed(self, bag: PatchSource, ids: torch.Tensor) -> torch.Tensor:
        parts = [self.encoder(pixels).float() for pixels in self._pixels(bag, _split(ids, self.config))]
        return torch.cat(parts) if parts else torch.zeros(0, self.encoder.dim, device=self.device)

    def _aggregate(self, salient: Sequence[torch.Tensor], subsalient: Sequence[torch.Tensor]) -> torch.Tensor:
        logits_BC: torch.Tensor = self.aggregator(*_padded(salient), *_padded(subsalient))
        return logits_BC


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards, whatever happened, every module has its own flag back."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, flag in flags:
            m.training = flag


def _split(ids: torch.Tensor, config: Any) -> list[torch.Tensor]:
    return list(ids.split(config.chunk_size))


def _noting(chunks: Iterable[Chunk], seen: list[torch.Tensor]) -> Iterator[Chunk]:
    for chunk in chunks:
        seen.append(chunk.logits_RL)
        yield chunk


def _on_cpu(selection: Selection) -> Selection:
    return Selection(selection.salient_M.cpu(), selection.subsalient_S.cpu())


def _padded(bags: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, longest, D) embeddings and (B, longest) which rows are there."""
    lengths = torch.tensor([len(bag) for bag in bags], device=bags[0].device)
    padded = nn.utils.rnn.pad_sequence(list(bags), batch_first=True)
    present = torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]
    return padded, present
