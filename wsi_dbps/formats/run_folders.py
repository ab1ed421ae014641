"""Which folders of runs and of predictions belong together, and whether they fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dbps.core.options import to_stderr

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say


def fold_runs(run: PathLike) -> dict[int, Path]:
    """The runs of `train --folds all` in a folder by their fold, in order; none if it holds no folds."""
    run = Path(run)
    numbers = [path.name.removeprefix("fold") for path in run.glob("fold[0-9]*")]
    return {fold: run / f"fold{fold}" for fold in sorted(int(number) for number in numbers if number.isdecimal())}


def member_runs(runs: Iterable[PathLike], fold: int | None) -> list[Path]:
    """Runs with those of folds in place of their folder: the one of `fold`, or all."""
    found = []
    for run in map(Path, runs):
        folds = {} if (run / "best.pt").exists() else fold_runs(run)
        if not folds:
            found.append(run)
        else:
            found += [run / f"fold{fold}"] if fold is not None else folds.values()
    return found


def prediction_folders(preds: Iterable[PathLike]) -> list[Path]:
    """Folders of predictions, with those of folds in place of a folder of `predict --folds all`."""
    found: list[Path] = []
    for pred in map(Path, preds):
        folds = {} if (pred / "predictions.csv").exists() else fold_runs(pred)
        found += folds.values() or [pred]
    return found


def one_fold(pred: PathLike) -> Path:
    """The folder of predictions itself.

    Raises:
        ConfigError: If it holds folds, with the folders of which one is to be given.
    """
    from wsi_dbps.core.errors import ConfigError

    pred = Path(pred)
    folders = prediction_folders([pred])
    if folders != [pred]:
        names = ", ".join(folder.name for folder in folders[:5]) + ", ..." * (len(folders) > 5)
        raise ConfigError(f"{pred}: holds the predictions of several folds ({names}); give one of them: {folders[0]}")
    return pred


def paths_of(given: PathLike | Iterable[PathLike]) -> list[Path]:
    """One path or several, as a list."""
    from os import PathLike as OsPathLike

    return [Path(given)] if isinstance(given, (str, OsPathLike)) else [Path(each) for each in given]


def warn_of_seen(run: PathLike, slides: Cohort, say: Say = to_stderr) -> None:
    """Say how many slides the run has learnt from, or was chosen on, or are of such cases, without being marked so."""
    from wsi_dbps.cohort.manifest import read_manifest

    run = Path(run)
    if not (run / "cohort.csv").is_file():
        return
    used = read_manifest(run / "cohort.csv").records
    cases, ids = {r.case_id for r in used}, {r.slide_id for r in used}
    known = [
        r.slide_id
        for r in slides.records
        if (r.case_id in cases or r.slide_id in ids) and r.split not in ("train", "val")
    ]
    if known:
        say(
            f"{len(known)} of {len(slides)} slides, the first {known[0]}, are of cases that {run} was trained or "
            "chosen on, and are not marked so; results on them are no test"
        )


def check_same_model(pred: PathLike, val: PathLike) -> None:
    """Refuse validation by another model than is judged, as far as predict.json tells.

    Raises:
        PredictionError: If the two folders were predicted with different checkpoints.
    """
    from wsi_dbps.core.errors import PredictionError
    from wsi_dbps.formats.predict_json import read_predict_json

    own, other = (read_predict_json(Path(folder)).checkpoint_fingerprint for folder in (pred, val))
    if own and other and own != other:
        raise PredictionError(
            f"{val}: was predicted with another checkpoint than {pred} ({other}, not {own}); a threshold holds for the "
            "model it was chosen with. Give each its own validation, in order"
        )


def check_truth_of(truth: PathLike, preds: Iterable[PathLike]) -> None:
    """Refuse what was found about another model's heatmaps than that of the predictions, as far as the files tell.

    Raises:
        PredictionError: If a file of `truth` is about another checkpoint.
    """
    from wsi_dbps.core.errors import PredictionError
    from wsi_dbps.formats.predict_json import json_object, read_predict_json

    truth, models = Path(truth), [read_predict_json(Path(pred)).checkpoint_fingerprint for pred in preds]
    if None in models:
        return
    for name in ("localisation", "faithfulness", "stability"):
        other = json_object(truth / f"{name}.json").get("checkpoint_fingerprint")
        if other is not None and other not in models:
            raise PredictionError(
                f"{truth / name}.json: is about the heatmaps of another model ({other}) than the predictions "
                f"({', '.join(map(str, models))}); make it with the runs that predicted"
            )
