"""What a report tells of the runs behind predictions: their cohort, how training went, and whether cases leaked."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.core.digests import file_digest
from wsi_dbps.core.errors import CheckpointError
from wsi_dbps.formats.predict_json import read_predict_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.formats.predictions import Predictions

_SEEN: Final = ("train", "val")


@dataclass(frozen=True)
class Epoch:
    """A row of history.csv."""

    epoch: int
    train_loss: float
    val_loss: float
    val_auroc: float | None


@dataclass(frozen=True)
class RunRecord:
    """A run folder, as far as a report goes."""

    name: str
    cohort: Cohort | None
    """The slides it learnt from and was chosen on; None where they are not known."""
    history: tuple[Epoch, ...] = ()
    chosen: int | None = None
    """The epoch that best.pt is of."""
    case_ids: frozenset[str] | None = None
    """The cases that it predicted; None: all of the report."""


@dataclass(frozen=True)
class Leak:
    """A case that was evaluated although a model that predicted it had seen it, or a slide of it."""

    case_id: str
    split: str
    """`train`: learnt from it; `val`: was chosen on it."""
    run: str


def read_run(run: Path, case_ids: Collection[str] | None = None) -> tuple[RunRecord, ...]:
    """The run in a folder, or all folds of a folder that `train --folds all` has filled.

    Raises:
        CheckpointError: If the folder holds no run, or a history that is none.
        ManifestError: If its cohort.csv cannot be used.
    """
    known = None if case_ids is None else frozenset(case_ids)
    return tuple(_record(folder, known) for folder in _folders(run))


def runs_behind(
    pred: Path, case_ids: Collection[str], given: Sequence[Path] = ()
) -> tuple[tuple[RunRecord, ...], str | None]:
    """The runs that made a folder of predictions, and why some are not there.

    Without `given`, those that predict.json names, if still there and not trained anew. A given run is held against the
    fingerprints of the checkpoints in predict.json; one whose checkpoint is gone is taken at its word.

    Raises:
        CheckpointError: If none of the given runs made the predictions, or one is no run.
        ManifestError: If a run's cohort.csv cannot be used.
    """
    members = read_predict_json(pred).members
    fingerprints = {member.checkpoint_fingerprint for member in members}
    known = frozenset(case_ids)

    def is_one(checkpoint: Path) -> bool:
        return not fingerprints or not checkpoint.is_file() or file_digest(checkpoint) in fingerprints

    if given:
        behind = [folder for run in given for folder in _folders(run) if is_one(folder / "best.pt")]
        if not behind:
            raise CheckpointError(
                f"{given[0]}: its best.pt is not what {pred} was predicted with "
                f"({', '.join(sorted(fingerprints))}); give the run that was, or leave --run out"
            )
        missing = len(members) - len(behind)
        why = f"{missing} of {len(members)} runs behind {pred} not given" if missing > 0 else None
        return tuple(_record(folder, known) for folder in behind) + (RunRecord("the others", None),) * bool(why), why
    if not members:
        return (), f"no predict.json in {pred} names the run; give it with --run"
    found, reasons = [], []
    for member in members:
        run = member.checkpoint.parent
        if _is_run(run) and is_one(member.checkpoint):
            found.append(_record(run, known))
            continue
        reasons.append(
            f"the run at {run} has been trained anew since"
            if _is_run(run)
            else f"the run is no longer at {run}; give it with --run"
        )
        found.append(RunRecord(run.name, None, case_ids=known))
    return (() if len(reasons) == len(members) else tuple(found)), "; ".join(reasons) or None


def find_leaks(predictions: Predictions, runs: Sequence[RunRecord]) -> tuple[Leak, ...]:
    """Every evaluated case that a run which predicted it had in train or val, by the case's id or a slide's."""
    slides: dict[str, list[str]] = {}
    for row in predictions.slides:
        slides.setdefault(row.case_id, []).append(row.slide_id or "")
    found = {}
    for run in runs:
        records = [r for r in run.cohort.records if r.split in _SEEN] if run.cohort else []
        by_case = {record.case_id: str(record.split) for record in records}
        by_slide = {record.slide_id: str(record.split) for record in records}
        for row in predictions.cases:
            if run.case_ids is not None and row.case_id not in run.case_ids:
                continue
            of_slides = (by_slide[slide] for slide in slides.get(row.case_id, ()) if slide in by_slide)
            if split := by_case.get(row.case_id) or next(of_slides, None):
                found[row.case_id, run.name] = Leak(row.case_id, split, run.name)
    return tuple(found.values())


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def _folders(run: Path) -> list[Path]:
    folders = [run] if _is_run(run) else sorted(file.parent for file in run.glob("fold*/run.json"))
    if not folders:
        raise CheckpointError(f"{run}: holds no run (no run.json); give the folder that `wsi-dbps train` wrote")
    return folders


def _record(folder: Path, case_ids: frozenset[str] | None) -> RunRecord:
    folder = folder.resolve()
    name = f"{folder.parent.name}/{folder.name}" if folder.name.startswith("fold") else folder.name
    cohort = read_manifest(folder / "cohort.csv") if (folder / "cohort.csv").is_file() else None
    history = _history(folder / "history.csv")
    return RunRecord(name, cohort, history, _chosen(history, folder / "run.json"), case_ids)


def _history(path: Path) -> tuple[Epoch, ...]:
    if not path.is_file():
        return ()
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return tuple(_epoch(row) for row in csv.DictReader(file))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a history of training: {error!r}; see docs/formats/run-folder.md") from None


def _epoch(row: Mapping[str, str]) -> Epoch:
    auroc = row["val_auroc"]
    return Epoch(int(row["epoch"]), float(row["train_loss"]), float(row["val_loss"]), float(auroc) if auroc else None)


def _chosen(history: Sequence[Epoch], run_json: Path) -> int | None:
    """The best epoch, by the rule on the run folder's page."""
    if not history:
        return None
    try:
        by_loss = json.loads(run_json.read_text(encoding="utf-8"))["settings"]["training"]["monitor"] == "loss"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{run_json}: not what a run was made from; see docs/formats/run-folder.md") from None
    return max(history, key=lambda row: (0.0 if by_loss else row.val_auroc or 0.0, -row.val_loss)).epoch
