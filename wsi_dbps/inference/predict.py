"""Predictions and attention of a cohort from a checkpoint and its caches."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_dbps.bags.bags import CacheBag, PatchReader, open_cache
from wsi_dbps.cohort.each_slide import each_slide
from wsi_dbps.cohort.labels import mixed_cases
from wsi_dbps.core.digests import digest, file_digest
from wsi_dbps.core.errors import CacheError, CheckpointError, PredictionError, WsiDbpsError, one_line
from wsi_dbps.core.files import write_json
from wsi_dbps.core.output_folder import output_folder
from wsi_dbps.core.settings import to_dict
from wsi_dbps.core.version import __version__
from wsi_dbps.formats.attention import ROLES, SlideAttention, attention_path, read_attention
from wsi_dbps.formats.predict_json import TABLE_DIGEST
from wsi_dbps.formats.predictions import Prediction, Predictions
from wsi_dbps.formats.reuse import differences, refuse_others
from wsi_dbps.metrics.pooling import pool_cases
from wsi_dbps.models.device import pick_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from wsi_dbps.bags.bags import BagFile
    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.geometry import TileGrid
    from wsi_dbps.models.slide_model import SlideModel
    from wsi_dbps.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class PredictionResult:
    """What `predict` left in its folder."""

    predictions: Predictions
    failed: tuple[str, ...]
    """One line for each slide that could not be predicted."""


def predict(
    checkpoints: Sequence[Checkpoint],
    cohort: Cohort,
    caches: PathLike,
    out: PathLike,
    *,
    device: str = "auto",
    decode_threads: int = 2,
) -> PredictionResult:
    """Predict every slide of a cohort and write predictions.csv, predict.json and attention/<slide_id>.h5.

    Labels are not needed; a case whose slides have different ones is written without. A slide's
    prediction depends on its patches only: not on the other slides, nor on the order.
    Several checkpoints make an ensemble: the mean of their probabilities (`together`).

    Raises:
        PredictionError: If the cohort is empty, or has a label that is no class of the checkpoints, or these differ.
        OutputError: If a file cannot be written.
    """
    caches, out = Path(caches), Path(out)
    check_labels(checkpoints[0], cohort)
    rows: list[Prediction] = []
    with (
        output_folder(out, "predict", ("predictions.csv", "predict.json")),
        Predictor(checkpoints, caches, device=device, decode_threads=decode_threads) as predictor,
    ):

        def one(record: SlideRecord) -> None:
            attention = predictor.slide(record)
            attention.write(attention_path(out, record.slide_id))
            rows.append(attention.prediction)

        failed = each_slide("predicting", cohort.records, one)
        mixed = mixed_cases(rows)  # as in the table, which lacks slides that failed
        to_pool = [replace(row, label=None) if row.case_id in mixed else row for row in rows]
        predictions = Predictions(predictor.classes, tuple(rows), pool_cases(to_pool, predictor.classes))
        # Two files cannot be renamed in one step: by the digest readers refuse a pair that a kill has left mixed.
        predictions.write_csv(out / "predictions.csv")
        write_json(
            out / "predict.json",
            {
                "members": [
                    {
                        "checkpoint": str(member.checkpoint.path.resolve()),
                        "checkpoint_fingerprint": member.fingerprint,
                        "epoch": member.checkpoint.epoch,
                        "settings": to_dict(member.checkpoint.config),
                    }
                    for member in predictor.members
                ],
                "checkpoint_fingerprint": predictor.fingerprint,
                "classes": list(predictor.classes),
                "failed": list(failed),
                TABLE_DIGEST: file_digest(out / "predictions.csv"),
                "wsi_dbps_version": __version__,
                "torch_version": torch.__version__,
            },
        )
    return PredictionResult(predictions, failed)


class Predictor:
    """The models of one checkpoint or several, loaded when first needed, and the caches they look at.

    Raises:
        PredictionError: If the checkpoints' classes differ, or two are the same.
        CacheError: If there is no such folder of caches.
    """

    def __init__(
        self, checkpoints: Sequence[Checkpoint], caches: PathLike, *, device: str = "auto", decode_threads: int = 2
    ) -> None:
        caches = Path(caches)
        self.classes = checkpoints[0].classes
        for checkpoint in checkpoints[1:]:
            if checkpoint.classes != self.classes:
                raise PredictionError(
                    f"{checkpoint.path}: has classes {', '.join(checkpoint.classes)}, but {checkpoints[0].path} has "
                    f"{', '.join(self.classes)}; an ensemble needs the same"
                )
        if not caches.is_dir():
            raise CacheError(f"{caches}: no such folder of caches; run `wsi-dbps tile` first")
        self._reader = PatchReader(decode_threads)
        chosen = pick_device(device)
        self.members = tuple(Member(checkpoint, caches, self._reader, chosen) for checkpoint in checkpoints)
        of_content = {member.fingerprint: member for member in self.members}
        if len(of_content) < len(self.members):
            twice = [m.checkpoint.path for m in self.members if of_content[m.fingerprint] is not m]
            raise PredictionError(f"{twice[0]}: the same checkpoint is given twice; an ensemble counts each model once")
        self.fingerprint = _joined([member.fingerprint for member in self.members])

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._reader.close()

    def slide(self, record: SlideRecord) -> SlideAttention:
        """One slide's attention, which holds its prediction; an ensemble's is that of its members `together`.

        Raises:
            PredictionError: If the slide's cache holds no patch, or a model's output is not finite.
            CacheError: If the cache is missing, damaged, or of another kind than a model was trained on.
        """
        return together([member.slide(record) for member in self.members])

    def kept(self, record: SlideRecord, folder: Path) -> SlideAttention:
        """One slide's attention as a folder of predictions has it.

        Raises:
            PredictionError: If it is missing, or comes from another checkpoint or cache.
        """
        path = attention_path(folder, record.slide_id)
        attention = read_attention(path)
        checkpoints = ", ".join(str(member.checkpoint.path) for member in self.members)
        differ = differences(
            {"checkpoint": attention.checkpoint_fingerprint, "cache": attention.cache_fingerprint},
            {"checkpoint": self.fingerprint, "cache": self.cache(record).fingerprint},
            words={
                "checkpoint": f"comes from another checkpoint than {checkpoints}",
                "cache": "comes from another cache of the slide",
            },
        )
        refuse_others(str(path), differ, "predict again", raised=PredictionError)
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
        return self.members[0].cache(record)


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
        assert output.evidence_NC is not None
        assert output.empty_logits_C is not None
        assert output.embedding_D is not None
        role_N = np.zeros(len(cache), np.uint8)
        role_N[output.selection.salient_M] = ROLES.index("salient")
        role_N[output.selection.subsalient_S] = ROLES.index("recycled")
        probabilities = tuple(float(p) for p in output.logits_C.double().softmax(dim=0))
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


def together(members: Sequence[SlideAttention]) -> SlideAttention:
    """What an ensemble made of one slide.

    Probabilities, weights, evidence and logits are means over the members; the rows of attention logits stand side by
    side. A patch is salient if it is to any member, recycled if it only is recycled. There is no embedding, as the
    members' spaces differ.

    Raises:
        PredictionError: If the members looked at different patches.
    """
    first = members[0]
    if len(members) == 1:
        return first
    check_same_patches(first.slide_id, [member.grid for member in members])

    def mean(field: str) -> npt.NDArray[np.float32]:
        stacked = np.stack([getattr(member, field) for member in members])
        return np.asarray(stacked.mean(axis=0, dtype=np.float64), np.float32)

    roles = [[member.role_N == ROLES.index(name) for member in members] for name in ("salient", "recycled")]
    salient_N, recycled_N = (np.any(of, axis=0) for of in roles)
    probabilities = np.mean([member.prediction.probabilities for member in members], axis=0)
    return replace(
        first,
        prediction=replace(first.prediction, probabilities=tuple(probabilities.tolist())),
        logits_NR=np.concatenate([member.logits_NR for member in members], axis=1),
        weights_N=mean("weights_N"),
        role_N=np.select([salient_N, recycled_N], [1, 2], 0).astype(np.uint8),
        checkpoint_fingerprint=_joined([member.checkpoint_fingerprint for member in members]),
        evidence_NC=mean("evidence_NC"),
        class_logits_C=mean("class_logits_C"),
        empty_logits_C=mean("empty_logits_C"),
        embedding_D=None,
    )


def check_same_patches(slide_id: str, grids: Sequence[TileGrid]) -> None:
    """Refuse runs that cannot be held against each other patch by patch.

    Raises:
        PredictionError: If the corners of their tiles differ.
    """
    if not all(np.array_equal(other.origins_lv0, grids[0].origins_lv0) for other in grids[1:]):
        raise PredictionError(f"{slide_id}: the runs take different patches of it; take each alone")


def _joined(fingerprints: Sequence[str]) -> str:
    """The fingerprint of an ensemble, whatever the order of its members; of one member its own."""
    return fingerprints[0] if len(fingerprints) == 1 else digest(sorted(fingerprints))


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
