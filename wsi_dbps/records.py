"""What the torch side hands to the rest, and its file forms: predictions and attention.

Documented for readers in docs/formats/predictions.md and docs/formats/attention.md.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.errors import PredictionError
from wsi_dbps.files import file_digest, write_text
from wsi_dbps.h5_files import h5_written_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    import h5py
    import numpy.typing as npt

    from wsi_dbps.files import PathLike

SPLITS: Final = ("train", "val", "test")
ROLES: Final = ("other", "salient", "recycled")
"""Names of the values of `SlideAttention.role_N`: 0 neither, 1 in the fundamental and 2 in the auxiliary buffer."""


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
    expected = made_with(folder).get(TABLE_DIGEST)
    if expected is not None and expected != file_digest(folder / "predictions.csv"):
        raise PredictionError(
            f"{folder}: predictions.csv is not the table that predict.json was written with: `predict` was stopped "
            "between the two files, or the table was changed by hand. Predict again; if the change is intended, delete "
            "predict.json"
        )
    return predictions


TABLE_DIGEST: Final = "predictions_fingerprint"
"""The key of predict.json that binds it to its predictions.csv."""


def made_with(folder: Path) -> dict[str, Any]:
    """What predict.json of a folder of predictions says; nothing where it is missing or cannot be used."""
    return said_by(folder / "predict.json")


def said_by(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is missing or holds something else."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def failed_slides(folder: Path) -> tuple[str, ...]:
    """One line, beginning with its id, for each slide of a folder of predictions that could not be predicted."""
    failed = made_with(folder).get("failed")
    return tuple(str(line) for line in failed) if isinstance(failed, list) else ()


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


@dataclass(frozen=True)
class SlideAttention:
    """How a model looked at every patch of one slide. Row i is row i of the slide's patch cache."""

    slide_id: str
    prediction: Prediction
    """The very prediction that this attention produced."""
    classes: tuple[str, ...]
    coords_N2: npt.NDArray[np.int64]
    """(N, 2) top-left corners (x, y) in level-0 pixels."""
    tile_lv0: float
    """Tile side in level-0 pixels; not always whole."""
    logits_NR: npt.NDArray[np.float32]
    """(N, R) attention logits, R = heads x query tokens."""
    weights_N: npt.NDArray[np.float32]
    """(N,) softmax of the logits over the slide, averaged over R; sums to 1."""
    role_N: npt.NDArray[np.uint8]
    """(N,) index into `ROLES`."""
    cache_fingerprint: str
    checkpoint_fingerprint: str
    evidence_NC: npt.NDArray[np.float32] | None = None
    """(N, C) signed contribution of each patch to each class logit (`wsi_dbps.models.aggregators.Reading`): of the
    patches in the buffers they sum to `class_logits_C - empty_logits_C`; of the others it is what each would add."""
    class_logits_C: npt.NDArray[np.float32] | None = None
    """(C,) the logits behind the prediction."""
    empty_logits_C: npt.NDArray[np.float32] | None = None
    """(C,) the logits where nothing is pooled."""
    embedding_D: npt.NDArray[np.float32] | None = None
    """(D,) the slide's embedding: what the last linear layer sees."""

    def write(self, path: PathLike) -> None:
        """Write the attention file (HDF5), whole or not at all."""
        with h5_written_whole(Path(path)) as file:
            file.attrs.update(
                format=ATTENTION_FORMAT,
                format_version=ATTENTION_VERSION,
                slide_id=self.slide_id,
                case_id=self.prediction.case_id,
                split=self.prediction.split or "",
                label=self.prediction.label or "",
                classes=json.dumps(self.classes),
                probabilities=np.asarray(self.prediction.probabilities, np.float64),
                tile_lv0=self.tile_lv0,
                cache_fingerprint=self.cache_fingerprint,
                checkpoint_fingerprint=self.checkpoint_fingerprint,
                roles=json.dumps(ROLES),
            )
            file["coords"] = self.coords_N2.astype(np.int64)
            file["logits"] = self.logits_NR.astype(np.float32)
            file["weights"] = self.weights_N.astype(np.float32)
            file["role"] = self.role_N.astype(np.uint8)
            for name, field in _MAY.items():
                if (values := getattr(self, field)) is not None:
                    file[name] = values.astype(np.float32)


_MAY: Final = {
    "evidence": "evidence_NC",
    "class_logits": "class_logits_C",
    "empty_logits": "empty_logits_C",
    "embedding": "embedding_D",
}
"""Datasets that a file need not have, and their fields."""
ATTENTION_FORMAT: Final = "wsi-dbps attention"
ATTENTION_VERSION: Final = 1


def attention_path(folder: Path, slide_id: str) -> Path:
    """Where a slide's attention lies in a folder of predictions, or of heatmaps."""
    return folder / "attention" / f"{slide_id}.h5"


def drawn_path(folder: Path, slide_id: str, ending: str) -> Path:
    """Where a picture or table of a slide lies in a folder of heatmaps: <slide_id>.<ending>.

    An id that itself ends like a file of another slide, as `S.rgb` beside `S`, has a `_` added, and so has that id with
    its `_`. No name of ours then ends so before its ending, so that two slides never share a file, whichever are drawn.

    Examples:
        >>> from pathlib import Path
        >>> drawn_path(Path("maps"), "S", "rgb.ome.tiff").name, drawn_path(Path("maps"), "S.rgb", "ome.tiff").name
        ('S.rgb.ome.tiff', 'S.rgb_.ome.tiff')
    """
    return folder / f"{slide_id}{'_' * bool(_LIKE_A_FILE.search(slide_id))}.{ending}"


_LIKE_A_FILE: Final = re.compile(r"\.(rgb|sheet|atlas|level\d+|level\d+\.crop\d+)_*$", re.IGNORECASE)
"""What stands between a slide's id and a file's last ending, with any `_` added to it."""


def read_attention(path: PathLike) -> SlideAttention:
    """Read an attention file.

    Raises:
        PredictionError: If the file is missing, damaged, or of another format or version.
    """
    path = Path(path)
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            found = (file.attrs.get("format"), file.attrs.get("format_version"))
            if found != (ATTENTION_FORMAT, ATTENTION_VERSION):
                raise PredictionError(f"{path}: is {found[0]!r} version {found[1]}, not {ATTENTION_FORMAT!r} version 1")
            a = file.attrs
            coords_N2, probabilities = file["coords"][:], tuple(float(p) for p in a["probabilities"])
            classes = tuple(str(name) for name in json.loads(a["classes"]))
            _check_arrays(path, file, len(classes), len(probabilities))
            rows = [len(file[name]) for name in ("logits", "weights", "role", "evidence") if name in file]
            if coords_N2.shape != (len(coords_N2), 2) or set(rows) != {len(coords_N2)}:
                raise PredictionError(f"{path}: {len(coords_N2)} coordinates for {rows} rows; predict again")
            if (role_N := file["role"][:]).max(initial=0) >= len(ROLES):
                raise PredictionError(f"{path}: role {role_N.max()} is none of 0 to {len(ROLES) - 1}; predict again")
            classes = tuple(json.loads(a["classes"]))
            if len(probabilities) != len(classes) or (
                "evidence" in file and file["evidence"].shape[1:] != (len(classes),)
            ):
                raise PredictionError(
                    f"{path}: probabilities or evidence for other than its {len(classes)} classes; predict again"
                )
            prediction = Prediction(
                a["slide_id"], a["case_id"], a["split"] or None, a["label"] or None, len(coords_N2), probabilities
            )
            return SlideAttention(
                slide_id=str(a["slide_id"]),
                prediction=prediction,
                classes=classes,
                coords_N2=coords_N2,
                tile_lv0=float(a["tile_lv0"]),
                logits_NR=file["logits"][:],
                weights_N=file["weights"][:],
                role_N=role_N,
                cache_fingerprint=a["cache_fingerprint"],
                checkpoint_fingerprint=a["checkpoint_fingerprint"],
                **{field: file[name][:] for name, field in _MAY.items() if name in file},
            )
    except FileNotFoundError:
        raise PredictionError(f"{path}: no such attention file; run `wsi-dbps predict` first") from None
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise PredictionError(f"{path}: not a readable attention file: {said}; predict again") from None


_ARRAYS: Final = {
    "coords": ("iu", 2),
    "logits": ("f", 2),
    "weights": ("f", 1),
    "role": ("u", 1),
    "evidence": ("f", 2),
    "class_logits": ("f", 1),
    "empty_logits": ("f", 1),
    "embedding": ("f", 1),
}
"""What kind of numbers each dataset holds, along how many axes."""


def _check_arrays(path: Path, file: h5py.File, num_classes: int, num_probabilities: int) -> None:
    for name in [name for name in _ARRAYS if name in file]:
        kinds, num_axes = _ARRAYS[name]
        found, of_classes = file[name], name in ("evidence", "class_logits", "empty_logits")
        if (
            found.dtype.kind not in kinds
            or found.ndim != num_axes
            or (of_classes and found.shape[-1] != num_classes)
            or num_probabilities != num_classes
        ):
            raise PredictionError(
                f"{path}: /{name} is {found.dtype} {found.shape} beside {num_probabilities} probabilities of "
                f"{num_classes} classes; predict again"
            )
