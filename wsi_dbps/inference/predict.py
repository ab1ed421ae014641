"""Predictions and attention of a cohort, from checkpoints and the slides' caches or features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wsi_dbps.cohort.each_slide import each_slide
from wsi_dbps.cohort.labels import mixed_cases
from wsi_dbps.core.digests import file_digest
from wsi_dbps.core.errors import PredictionError
from wsi_dbps.core.files import write_json
from wsi_dbps.core.output_folder import output_folder
from wsi_dbps.core.settings import to_dict
from wsi_dbps.core.version import __version__
from wsi_dbps.formats.attention import attention_path
from wsi_dbps.formats.predict_json import TABLE_DIGEST
from wsi_dbps.formats.predictions import Prediction, Predictions
from wsi_dbps.inference.predictor import Predictor
from wsi_dbps.metrics.pooling import pool_cases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.core.files import PathLike
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


def check_labels(checkpoint: Checkpoint, cohort: Cohort) -> None:
    """Check that a checkpoint can say something about a cohort.

    Raises:
        PredictionError: If the cohort is empty, or has labels that are no class of the checkpoint, naming them.
    """
    if not len(cohort):
        raise PredictionError("no slide to predict: the cohort, or the split asked for, is empty")
    if misfit := checkpoint.task.misfit(cohort.records):
        raise PredictionError(f"{checkpoint.path}: {misfit}")
