"""Train a model on a cohort, once or for every fold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from wsi_dbps.cohort.given import Columns, Fold, as_cohort
from wsi_dbps.core.options import options_with, to_stderr
from wsi_dbps.core.settings import settings
from wsi_dbps.training.given_settings import SetOption, run_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.training.loop import TrainingResult


@settings
class TrainOptions:
    """The options of `train`."""

    config: Annotated[Path | None, "File of settings in TOML; see docs/settings.md."] = None
    set: SetOption = ()
    fold: Fold = None
    folds: Annotated[
        str | None, "all: train every fold in turn, into RUN/fold0 ...; run again, it continues where it was stopped."
    ] = None
    resume: Annotated[bool, "Continue from the folder's last.pt, with the settings of its run."] = False
    device: Annotated[
        str | None, "The setting training.device: auto (the first GPU, else the CPU), cpu, cuda, cuda:1 ..."
    ] = None
    columns: Columns = ()


@dataclass(frozen=True)
class TrainResult(os.PathLike[str]):
    """What training has left in its run folder. It stands for that folder wherever a path is taken."""

    run: Path
    """The run folder; with `folds="all"` the folder that holds fold0, fold1 ..."""
    trained: tuple[TrainingResult, ...]
    """What training returned: of one run, or of each fold in order."""
    failed: int = 0

    def __fspath__(self) -> str:
        return os.fspath(self.run)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the best epoch, best.pt."""
        return self._only.checkpoint

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row per epoch, as in history.csv."""
        return list(self._only.history)

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best epoch."""
        return self._only.best

    @property
    def summary(self) -> str:
        """What the command prints: which epoch was kept, a line for each run."""
        return "\n".join(map(_line, self.trained))

    @property
    def _only(self) -> TrainingResult:
        from wsi_dbps.core.errors import ConfigError

        if len(self.trained) > 1:
            raise ConfigError(f"{self.run}: holds {len(self.trained)} folds; ask for one of them: result.trained[0]")
        return self.trained[0]


def train(
    cohort: Cohort | PathLike,
    caches: PathLike,
    out: PathLike,
    settings: Mapping[str, Any] | PathLike | None = None,
    options: TrainOptions = TrainOptions(),
    *,
    say: Say = to_stderr,
    **changes: Any,
) -> TrainResult:
    """Train a model end to end with dual-buffer selection, and leave a run folder that holds all to repeat it.

    The model learns from the slides of split `train`; the best epoch is chosen on those of `val`; the slides of `test`
    are never opened.

    Args:
        cohort: A cohort with labels and splits, or the path of its manifest.
        caches: Folder of patch caches or of features, a file per slide.
        out: Run folder to write.
        settings: Settings of the run: tables, keys with a dot (`{"encoder.name": "resnet18"}`), or the path of a TOML
            file; see docs/settings.md.
        options: Options; see `TrainOptions`.
        say: Takes each line about the run, such as one for each epoch; by default they go to standard error.
        changes: Options to change, by name: `train(cohort, "caches", "run", folds="all")`.

    Raises:
        ConfigError: If an option or a setting is wrong.
        ManifestError: If the manifest cannot be used, or has no fold column where folds are asked for.
        CheckpointError: If the folder holds a run already, or (with `resume`) none or another one.
        TrainingError: If training cannot start or go on; see `wsi_dbps.training.loop.train`.
        CacheError: If a cache is missing, damaged or of another kind.
    """
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.training.run_folder import settings_to_go_on
    from wsi_dbps.training.settings import build_run_config

    o, out = options_with(options, changes), Path(out)
    if o.folds is not None and (o.folds != "all" or o.fold is not None):
        raise ConfigError("--folds takes `all`, and no --fold beside it")
    tables, source = run_tables(o.config, settings, o.set, o.device)
    if o.resume:
        config = settings_to_go_on(out if o.folds is None else out / "fold0", tables, source or "train")
    else:
        config = build_run_config(tables, source or "train")
    whole = as_cohort(cohort, o.columns, need_label=True)
    if o.fold is not None:
        whole = whole.with_fold(o.fold)
    heard: dict[str, Any] = {} if say is to_stderr else {"say": say}  # by default the trainer prints without our prefix
    if o.folds is not None:
        from wsi_dbps.training.folds import train_folds

        return TrainResult(out, train_folds(whole, caches, out, config, **heard))
    from wsi_dbps.training.loop import train as train_one

    return TrainResult(out, (train_one(whole, caches, out, config, resume=o.resume, **heard),))


def _line(result: TrainingResult) -> str:
    best = result.best
    auroc = "does not exist" if best["val_auroc"] is None else f"{best['val_auroc']:.3f}"
    return (
        f"best epoch {best['epoch']} of {len(result.history)}: val AUROC {auroc}, val loss {best['val_loss']:.3f}: "
        f"{result.checkpoint}"
    )
