"""Arguments, options and what else several commands share."""

from __future__ import annotations

import os
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.training.checkpoint import Checkpoint

CohortCsv = Annotated[Path, typer.Argument(metavar="COHORT.csv", help="Cohort manifest; see docs/formats/manifest.md.")]
Caches = Annotated[Path, typer.Option(help="Folder of patch caches, as `wsi-dbps tile` wrote them.")]
Bags = Annotated[Path, typer.Option("--caches", help="Folder of patch caches, or of features, a file per slide.")]
Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN ...", help="Run folders of `wsi-dbps train`, also one that holds folds.")
]
Columns = Annotated[
    list[str], typer.Option(help="Read the manifest with a column renamed: slide_id=FILENAME. May be repeated.")
]
Slides = Annotated[
    Path | None, typer.Option(help="Folder in which slide files are found by slide_id, where the manifest has no path.")
]
Device = Annotated[str, typer.Option(help="auto (the first GPU, else the CPU), cpu, cuda, cuda:1, mps ...")]
Fold = Annotated[int | None, typer.Option(help="Take splits from the fold column, with this fold as test.")]


class Split(StrEnum):
    """Which slides of a cohort."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    ALL = "all"


class Score(StrEnum):
    """What a tile is scored by."""

    ATTENTION = "attention"
    EVIDENCE = "evidence"


def fold_runs(run: Path) -> dict[int, Path]:
    """The runs of `train --folds all` in a folder by their fold, in order; none if it holds no folds."""
    numbers = [path.name.removeprefix("fold") for path in run.glob("fold[0-9]*")]
    return {fold: run / f"fold{fold}" for fold in sorted(int(number) for number in numbers if number.isdecimal())}


def member_runs(runs: list[Path], fold: int | None) -> list[Path]:
    """Runs with those of folds in place of their folder: the one of `fold`, or all."""
    found = []
    for run in runs:
        folds = {} if (run / "best.pt").exists() else fold_runs(run)
        if not folds:
            found.append(run)
        else:
            found += [run / f"fold{fold}"] if fold is not None else folds.values()
    return found


def prediction_folders(preds: list[Path]) -> list[Path]:
    """Folders of predictions, with those of folds in place of a folder of `predict --folds all`."""
    found: list[Path] = []
    for pred in preds:
        folds = {} if (pred / "predictions.csv").exists() else fold_runs(pred)
        found += folds.values() or [pred]
    return found


def one_fold(pred: Path) -> Path:
    """The folder of predictions itself.

    Raises:
        ConfigError: If it holds folds, with the folders of which one is to be given.
    """
    from wsi_dbps.core.errors import ConfigError

    folders = prediction_folders([pred])
    if folders != [pred]:
        names = ", ".join(folder.name for folder in folders[:5]) + ", ..." * (len(folders) > 5)
        raise ConfigError(f"{pred}: holds the predictions of several folds ({names}); give one of them: {folders[0]}")
    return pred


def cohort_part(
    cohort: Path, columns: list[str], split: Split, fold: int | None = None, *, need_path: bool = False
) -> Cohort:
    """The slides of one split of a manifest.

    Raises:
        PredictionError: If there is none, with what the manifest holds and what to do.
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest
    from wsi_dbps.core.errors import PredictionError

    whole = read_manifest(cohort, columns=parse_columns(columns), need_path=need_path)
    if fold is not None:
        whole = whole.with_fold(fold)
    part = whole if split is Split.ALL else whole.part(split.value)
    if not len(part):
        raise PredictionError(_no_slide(cohort, whole, split))
    return part


def _no_slide(cohort: Path, whole: Cohort, split: Split) -> str:
    """Why a part of a manifest is empty, and what to do."""
    if not len(whole):
        return f"{cohort}: holds no slide"
    counts = Counter(record.split for record in whole.records if record.split)
    found = ", ".join(f"{num} of {name}" for name, num in counts.items()) or "no slide with a split"
    return (
        f"{cohort}: holds no slide of split {split.value} ({found}, of {len(whole)} slides). For all slides add "
        f"--split all; to make splits run `wsi-dbps split {cohort} --out splits.csv` and give splits.csv"
    )


def warn_of_seen(run: Path, slides: Cohort) -> None:
    """Say how many slides the run has learnt from, or was chosen on, or are of such cases, without being marked so."""
    from wsi_dbps.cohort.manifest import read_manifest

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
        print(
            f"wsi-dbps: {len(known)} of {len(slides)} slides, the first {known[0]}, are of cases that {run} was "
            "trained or chosen on, and are not marked so; results on them are no test",
            file=sys.stderr,
        )


def warn_of_more_to_come(run: Path, checkpoint: Checkpoint) -> None:
    """Say so if the run's training has not ended, as far as its history tells: its best epoch may be yet to come."""
    if not (run / "history.csv").is_file():
        return
    loop = checkpoint.config.training
    epochs = len((run / "history.csv").read_text(encoding="utf-8").splitlines()) - 1
    out_of_patience = loop.patience is not None and epochs - checkpoint.epoch >= loop.patience
    if epochs < loop.epochs and not out_of_patience:
        print(
            f"wsi-dbps: {run} has trained {epochs} of {loop.epochs} epochs; its best so far, epoch {checkpoint.epoch}, "
            "is taken",
            file=sys.stderr,
        )


def check_same_model(pred: Path, val: Path) -> None:
    """Refuse validation by another model than is judged, as far as predict.json tells."""
    from wsi_dbps.core.errors import PredictionError
    from wsi_dbps.formats.predict_json import read_predict_json

    own, other = (read_predict_json(folder).checkpoint_fingerprint for folder in (pred, val))
    if own and other and own != other:
        raise PredictionError(
            f"{val}: was predicted with another checkpoint than {pred} ({other}, not {own}); a threshold holds for the "
            "model it was chosen with. Give each its own validation, in order"
        )


def check_truth_of(truth: Path, preds: list[Path]) -> None:
    """Refuse what was found about another model's heatmaps than that of the predictions, as far as the files tell."""
    from wsi_dbps.core.errors import PredictionError
    from wsi_dbps.formats.predict_json import json_object, read_predict_json

    models = [read_predict_json(pred).checkpoint_fingerprint for pred in preds]
    if None in models:
        return
    for name in ("localisation", "faithfulness", "stability"):
        other = json_object(truth / f"{name}.json").get("checkpoint_fingerprint")
        if other is not None and other not in models:
            raise PredictionError(
                f"{truth / name}.json: is about the heatmaps of another model ({other}) than the predictions "
                f"({', '.join(map(str, models))}); make it with the runs that predicted"
            )


def num_cores() -> int:
    """Cores this process may use, which a cluster's scheduler makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
