"""Runs and caches become predictions, and the attention of every slide."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from wsi_dbps.cohort.given import Columns, Device, Fold, Split, cohort_part, one_slide
from wsi_dbps.core.errors import ConfigError, PredictionError
from wsi_dbps.core.options import options_with, to_stderr
from wsi_dbps.core.settings import settings
from wsi_dbps.formats.run_folders import fold_runs, member_runs, paths_of, warn_of_seen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.formats.attention import SlideAttention
    from wsi_dbps.formats.predictions import Predictions


@settings
class PredictOptions:
    """The options of `predict`."""

    split: Annotated[Split, "Which slides."] = "test"
    fold: Fold = None
    folds: Annotated[str | None, "all: each fold's test slides by its own run, into OUT/fold0, OUT/fold1 ..."] = None
    device: Device = "auto"
    columns: Columns = ()


@dataclass(frozen=True)
class PredictedFolder:
    """What one model, or one ensemble, predicted."""

    folder: Path
    """Holds predictions.csv, predict.json and attention/<slide_id>.h5."""
    predictions: Predictions
    failed: tuple[str, ...]
    """One line for each slide that could not be predicted, beginning with its id."""
    num_runs: int
    """Runs whose probabilities were averaged."""

    @property
    def summary(self) -> str:
        """What the command prints."""
        done, together = self.predictions, f" by {self.num_runs} runs together" * (self.num_runs > 1)
        return (
            f"{len(done.slides)} slides of {len(done.cases)} cases predicted{together}, {len(self.failed)} failed: "
            f"{self.folder / 'predictions.csv'}"
        )


@dataclass(frozen=True)
class PredictResult(os.PathLike[str]):
    """Predictions and attention. It stands for the folder that was written wherever a path is taken."""

    folder: Path
    """Where they were written; with `folds="all"` the folder that holds fold0, fold1 ..."""
    folders: tuple[PredictedFolder, ...]
    """One; with `folds="all"` one for each fold."""

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    @property
    def predictions(self) -> Predictions:
        """All predictions; with `folds="all"` the test cases of all folds together.

        Raises:
            PredictionError: If folds share a case.
        """
        from wsi_dbps.metrics.pooling import pool_folds
        from wsi_dbps.metrics.thresholds import parts

        if len(self.folders) == 1:
            return self.folders[0].predictions
        return pool_folds({each.folder.name: parts(each.predictions, None)[0] for each in self.folders})

    @property
    def failed(self) -> tuple[str, ...]:
        """One line for each slide that could not be predicted, beginning with its id."""
        return tuple(line for each in self.folders for line in each.failed)

    @property
    def summary(self) -> str:
        """What the command prints."""
        return "\n".join(each.summary for each in self.folders)

    def attention(self, slide_id: str) -> SlideAttention:
        """How the model looked at every patch of a slide, with the slide's prediction.

        Raises:
            PredictionError: If the slide was not predicted.
        """
        from wsi_dbps.formats.attention import attention_path, read_attention

        for each in self.folders:
            if any(row.slide_id == slide_id for row in each.predictions.slides):
                return read_attention(attention_path(each.folder, slide_id))
        raise PredictionError(f"{slide_id}: was not predicted; see `failed` of the result")


def predict(
    runs: PathLike | Sequence[PathLike],
    cohort: Cohort | PathLike,
    caches: PathLike,
    out: PathLike,
    options: PredictOptions = PredictOptions(),
    *,
    say: Say = to_stderr,
    **changes: Any,
) -> PredictResult:
    """Predict slides and cases with a trained model, and keep the attention and attribution of every patch.

    Labels are not needed. Several runs, or a run that holds folds, are an ensemble: the mean of their probabilities.
    A slide that cannot be predicted is named in `failed`, and the others go on.

    Args:
        runs: A run folder of `train`, or several.
        cohort: A cohort, the path of a manifest, or the path of one slide or one cache, which is then predicted
            whatever `split` says.
        caches: Folder of patch caches, or of features, with a file per slide.
        out: Folder to write: predictions.csv, predict.json and attention/<slide_id>.h5.
        options: Which slides, and how.
        say: Takes lines of notice: of leaks, of training that goes on, of labels that differ within a case.
        changes: Options to change, by name: `split="all"`.

    Raises:
        PredictionError: If there is no slide to predict, or the slides' labels are not classes of the runs.
        CheckpointError: If a run has no checkpoint, or a damaged one.
        OutputError: If a file cannot be written.
    """
    options, members, out = options_with(options, changes), paths_of(runs), Path(out)
    if options.folds is None:
        return PredictResult(out, (_predicted(members, cohort, caches, out, options, options.fold, say),))
    folds = fold_runs(members[0])
    if options.folds != "all" or len(members) > 1 or options.fold is not None or not folds:
        raise ConfigError("--folds takes `all`, one folder of `train --folds all`, and no --fold beside it")
    return PredictResult(
        out, tuple(_predicted([run], cohort, caches, out / run.name, options, k, say) for k, run in folds.items())
    )


def _predicted(
    runs: Sequence[Path],
    cohort: Cohort | PathLike,
    caches: PathLike,
    out: Path,
    options: PredictOptions,
    fold: int | None,
    say: Say,
) -> PredictedFolder:
    from wsi_dbps.cohort.labels import mixed_cases
    from wsi_dbps.inference.predict import predict as predict_cohort
    from wsi_dbps.training.checkpoint import load_checkpoint
    from wsi_dbps.training.run_folder import warn_of_more_to_come

    slides = one_slide(cohort) or cohort_part(cohort, options.columns, options.split, fold)
    if mixed := mixed_cases(slides.records):
        say(
            f"{len(mixed)} cases, the first {next(iter(mixed))}, have slides with different labels; they are "
            "predicted, and written as cases without a label, which `evaluate` leaves out"
        )
    members = member_runs(runs, fold)
    checkpoints = [load_checkpoint(run / "best.pt") for run in members]
    for run, checkpoint in zip(members, checkpoints, strict=True):
        warn_of_seen(run, slides, say)
        warn_of_more_to_come(run, checkpoint, say)
    found = predict_cohort(checkpoints, slides, caches, out, device=options.device)
    return PredictedFolder(out, found.predictions, found.failed, len(members))
