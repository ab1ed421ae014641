"""Predictions of slides and cases, and their table. Documented in docs/formats/predictions.md."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.cohort.cohort import SPLITS
from wsi_dbps.core.digests import file_digest
from wsi_dbps.core.errors import PredictionError
from wsi_dbps.core.files import write_text
from wsi_dbps.formats.predict_json import read_predict_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsi_dbps.core.files import PathLike


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of one slide, or of one case when `slide_id` is None."""

    slide_id: str | None
    case_id: str
    split: str | None
    label: str | None
    """The known label, if any."""
    num_patches: int
    probabilities: tuple[float, ...]
    """One per class, in the order of `Predictions.classes`; they sum to 1."""


@dataclass(frozen=True)
class Predictions:
    """All predictions of one run of `predict`."""

    classes: tuple[str, ...]
    slides: tuple[Prediction, ...]
    cases: tuple[Prediction, ...]

    def predicted(self, row: Prediction) -> str:
        """The class of highest probability; the first of equals."""
        return self.classes[int(np.argmax(row.probabilities))]

    def write_csv(self, path: PathLike) -> None:
        """Write predictions.csv: a row per slide, then a row per case."""
        path = Path(path)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*_COLUMNS, *(f"prob_{name}" for name in self.classes)])
        for level, rows in (("slide", self.slides), ("case", self.cases)):
            for row in rows:
                known = (row.slide_id or "", row.case_id, row.split or "", row.label or "", self.predicted(row))
                writer.writerow([level, *known, row.num_patches, *(repr(p) for p in row.probabilities)])
        write_text(path, out.getvalue())


_COLUMNS: Final = ("level", "slide_id", "case_id", "split", "label", "predicted", "num_patches")


def read_predicted(folder: PathLike) -> Predictions:
    """The table of a folder of `wsi-dbps predict`, checked to be the one that its predict.json was written with.

    A folder without predict.json, or with one that names no digest (of an earlier version), is taken as it is.

    Raises:
        PredictionError: As `read_predictions`; also if the two files are not of the same run of `predict`.
    """
    folder = Path(folder)
    predictions = read_predictions(folder / "predictions.csv")
    expected = read_predict_json(folder).predictions_fingerprint
    if expected is not None and expected != file_digest(folder / "predictions.csv"):
        raise PredictionError(
            f"{folder}: predictions.csv is not the table that predict.json was written with: `predict` was stopped "
            "between the two files, or the table was changed by hand. Predict again; if the change is intended, delete "
            "predict.json"
        )
    return predictions


def read_predictions(path: PathLike) -> Predictions:
    """Read a predictions.csv, and check that its cases follow from its slides.

    Raises:
        PredictionError: If the file is missing, lacks a column, holds a number that is none, a slide or case twice, or
            a case that is not the mean of its slides; with the line number.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PredictionError(f"{path}: no such file; run `wsi-dbps predict` first") from None
    except OSError as error:
        in_file = f"{path.parent}: is a file; give the folder that `wsi-dbps predict` wrote"
        said = in_file if isinstance(error, NotADirectoryError) else f"{path}: cannot be read: {error.strerror}"
        raise PredictionError(said) from None
    except UnicodeDecodeError as error:
        raise PredictionError(f"{path}: not UTF-8: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    try:
        columns = reader.fieldnames or []
        table = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise PredictionError(f"{path}, line {reader.line_num + 1}: not CSV: {error}") from None
    classes = tuple(name.removeprefix("prob_") for name in columns if name.startswith("prob_"))
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise PredictionError(f"{path}: no column {', '.join(missing)}; found {', '.join(columns) or 'nothing'}")
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise PredictionError(f"{path}: the column {', '.join(twice)} appears twice; keep one")
    if len(classes) < 2:
        raise PredictionError(f"{path}: needs two or more columns prob_<class>; found {len(classes)}")
    rows: dict[str, dict[str, tuple[Prediction, str]]] = {"slide": {}, "case": {}}
    for where, row in table:
        if None in row or None in row.values():
            raise PredictionError(f"{where}: has another number of cells than the {len(columns)} column names")
        if row["level"] not in rows:
            raise PredictionError(f"{where}: level is {row['level']!r}; it is slide or case")
        level, found = row["level"], _parse_row(row, classes, where)
        own_id = found.case_id if level == "case" else found.slide_id
        if not own_id or not found.case_id or (level == "case" and found.slide_id):
            raise PredictionError(f"{where}: a slide has a slide_id and a case_id, a case has a case_id only")
        if own_id in rows[level]:
            raise PredictionError(f"{where}: {level} {own_id} appears a second time; keep one of its rows")
        rows[level][own_id] = (found, where)
    _check_cases(rows["slide"], rows["case"])
    slides, cases = (tuple(found for found, _ in rows[level].values()) for level in ("slide", "case"))
    return Predictions(classes, slides, cases)


def _check_cases(slides: dict[str, tuple[Prediction, str]], cases: dict[str, tuple[Prediction, str]]) -> None:
    """Refuse cases that do not follow from their slides, as after an edit by hand."""
    of_case: dict[str, list[Prediction]] = {case_id: [] for case_id in cases}
    for slide_id, (slide, where) in slides.items():
        if slide.case_id not in cases:
            raise PredictionError(
                f"{where}: slide {slide_id} is of case {slide.case_id}, which has no row; predict again"
            )
        of_case[slide.case_id].append(slide)
    for case_id, members in of_case.items():
        case, where = cases[case_id]
        if not members:
            raise PredictionError(f"{where}: case {case_id} has no slide in the table; predict again")
        for what, own in (("label", case.label), ("split", case.split)):
            found = {getattr(slide, what) for slide in members} - {None}
            if what == "label" and own is None and len(found) > 1:
                continue  # a case whose slides have different labels has none itself
            if found != {own} - {None}:
                said = ", ".join(sorted(found)) or "none"
                raise PredictionError(
                    f"{where}: case {case_id} has {what} {own or 'none'}, its slides have {said}; make them the same"
                )
        mean = [math.fsum(column) / len(members) for column in zip(*(s.probabilities for s in members), strict=True)]
        if not np.allclose(case.probabilities, mean, rtol=0, atol=1e-3):
            said, own = (", ".join(f"{p:.4g}" for p in values) for values in (mean, case.probabilities))
            raise PredictionError(
                f"{where}: case {case_id} has probabilities {own}, the mean of its slides is {said}; correct it "
                "or predict again"
            )


def _parse_row(row: dict[str, Any], classes: Sequence[str], where: str) -> Prediction:
    try:
        probabilities = tuple(float(row[f"prob_{name}"]) for name in classes)
        num_patches = int(row["num_patches"])
    except (TypeError, ValueError) as error:
        raise PredictionError(f"{where}: not a number: {error}") from None
    if not all(0 <= p <= 1 for p in probabilities) or not math.isclose(sum(probabilities), 1, abs_tol=1e-3):
        raise PredictionError(f"{where}: probabilities {probabilities} are not shares of 1")
    of_class = dict(zip(classes, probabilities, strict=True))
    if of_class.get(predicted := row["predicted"], -1.0) < max(probabilities) - 1e-3:
        most = max(classes, key=lambda name: of_class[name])
        raise PredictionError(f"{where}: predicted is {predicted!r}, though {most!r} is the most probable; correct it")
    if num_patches < 0:
        raise PredictionError(f"{where}: num_patches is {num_patches}")
    if (label := row["label"] or None) is not None and label not in classes:
        raise PredictionError(f"{where}: label {label!r} is not one of the classes {', '.join(classes)}")
    if row["split"] not in ("", *SPLITS):
        raise PredictionError(f"{where}: split {row['split']!r} is none of {', '.join(SPLITS)}; correct it")
    return Prediction(
        row["slide_id"] or None, row["case_id"] or "", row["split"] or None, label, num_patches, probabilities
    )
