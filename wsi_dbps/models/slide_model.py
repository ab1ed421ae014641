"""Encoder, selection and aggregator joined: a bag of patches in, output logits out.

Source: R. Qin et al., "No Pains, More Gains", CVPR 2025; special cases are IPS (B. Bergner et al., ICLR 2023: S = 0),
random selection, and plain end-to-end multiple-instance learning. Shapes as in dbps/buffers.py and models/bag.py; the
selector is an object of dbps/selectors.py.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.dbps.buffers import Chunk, perturbed
from wsi_dbps.dbps.ranking import gumbel, log_scores
from wsi_dbps.dbps.selectors import UnscoredSelector, build_selector
from wsi_dbps.models.aggregators.build import AGGREGATORS
from wsi_dbps.models.attribution import with_attribution
from wsi_dbps.models.bag import BagOutput, Chosen, Explained, SubsalientEmbeddings, SubsalientPixels
from wsi_dbps.models.encoders.build import build_encoder
from wsi_dbps.models.encoders.norms import batch_norms
from wsi_dbps.models.position import POSITIONS
from wsi_dbps.models.spill import EmbeddingSpill
from wsi_dbps.models.within_memory import WithinMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wsi_dbps.dbps.buffers import Buffers, Selection
    from wsi_dbps.dbps.selectors import AnySelector
    from wsi_dbps.models.bag import PatchSource
    from wsi_dbps.models.settings import AggregatorConfig, EncoderConfig, SelectionConfig


class SlideModel(nn.Module):
    """A slide-level model whose encoder learns from the patches that its own attention selects.

    Args:
        num_outputs: Numbers that a slide gets, such as a logit for each class; the task decides.
        encoder: Settings of the network that turns a patch into an embedding.
        aggregator: Settings of what pools embeddings.
        selection: Settings of the two buffers; never changed here.
        load_weights: False where a checkpoint is loaded over the encoder's first weights anyway.

    Raises:
        ConfigError: If the settings contradict each other, or the encoder cannot be built.
    """

    def __init__(
        self,
        num_outputs: int,
        encoder: EncoderConfig,
        aggregator: AggregatorConfig,
        selection: SelectionConfig,
        *,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, load_weights=load_weights)
        self.aggregator = AGGREGATORS[aggregator.name](self.encoder.dim, num_outputs, aggregator)
        self.config = selection
        self.selector = build_selector(selection.selector, selection)
        self.predict_selector = build_selector(selection.predict_selector, selection)
        self._position = POSITIONS[aggregator.position](self.encoder.dim)
        self._freeze_batch_norm = encoder.batch_norm == "frozen"
        self._exact = selection.subsalient_grad == "exact"
        if self._exact and encoder.batch_norm == "train" and batch_norms(self.encoder):
            raise ConfigError(
                f"[selection] subsalient_grad = 'exact' encodes patches in parts, but {encoder.name} in [encoder] "
                "batch_norm = 'train' mixes the patches of a batch; set batch_norm to 'frozen' or 'group'"
            )
        self._within_memory = WithinMemory(selection.chunk_size)

    def train(self, mode: bool = True) -> SlideModel:
        """Set train or evaluation mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if mode and self._freeze_batch_norm:
            for layer in batch_norms(self):
                layer.eval()
        return self

    @property
    def parameters_line(self) -> str:
        """How many parameters the two parts have, for a person: most of a checkpoint's size is the aggregator's."""
        encoder, aggregator = (sum(p.numel() for p in part.parameters()) for part in (self.encoder, self.aggregator))
        return f"parameters: encoder {encoder:,}, aggregator {aggregator:,} (embedding size {self.encoder.dim})"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.aggregator.parameters()).device

    # ---- selection, without gradient

    def select(
        self,
        bag: PatchSource,
        kept_N: torch.Tensor,
        generator: torch.Generator,
        *,
        explore: bool = False,
        noise: float = 0.0,
    ) -> Chosen:
        """Fill the two buffers from the kept patches, without gradient and in evaluation mode.

        Args:
            bag: Where the pixels come from.
            kept_N: Ids of the patches that random drop left, at least one.
            generator: For what is random in selection.
            explore: Use the selector that `Selector.exploring` names: a random one, where there is a choice.
            noise: Scale of Gumbel noise on the logits that patches are ranked by.

        Raises:
            ConfigError: If positions are asked for and the bag has none.
        """
        selector = self._at_a_visit(explore=explore)
        with evaluation_mode(self), torch.no_grad():
            if isinstance(selector, UnscoredSelector):
                return self._chosen(bag, selector.draw(kept_N, generator), None)
            chunks = self._scored(bag, selector.first_reads(kept_N), noise, generator)
            buffers = selector.fill(chunks, generator, keep_pixels=self._exact)
            return self._chosen(bag, buffers.selection.to("cpu"), buffers)

    def will_read(
        self, kept_N: torch.Tensor, generator: torch.Generator, *, explore: bool = False
    ) -> list[torch.Tensor]:
        """The lists of ids that `select` with the same arguments begins to read; the generator is not advanced."""
        return self._at_a_visit(explore=explore).will_read(kept_N, generator)

    def first_reads(self, ids_N: torch.Tensor) -> list[torch.Tensor]:
        """The lists of ids in which a pass over these patches reads them: the first M, then chunks."""
        return self.selector.first_reads(ids_N)

    def _at_a_visit(self, *, explore: bool) -> AnySelector:
        return self.selector.exploring() if explore else self.selector

    def _chosen(self, bag: PatchSource, selection: Selection, buffers: Buffers | None) -> Chosen:
        """All that the gradient stage needs; what no buffer holds is read, and encoded if need be."""
        pixels_MCPP = None if buffers is None else buffers.salient.pixels_LCPP
        if pixels_MCPP is None:
            pixels_MCPP = self._read(bag, selection.salient_M)
        num_chosen = len(selection.salient_M) + len(selection.subsalient_S)
        return Chosen(
            selection,
            pixels_MCPP,
            self._positions(bag, selection.salient_M),
            self._subsalient(bag, selection.subsalient_S, None if buffers is None else buffers.subsalient, pixels_MCPP),
            torch.empty(0, num_chosen) if buffers is None else buffers.ranked_by,
        )

    def _subsalient(
        self, bag: PatchSource, ids_S: torch.Tensor, held: Chunk | None, salient_pixels_MCPP: torch.Tensor
    ) -> SubsalientEmbeddings | SubsalientPixels:
        if not self._exact:
            return SubsalientEmbeddings(self._embed(bag, ids_S) if held is None else held.embeddings_LD)
        pixels_SCPP = None if held is None else held.pixels_LCPP
        if pixels_SCPP is None:
            pixels_SCPP = self._read(bag, ids_S) if len(ids_S) else salient_pixels_MCPP[:0]
        return SubsalientPixels(pixels_SCPP, self._positions(bag, ids_S))

    # ---- the gradient stage

    def forward(
        self,
        bags: Sequence[Chosen],
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """(B, C) logits of bags after selection; the salient patches of all are encoded together, with gradient.

        Where `subsalient_grad` is `exact`, the sub-salient too, in parts of as many as their bag has salient ones. No
        part keeps its activations: they are computed again, with the same random draws, when the gradient is (T. Chen
        et al., "Training deep nets with sublinear memory cost", 2016), one part at a time.

        Args:
            bags: At least one; they may differ in their numbers of patches.
            augment: Applied to the pixels that are encoded here, (n, 3, P, P) uint8 to float.
            seeds: One per bag, of its augmentation and its aggregator's dropout, which then do not depend on what else
                is in the batch; torch's global generator is left seeded. None: it is taken as it is.
        """

        def changed(pixels: torch.Tensor) -> torch.Tensor:
            return pixels if augment is None else augment(pixels)

        def seed(i: int, use: int) -> None:
            if seeds is not None:
                torch.manual_seed(seeds[i] + use)

        # Sub-salient patches come before the salient: gradients run backwards, so the activations of the salient are
        # gone when those of the parts are computed again.
        subsalient, augmented = [], []
        for i, bag in enumerate(bags):
            seed(i, 2)
            subsalient.append(self._subsalient_embeddings(bag, changed))
        for i, bag in enumerate(bags):
            seed(i, 0)
            augmented.append(changed(bag.salient_pixels_MCPP))
        encoded = self.encoder(torch.cat(augmented)).split([len(pixels) for pixels in augmented])
        salient = [
            self._position.added(embeddings_MD, bag.salient_positions_M2)
            for embeddings_MD, bag in zip(encoded, bags, strict=True)
        ]
        if seeds is None:
            return self._aggregate(salient, subsalient)
        logits_BC = []
        for i, (salient_MD, subsalient_SD) in enumerate(zip(salient, subsalient, strict=True)):
            seed(i, 1)
            logits_BC.append(self._aggregate([salient_MD], [subsalient_SD]))
        return torch.cat(logits_BC)

    def _subsalient_embeddings(self, bag: Chosen, changed: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """(S, D) embeddings, encoded here where their gradient is wanted."""
        chosen = bag.subsalient
        if isinstance(chosen, SubsalientEmbeddings):
            return chosen.embeddings_SD
        if not len(chosen.pixels_SCPP):
            return torch.zeros(0, self.encoder.dim, device=self.device)
        parts = [
            checkpoint(lambda part: self.encoder(changed(part)), part, use_reentrant=False)
            for part in chosen.pixels_SCPP.split(len(bag.salient_pixels_MCPP))  # not by what else is in the batch
        ]
        return self._position.added(torch.cat(parts), chosen.positions_S2)

    # ---- prediction

    @overload
    def predict(
        self, bag: PatchSource, generator: torch.Generator, *, explain: Literal[False] = False
    ) -> BagOutput: ...

    @overload
    def predict(self, bag: PatchSource, generator: torch.Generator, *, explain: Literal[True]) -> Explained: ...

    @torch.no_grad()
    def predict(self, bag: PatchSource, generator: torch.Generator, *, explain: bool = False) -> BagOutput:
        """The prediction for a whole bag: nothing dropped, nothing augmented, and memory for one chunk of pixels.

        Every patch is scored, and the embeddings of the selected are pooled.

        Args:
            bag: Where the pixels come from.
            generator: For random selection.
            explain: Find every patch's attribution too.

        Raises:
            ConfigError: If positions are asked for and the bag has none.
        """
        with EmbeddingSpill(self.encoder.dim) as spill:
            return self.explained(bag, generator, spill) if explain else self._predicted(bag, generator, spill)

    @torch.no_grad()
    def explained(self, bag: PatchSource, generator: torch.Generator, spill: EmbeddingSpill) -> Explained:
        """`predict` with every patch's attribution; the embeddings stay in `spill`, for `classify`."""
        output = self._predicted(bag, generator, spill)
        with evaluation_mode(self):
            return with_attribution(output, self.aggregator, spill)

    @torch.no_grad()
    def encode(self, bag: PatchSource, spill: EmbeddingSpill) -> torch.Tensor:
        """(R, N) attention logits of every patch, on the CPU; row i of `spill` becomes the embedding of patch i."""
        seen = []
        with evaluation_mode(self):
            for chunk in self._encode(bag, self.first_reads(torch.arange(bag.num_patches))):
                seen.append(chunk.logits_RL.float().cpu())
                spill.append(chunk.embeddings_LD)
        return torch.cat(seen, dim=1)

    @torch.no_grad()
    def classify(
        self, spill: EmbeddingSpill, attention_RN: torch.Tensor, ids_K: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Selection]:
        """What is predicted from some patches of a bag that was encoded: (C,) logits on the CPU, and what was selected.

        Args:
            spill: As `encode` filled it.
            attention_RN: As `encode` returned it.
            ids_K: Ids of the patches to predict from, at least one.
            generator: For random selection.
        """
        selection = self.predict_selector.select_scored(attention_RN, ids_K, generator)
        salient_MD, subsalient_SD = (
            spill.rows(ids).to(self.device) for ids in (selection.salient_M, selection.subsalient_S)
        )
        with evaluation_mode(self):
            logits_1C = self._aggregate([salient_MD], [subsalient_SD])
        return logits_1C[0].float().cpu(), selection

    def _predicted(self, bag: PatchSource, generator: torch.Generator, spill: EmbeddingSpill) -> BagOutput:
        attention_RN = self.encode(bag, spill)
        logits_C, selection = self.classify(spill, attention_RN, torch.arange(bag.num_patches), generator)
        return BagOutput(logits_C, attention_RN, log_scores(attention_RN).exp().float(), selection)

    # ---- what all of these share

    def _pixels(self, bag: PatchSource, id_lists: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        for pixels in bag.read(id_lists):
            yield pixels.to(self.device, non_blocking=True)

    def _encode(self, bag: PatchSource, id_lists: Sequence[torch.Tensor]) -> Iterator[Chunk]:
        """Chunks of scored patches, one for each list of ids."""
        for ids, pixels in zip(id_lists, self._pixels(bag, id_lists), strict=True):
            embeddings_LD = self._position.added(self._within_memory(self.encoder, pixels), self._positions(bag, ids))
            logits_RL = self.aggregator.score_logits(embeddings_LD).float()
            yield Chunk(ids.to(self.device), logits_RL, embeddings_LD, pixels)

    def _scored(
        self, bag: PatchSource, id_lists: Sequence[torch.Tensor], noise: float, generator: torch.Generator
    ) -> Iterator[Chunk]:
        """As `_encode`, with noise on the logits; it is drawn before anything is read."""
        chunks = self._encode(bag, id_lists)
        if not noise:
            return chunks
        return perturbed(chunks, noise * gumbel(sum(map(len, id_lists)), generator))

    def _embed(self, bag: PatchSource, ids: torch.Tensor) -> torch.Tensor:
        """(len(ids), D) embeddings without gradient."""
        parts = [
            self._within_memory(self.encoder, pixels) for pixels in self._pixels(bag, self.selector.in_chunks(ids))
        ]
        embeddings_ND = torch.cat(parts) if parts else torch.zeros(0, self.encoder.dim, device=self.device)
        return self._position.added(embeddings_ND, self._positions(bag, ids))

    def _read(self, bag: PatchSource, ids: torch.Tensor) -> torch.Tensor:
        """The pixels of at least one patch."""
        return torch.cat(list(self._pixels(bag, self.selector.in_chunks(ids))))

    def _positions(self, bag: PatchSource, ids: torch.Tensor) -> torch.Tensor:
        return self._position.of(bag, ids).to(self.device)

    def _aggregate(self, salient: Sequence[torch.Tensor], subsalient: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, C) logits of bags of any sizes, from (M, D) and (S, D) embeddings of each."""
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


def _padded(bags: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, longest, D) embeddings, and (B, longest) which rows are patches and not padding."""
    lengths = torch.tensor([len(bag) for bag in bags], device=bags[0].device)
    padded = nn.utils.rnn.pad_sequence(list(bags), batch_first=True)
    present = torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]
    return padded, present
