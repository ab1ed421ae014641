"""Cross-validation: every fold is trained in turn, into its own run folder."""

from __future__ import annotations

import csv
import io
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dbps.core.files import write_text
from wsi_dbps.core.output_folder import output_folder
from wsi_dbps.training.data import check_labels
from wsi_dbps.training.distributed import joined, stopped
from wsi_dbps.training.loop import TrainingResult, to_stderr, train
from wsi_dbps.training.stopping import told_to_stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.training.settings import RunConfig


def train_folds(
    cohort: Cohort,
    caches: PathLike,
    out: PathLike,
    config: RunConfig,
    *,
    say: Callable[[str], None] = to_stderr,
) -> tuple[TrainingResult, ...]:
    """Train with each fold as the test split, into OUT/fold0, OUT/fold1 ..., and write OUT/folds.csv, a row per fold.

    A fold that was begun is resumed, and a finished fold is left as it is; after an interruption, call the function
    again. folds.csv gets a row when a fold is done.

    Args:
        cohort: With labels and a `fold` column.
        caches: As `train`.
        out: Folder of all folds.
        config: As `train`.
        say: As `train`.

    Raises:
        ManifestError: If the cohort has no usable `fold` column.
        StoppedError: After SIGTERM or Ctrl-C, when the running step is done and saved.
        WsiDbpsError: Whatever `train` raises for a fold; finished folds are kept.
    """
    caches, out = Path(caches), Path(out)
    num_folds = max(cohort.folds().values(), default=0) + 1
    splits = [cohort.with_fold(fold) for fold in range(num_folds)]
    check_labels(cohort, config.training)
    results: list[TrainingResult] = []
    # joined only once, because processes that have left their group cannot join again
    with (
        joined(config.training.wait_minutes) as world,
        told_to_stop() as stopping,
        output_folder(out, "train --folds all", ("folds.csv",)) if world.rank == 0 else nullcontext(),
    ):
        for fold, split in enumerate(splits):
            if world.sum([float(stopping())])[0]:  # if one process is told, all end here
                raise stopped(out, f"between two folds; {fold} of {num_folds} are done", world, stopping)
            run = out / f"fold{fold}"
            if world.rank == 0:
                say(f"fold {fold}, {fold + 1} of {num_folds}: {run}")
            results.append(train(split, caches, run, config, resume=(run / "run.json").exists(), say=say))
            if world.rank == 0:
                _write(out / "folds.csv", [_row(k, result) for k, result in enumerate(results)])
    return tuple(results)


def _row(fold: int, result: TrainingResult) -> dict[str, Any]:
    best = result.best
    return {
        "fold": fold,
        "best_epoch": best["epoch"],
        "epochs": len(result.history),
        **{name: best[name] for name in sorted(best) if name.startswith("val_")},
        "seconds": round(sum(row["seconds"] for row in result.history), 3),
    }


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
