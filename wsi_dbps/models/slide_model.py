"""Encoder, selection and aggregator joined: a bag of patches in, class logits out.

Source: R. Qin et al., "No Pains, More Gains", CVPR 2025; special cases are IPS (B. Bergner et al., ICLR 2023: S = 0),
random selection, and plain end-to-end multiple-instance learning. Shapes as in dbps/select.py and aggregators.py.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.dbps.ranking import gumbel, log_scores
from wsi_dbps.dbps.selectors import (
    Chunk,
    Selection,
    gathered,
    perturbed,
    select_global,
    select_random,
    select_sampled,
    select_streaming,
)
from wsi_dbps.models.aggregators import AGGREGATORS
from wsi_dbps.models.encoders import batch_norms, build_encoder
from wsi_dbps.models.position import sinusoids
from wsi_dbps.models.spill import EmbeddingSpill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from wsi_dbps.models.settings import AggregatorConfig, EncoderConfig, SelectionConfig


class PatchSource(Protocol):
    """Where a bag's pixels come from: a cache on disk, or a tensor."""

    @property
    def num_patches(self) -> int:
        """N."""

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its (L, 3, P, P) uint8 pixels; the next may be read while this one is used."""


class PlacedPatchSource(PatchSource, Protocol):
    """A bag that knows where its patches lie: what `aggregator.position` asks for."""

    @property
    def positions(self) -> torch.Tensor:
        """(N, 2) float32 (x, y) of top-left corners on the slide, in patch sides, by id; on the CPU."""


@dataclass(frozen=True)
class TensorBag:
    """A bag in memory."""

    pixels_NCPP: torch.Tensor
    """uint8, or floats from 0 to 1."""
    positions: torch.Tensor | None = None
    """As in `PlacedPatchSource`."""

    @property
    def num_patches(self) -> int:
        """N."""
        return len(self.pixels_NCPP)

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its (L, 3, P, P) pixels."""
        return (self.pixels_NCPP[ids] for ids in id_lists)


@dataclass(frozen=True)
class Chosen:
    """A bag after selection: all that the gradient stage needs of it."""

    selection: Selection
    salient_pixels_MCPP: torch.Tensor
    """uint8, row i belongs to `selection.salient_M[i]`."""
    subsalient_SD: torch.Tensor
    """Recycled embeddings, without gradient; row i belongs to `selection.subsalient_S[i]`. Without rows where
    `subsalient_grad` is `exact`, as the patches are then encoded with gradient."""
    subsalient_pixels_SCPP: torch.Tensor | None = None
    """uint8, as the salient; where `subsalient_grad` is `exact`."""
    salient_positions_M2: torch.Tensor | None = None
    """Where `aggregator.position` is not `none`."""
    subsalient_positions_S2: torch.Tensor | None = None
    """Where that is so and `subsalient_grad` is `exact`: embeddings hold their position already."""
    logits_RK: torch.Tensor | None = None
    """Attention logits of the salient, then of the sub-salient, as they were ranked; None where nothing was scored."""


@dataclass(frozen=True)
class BagOutput:
    """A prediction and how every patch was looked at."""

    logits_C: torch.Tensor
    attention_RN: torch.Tensor
    """(R, N) attention logits of every patch of the bag, by row of the slide's plan."""
    weights_N: torch.Tensor
    """(N,) softmax of them over the whole bag, averaged over R."""
    selection: Selection
    evidence_NC: torch.Tensor | None = None
    """(N, C) contribution of each patch to each logit (`Reading.contribution`), where asked for, as the next two."""
    empty_logits_C: torch.Tensor | None = None
    """Logits where nothing is pooled."""
    embedding_D: torch.Tensor | None = None
    """What the last linear layer sees."""


_PART: Final = 4096
"""Embeddings looked at once for their evidence."""


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
        self._placed = aggregator.position == "sinusoidal"
        if self._placed and self.encoder.dim % 4:
            raise ConfigError(f"[aggregator] position: the embedding size must divide by 4, found {self.encoder.dim}")
        if selection.subsalient_grad == "exact" and encoder.batch_norm == "train" and batch_norms(self.encoder):
            raise ConfigError(
                f"[selection] subsalient_grad = 'exact' encodes patches in parts, but {encoder.name} in [encoder] "
                "batch_norm = 'train' mixes the patches of a batch; set batch_norm to 'frozen' or 'group'"
            )
        self._most_at_once = selection.chunk_size
        """Patches encoded at once without gradient; less than a chunk from when memory was too small for one."""

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
            kept_N: Ids left after random drop, at least one.
            generator: For what is random in selection.
            explore: Select at random whatever the settings say (`all` stays `all`).
            noise: Scale of Gumbel noise on the logits that patches are ranked by.

        Raises:
            ConfigError: If positions are asked for and the bag has none.
        """
        config = self.config
        name = "random" if explore and config.selector != "all" else config.selector
        m, s = config.num_salient, config.most_subsalient
        exact = config.subsalient_grad == "exact"
        scored: Chunk | None = None
        logits_RK: torch.Tensor | None = None
        with evaluation_mode(self), torch.no_grad():
            if name == "streaming":
                chunks = self._scored(bag, self.first_reads(kept_N), noise, generator)
                buffers = select_streaming(chunks, m, s, keep_pixels=exact)
                selection, scored = _on_cpu(buffers.selection), buffers.subsalient
                pixels, subsalient_pixels = buffers.salient.pixels_LCPP, buffers.subsalient.pixels_LCPP
                assert pixels is not None
                logits_RK = torch.cat([buffers.salient.logits_RL, buffers.subsalient.logits_RL], dim=1)
            else:
                if name in ("global", "sampled"):
                    scored = gathered(self._scored(bag, self.first_reads(kept_N), noise, generator))
                    logits_RN = scored.logits_RL.cpu()
                if name == "global":
                    selection = select_global(logits_RN, kept_N, m, s)
                elif name == "sampled":
                    selection = select_sampled(logits_RN, kept_N, m, s, generator, temperature=config.temperature)
                elif name == "random":
                    selection = select_random(kept_N, m, s, generator)
                else:
                    selection = Selection(kept_N, kept_N[:0])
                if scored is not None:
                    logits_RK = scored.of(
                        torch.cat([selection.salient_M, selection.subsalient_S]).to(self.device)
                    ).logits_RL
                pixels = self._read(bag, selection.salient_M)
                subsalient_pixels = self._read(bag, selection.subsalient_S, like=pixels) if exact else None
            if exact:
                subsalient_SD = torch.zeros(0, self.encoder.dim, device=self.device)
            elif scored is None:
                subsalient_SD = self._embed(bag, selection.subsalient_S)
            else:
                subsalient_SD = scored.of(selection.subsalient_S.to(self.device)).embeddings_LD
        return Chosen(
            selection,
            pixels,
            subsalient_SD,
            subsalient_pixels,
            self._positions(bag, selection.salient_M),
            self._positions(bag, selection.subsalient_S) if exact else None,
            logits_RK,
        )

    def will_read(
        self, kept_N: torch.Tensor, generator: torch.Generator, *, explore: bool = False
    ) -> list[torch.Tensor]:
        """The lists of ids that `select` with the same arguments begins to read; the generator is not advanced."""
        name = "random" if explore and self.config.selector != "all" else self.config.selector
        if name in ("streaming", "global", "sampled"):
            return self.first_reads(kept_N)
        if name == "random":
            same = torch.Generator()
            same.set_state(generator.get_state())
            kept_N = select_random(kept_N, self.config.num_salient, self.config.most_subsalient, same).salient_M
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

        subsalient = []
        for i, bag in enumerate(bags):
            if (pixels := bag.subsalient_pixels_SCPP) is None or not len(pixels):
                subsalient.append(bag.subsalient_SD)
                continue
            # before the salient: gradients run backwards, so the activations of these are gone when parts come back
            seed(i, 2)
            parts = [
                checkpoint(lambda part: self.encoder(changed(part)), part, use_reentrant=False)
                for part in pixels.split(len(bag.salient_pixels_MCPP))  # not by what else is in the batch
            ]
            subsalient.append(self._with_position(torch.cat(parts), bag.subsalient_positions_S2))
        pixels_list = []
        for i, bag in enumerate(bags):
            seed(i, 0)
            pixels_list.append(changed(bag.salient_pixels_MCPP))
        encoded = self.encoder(torch.cat(pixels_list)).split([len(pixels) for pixels in pixels_list])
        salient = [
            self._with_position(embeddings_MD, bag.salient_positions_M2)
            for embeddings_MD, bag in zip(encoded, bags, strict=True)
        ]
        if seeds is None:
            return self._aggregate(salient, subsalient)
        logits_BC = []
        for i, (salient_MD, subsalient_SD) in enumerate(zip(salient, subsalient, strict=True)):
            seed(i, 1)
            logits_BC.append(self._aggregate([salient_MD], [subsalient_SD]))
        return torch.cat(logits_BC)

    @torch.no_grad()
    def predict(self, bag: PatchSource, generator: torch.Generator, *, explain: bool = False) -> BagOutput:
        """The prediction for a whole bag: nothing dropped, nothing augmented, and memory for one chunk of pixels.

        Every patch is scored, and the embeddings of the selected are pooled.

        Args:
            bag: Where the pixels come from.
            generator: For random selection.
            explain: Find every patch's contribution too.
        """
        with EmbeddingSpill(self.encoder.dim) as spill:
            if explain:
                return self.explained(bag, generator, spill)
            attention_RN = self.encode(bag, spill)
            logits_C, selection = self.classify(spill, attention_RN, torch.arange(bag.num_patches), generator)
        return BagOutput(logits_C, attention_RN, log_scores(attention_RN).exp().float(), selection)

    @torch.no_grad()
    def explained(self, bag: PatchSource, generator: torch.Generator, spill: EmbeddingSpill) -> BagOutput:
        """`predict` with every patch's contribution, leaving the embeddings in `spill`, for `classify`."""
        attention_RN = self.encode(bag, spill)
        logits_C, selection = self.classify(spill, attention_RN, torch.arange(bag.num_patches), generator)
        weights_N = log_scores(attention_RN).exp().float()
        return BagOutput(logits_C, attention_RN, weights_N, selection, *self._evidence(spill, selection))

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
            ids_K: The patches that there are, at least one.
            generator: For random selection.
        """
        config = self.config
        m, s = config.num_salient, config.most_subsalient
        if config.predict_selector == "streaming":
            chunks = (Chunk(ids, attention_RN[:, ids], spill.rows(ids)) for ids in self.first_reads(ids_K))
            selection = select_streaming(chunks, m, s).selection
        elif config.predict_selector == "global":
            selection = select_global(attention_RN[:, ids_K], ids_K, m, s)
        elif config.predict_selector == "random":
            selection = select_random(ids_K, m, s, generator)
        else:
            selection = Selection(ids_K, ids_K[:0])
        with evaluation_mode(self):
            logits_1C = self._aggregate(*([of] for of in self._embeddings_of(spill, selection)))
        return logits_1C[0].float().cpu(), selection

    def _embeddings_of(self, spill: EmbeddingSpill, selection: Selection) -> list[torch.Tensor]:
        return [spill.rows(ids).to(self.device) for ids in (selection.salient_M, selection.subsalient_S)]

    def _evidence(self, spill: EmbeddingSpill, selection: Selection) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The last three fields of `BagOutput`."""
        with evaluation_mode(self):
            reading = self.aggregator.reading(*self._embeddings_of(spill, selection))
            role_N = torch.zeros(spill.num_rows, dtype=torch.int8)
            role_N[selection.salient_M], role_N[selection.subsalient_S] = 1, 2
            parts = [
                reading.contribution(part_LD.to(self.device), role_N[at : at + len(part_LD)].to(self.device)).cpu()
                for at, part_LD in spill.parts(_PART)
            ]
        return torch.cat(parts).float(), reading.empty_logits_C.float().cpu(), reading.embedding_D.float().cpu()

    def _pixels(self, bag: PatchSource, id_lists: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        for pixels in bag.read([ids for ids in id_lists if len(ids)]):
            yield pixels.to(self.device, non_blocking=True)

    def _encode(self, bag: PatchSource, id_lists: Sequence[torch.Tensor]) -> Iterator[Chunk]:
        id_lists = [ids for ids in id_lists if len(ids)]
        for ids, pixels in zip(id_lists, self._pixels(bag, id_lists), strict=True):
            embeddings_LD = self._with_position(self._embedded(pixels), self._positions(bag, ids))
            logits_RL = self.aggregator.score_logits(embeddings_LD).float()
            yield Chunk(ids.to(self.device), logits_RL, embeddings_LD, pixels)

    def _embedded(self, pixels_LCPP: torch.Tensor) -> torch.Tensor:
        """(L, D) embeddings of a chunk, encoded in halves from when the device's memory is too small for it whole.

        The chunk itself stays as it is, so selection sees the same ones.
        """
        while True:
            try:
                parts = [self.encoder(part).float() for part in pixels_LCPP.split(self._most_at_once)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.cuda.OutOfMemoryError:
                tried = min(self._most_at_once, len(pixels_LCPP))
                if tried == 1:
                    raise
            # Only here, after the error, are the tensors gone that its traceback held.
            parts = []
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._most_at_once = -(-tried // 2)
            warnings.warn(
                f"{self.device}: no memory to encode {tried} patches at once without gradient; from here on "
                f"{self._most_at_once}, with the same results; selection.chunk_size = {self._most_at_once} avoids this",
                stacklevel=2,
            )

    def _scored(
        self, bag: PatchSource, id_lists: Sequence[torch.Tensor], noise: float, generator: torch.Generator
    ) -> Iterator[Chunk]:
        chunks = self._encode(bag, id_lists)
        if not noise:
            return chunks
        return perturbed(chunks, noise * gumbel(sum(map(len, id_lists)), generator))

    def _embed(self, bag: PatchSource, ids: torch.Tensor) -> torch.Tensor:
        parts = [self._embedded(pixels) for pixels in self._pixels(bag, _split(ids, self.config))]
        embeddings_ND = torch.cat(parts) if parts else torch.zeros(0, self.encoder.dim, device=self.device)
        return self._with_position(embeddings_ND, self._positions(bag, ids))

    def _read(self, bag: PatchSource, ids: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
        """The pixels of all these ids; of none, no rows of what `like` is."""
        parts = list(self._pixels(bag, _split(ids, self.config)))
        return like[:0] if like is not None and not parts else torch.cat(parts)

    def _positions(self, bag: PatchSource, ids: torch.Tensor) -> torch.Tensor | None:
        if not self._placed:
            return None
        positions_N2: torch.Tensor | None = getattr(bag, "positions", None)
        if positions_N2 is None:
            raise ConfigError("[aggregator] position = 'sinusoidal' needs bags that know where their patches lie")
        return positions_N2[ids].to(self.device)

    def _with_position(self, embeddings_ND: torch.Tensor, positions_N2: torch.Tensor | None) -> torch.Tensor:
        return embeddings_ND if positions_N2 is None else embeddings_ND + sinusoids(positions_N2, self.encoder.dim)

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


def _on_cpu(selection: Selection) -> Selection:
    return Selection(selection.salient_M.cpu(), selection.subsalient_S.cpu())


def _padded(bags: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, longest, D) embeddings and (B, longest) which rows are there."""
    lengths = torch.tensor([len(bag) for bag in bags], device=bags[0].device)
    padded = nn.utils.rnn.pad_sequence(list(bags), batch_first=True)
    present = torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]
    return padded, present
