"""Predictions and attention of a cohort from a checkpoint and its caches."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_dbps.config import to_dict
from wsi_dbps.errors import OutputError, PredictionError, WsiDbpsError
from wsi_dbps.evaluation.pooling import pool_cases
from wsi_dbps.files import write_json
from wsi_dbps.progress import Progress
from wsi_dbps.records import Prediction, Predictions, SlideAttention, read_attention
from wsi_dbps.training.bags import CacheBag, PatchReader, open_cache
from wsi_dbps.training.loop import pick_device
from wsi_dbps.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.models.slide_model import SlideModel
    from wsi_dbps.training.bags import BagFile
    from wsi_dbps.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class PredictionResult:
    """What `predict` left in its folder."""

    predictions: Predictions
    failed: tuple[str, ...]
    """One line for each slide that could not be predicted."""


def predict(
    checkpoint: Checkpoint, cohort: Cohort, caches: Path, out: Path, *, device: str = "auto", decode_threads: int = 2
) -> PredictionResult:
    """Predict every slide of a cohort and write predictions.csv, predict.json and attention/<slide_id>.h5.

    Labels are not needed. A slide's prediction depends on its patches only: not on the other slides, nor on the order.

    Raises:
        PredictionError: If the cohort is empty or has a label that the checkpoint's classes do not hold.
        OutputError: If a file cannot be written.
    """
    check_labels(checkpoint, cohort)
    predictor = Predictor(checkpoint, caches, device=device, decode_threads=decode_threads)
    rows: list[Prediction] = []
    failed: list[str] = []
    with Progress("predicting", len(cohort), "slides") as progress:
        for record in cohort.records:
            try:
                attention = predictor.slide(record)
                attention.write(attention_path(out, record.slide_id))
                rows.append(attention.prediction)
            except OutputError:
                raise
            except WsiDbpsError as error:
                failed.append(f"{record.slide_id}: {error}")
                progress.say(failed[-1])
            progress.advance()
    predictions = Predictions(checkpoint.classes, tuple(rows), pool_cases(rows, checkpoint.classes))
    predictions.write_csv(out / "predictions.csv")
    write_json(
        out / "predict.json",
        {
            "checkpoint": str(checkpoint.path.resolve()),
            "checkpoint_fingerprint": predictor.fingerprint,
            "epoch": checkpoint.epoch,
            "classes": list(checkpoint.classes),
            "settings": to_dict(checkpoint.config),
            "failed": failed,
            "wsi_dbps_version": __version__,
            "torch_version": torch.__version__,
        },
    )
    return PredictionResult(predictions, tuple(failed))


class Predictor:
    """A checkpoint's model, loaded when it is first needed, and the caches it looks at."""

    def __init__(self, checkpoint: Checkpoint, caches: Path, *, device: str = "auto", decode_threads: int = 2) -> None:
        self.checkpoint, self.caches = checkpoint, caches
        self.fingerprint = checkpoint.fingerprint()
        self._device = pick_device(device)
        self._reader = PatchReader(decode_threads)

    @cached_property
    def _model(self) -> SlideModel:
        return self.checkpoint.build_model(self._device)

    def slide(self, record: SlideRecord) -> SlideAttention:
        """One slide's attention, which holds its prediction.

        Raises:
            PredictionError: If the slide's cache holds no patch, or the model's output is not finite.
            CacheError: If the cache is missing, damaged, or of another kind than the model was trained on.
        """
        cache = self.cache(record)
        if not len(cache):
            raise PredictionError(f"{cache.path}: holds no patch (no tissue was found): nothing to predict from")
        draws = torch.Generator().manual_seed(zlib.crc32(record.slide_id.encode()))  # for random selection: by slide
        output = self._model.predict(CacheBag(record, cache, self._reader), draws)
        if not torch.isfinite(output.logits_C).all():
            raise PredictionError(f"{self.checkpoint.path}: its output is not finite; the checkpoint is damaged")
        role_N = np.zeros(len(cache), np.uint8)
        role_N[output.selection.salient_M] = 1
        role_N[output.selection.subsalient_S] = 2
        probabilities = tuple(float(p) for p in output.logits_C.double().softmax(dim=0))
        return SlideAttention(
            slide_id=record.slide_id,
            prediction=Prediction(
                record.slide_id, record.case_id, record.split, record.label, len(cache), probabilities
            ),
            classes=self.checkpoint.classes,
            coords_N2=cache.coords_N2,
            tile_lv0=cache.tile_lv0,
            logits_NR=output.attention_RN.T.contiguous().numpy(),
            weights_N=output.weights_N.numpy(),
            role_N=role_N,
            cache_fingerprint=cache.fingerprint,
            checkpoint_fingerprint=self.fingerprint,
        )

    def kept(self, record: SlideRecord, folder: Path) -> SlideAttention:
        """One slide's attention as a folder of predictions has it.

        Raises:
            PredictionError: If it is missing, or comes from another checkpoint or cache.
        """
        path = attention_path(folder, record.slide_id)
        attention = read_attention(path)
        if attention.checkpoint_fingerprint != self.fingerprint:
            raise PredictionError(f"{path}: comes from another checkpoint than {self.checkpoint.path}; predict again")
        if attention.cache_fingerprint != self.cache(record).fingerprint:
            raise PredictionError(f"{path}: comes from another cache of the slide; predict again")
        return attention

    def kept_or_new(self, record: SlideRecord, folder: Path) -> SlideAttention:
        """One slide's attention as the folder has it, or computed and kept there."""
        try:
            return self.kept(record, folder)
        except PredictionError:
            attention = self.slide(record)
            attention.write(attention_path(folder, record.slide_id))
            return attention

    def cache(self, record: SlideRecord) -> BagFile:
        """What a slide is predicted from: its patch cache, or its features where the run was trained on features.

        Raises:
            CacheError: If it is missing, damaged, or of another kind than the model was trained on.
        """
        return open_cache(self.caches, record, self.checkpoint.patch_kind, self.checkpoint.config.patches)


def attention_path(out: Path, slide_id: str) -> Path:
    """Where a slide's attention lies in a folder of predictions."""
    return out / "attention" / f"{slide_id}.h5"


def check_labels(checkpoint: Checkpoint, cohort: Cohort) -> None:
    """Check that a checkpoint can say something about a cohort.

    Raises:
        PredictionError: If the cohort is empty, or has labels that are no class of the checkpoint, naming them.
    """
    if not len(cohort):
        raise PredictionError("no slide to predict: the cohort, or the split asked for, is empty")
    unknown: Sequence[SlideRecord] = [r for r in cohort.records if r.label not in (None, *checkpoint.classes)]
    if unknown:
        raise PredictionError(
            f"{checkpoint.path}: has classes {', '.join(checkpoint.classes)}, but slide {unknown[0].slide_id} is "
            f"labelled {unknown[0].label!r} ({len(unknown)} such slides); mend the labels, or leave them empty"
        )
