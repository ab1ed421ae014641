"""One model of a predictor: what it sees of a slide, and what it says of it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_dbps.bags.bags import CacheBag, PatchReader, open_cache
from wsi_dbps.core.errors import CheckpointError, PredictionError, WsiDbpsError, one_line
from wsi_dbps.formats.attention import ROLES, SlideAttention
from wsi_dbps.formats.predictions import Prediction

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_dbps.bags.bags import BagFile
    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.models.slide_model import SlideModel
    from wsi_dbps.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Member:
    """One model of a predictor, loaded when it is first needed."""

    checkpoint: Checkpoint
    caches: Path
    reader: PatchReader
    device: torch.device

    @cached_property
    def fingerprint(self) -> str:
        """Of the checkpoint's content."""
        return self.checkpoint.fingerprint()

    @cached_property
    def model(self) -> SlideModel:
        """In evaluation mode.

        Raises:
            CheckpointError: If the checkpoint is damaged; no slide can then be predicted.
        """
        path = self.checkpoint.path
        try:
            model = self.checkpoint.build_model(self.device)
        except (CheckpointError, torch.OutOfMemoryError):
            raise
        except (WsiDbpsError, RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
            said = one_line(error)
            raise CheckpointError(f"{path}: no model can be built from it: {said}; train again") from None
        for name, values in model.state_dict().items():
            if values.is_floating_point() and not torch.isfinite(values).all():
                raise CheckpointError(f"{path}: the weights {name} are not finite; the checkpoint is damaged")
        return model

    def cache(self, record: SlideRecord) -> BagFile:
        """As `Predictor.cache`."""
        return open_cache(self.caches, record, self.checkpoint.patch_kind, self.checkpoint.config.patches)

    def bag(self, record: SlideRecord) -> CacheBag:
        """A slide as this model sees it.

        Raises:
            PredictionError: If its cache holds no patch.
            CacheError: If the cache is missing, damaged, or of another kind than the model was trained on.
        """
        cache = self.cache(record)
        if not len(cache):
            raise PredictionError(f"{cache.path}: holds no patch (no tissue was found): nothing to predict from")
        return CacheBag(record, cache, self.reader)

    def check_finite(self, logits_C: torch.Tensor) -> None:
        """Refuse what a damaged model predicts.

        Raises:
            PredictionError: If a logit is not finite.
        """
        if not torch.isfinite(logits_C).all():
            raise PredictionError(
                f"{self.checkpoint.path}: its output is not finite: the model has diverged, or the slide's features "
                "hold numbers that are not finite"
            )

    def slide(self, record: SlideRecord) -> SlideAttention:
        """As `Predictor.slide`, by this model alone."""
        bag = self.bag(record)
        cache = bag.cache
        output = self.model.predict(bag, slide_draws(record), explain=True)
        self.check_finite(output.logits_C)
        role_N = np.zeros(len(cache), np.uint8)
        role_N[output.selection.salient_M] = ROLES.index("salient")
        role_N[output.selection.subsalient_S] = ROLES.index("recycled")
        probabilities = tuple(self.checkpoint.task.predictions(output.logits_C).tolist())
        return SlideAttention(
            slide_id=record.slide_id,
            prediction=Prediction(
                record.slide_id, record.case_id, record.split, record.label, len(cache), probabilities
            ),
            classes=self.checkpoint.classes,
            grid=cache.grid,
            logits_NR=output.attention_RN.T.contiguous().numpy(),
            weights_N=output.weights_N.numpy(),
            role_N=role_N,
            cache_fingerprint=cache.fingerprint,
            checkpoint_fingerprint=self.fingerprint,
            evidence_NC=output.evidence_NC.numpy(),
            class_logits_C=output.logits_C.numpy(),
            empty_logits_C=output.empty_logits_C.numpy(),
            embedding_D=output.embedding_D.numpy(),
        )


def slide_draws(record: SlideRecord) -> torch.Generator:
    """What is random in the prediction of a slide: by the slide alone."""
    return torch.Generator().manual_seed(zlib.crc32(record.slide_id.encode()))
