"""Cohorts as workflows take them: an object, or the path of a manifest."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from wsi_dbps.cohort.cohort import Cohort, SlideRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wsi_dbps.core.files import PathLike

Split = Literal["train", "val", "test", "all"]
"""Which slides of a cohort; `all`: also those without a split."""

# options that several workflows have
Columns = Annotated[tuple[str, ...], "Read the manifest with a column renamed: slide_id=FILENAME. May be repeated."]
SlidesFolder = Annotated[
    Path | None, "Folder in which slide files are found by slide_id, where the manifest has no path."
]
Fold = Annotated[int | None, "Take splits from the fold column, with this fold as test."]
Device = Annotated[str, "Where to compute: auto (the first GPU, else the CPU), cpu, cuda, cuda:1, mps ..."]


def as_cohort(
    cohort: Cohort | PathLike,
    columns: Sequence[str] | Mapping[str, str] = (),
    *,
    need_path: bool = False,
    need_label: bool = False,
    join: PathLike | None = None,
    slides: PathLike | None = None,
) -> Cohort:
    """A cohort as it is, or the cohort of a manifest at a path, for which alone all but `need_label` matters.

    Args:
        cohort: A cohort, or the path of a manifest.
        columns: Our column names to the manifest's: a mapping, or texts such as `slide_id=FILENAME`.
        need_path: Whether every slide needs a path to a file that exists.
        need_label: Whether the slides to train on need a label.
        join: A table with a row per case, whose columns are added.
        slides: A folder in which slide files are found by slide_id.

    Raises:
        ManifestError: Listing every problem of the manifest with its line; or if a label is missing.
        ConfigError: If a text of `columns` is not `ours=theirs`.
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest

    if isinstance(cohort, Cohort):
        if need_label:
            _check_labels(cohort)
        return cohort
    renamed = parse_columns(list(columns)) if not hasattr(columns, "keys") else dict(columns)
    return read_manifest(cohort, columns=renamed, need_path=need_path, need_label=need_label, join=join, slides=slides)


def _check_labels(cohort: Cohort) -> None:
    """Refuse slides to learn from without a label, by the rule of `read_manifest`."""
    from wsi_dbps.core.errors import ManifestError

    used = [r for r in cohort.records if r.split in ("train", "val") or r.extra.get("fold")]
    if not any(r.split or "fold" in r.extra for r in cohort.records):
        used = list(cohort.records)
    if missing := [r.slide_id for r in used if r.label is None]:
        raise ManifestError(
            f"the cohort: slide {missing[0]!r} is to learn from and has no label ({len(missing)} such slides); give it "
            "a label, or no split"
        )


def read_cohort(
    path: PathLike,
    *,
    columns: Sequence[str] | Mapping[str, str] = (),
    slides: PathLike | None = None,
    join: PathLike | None = None,
) -> Cohort:
    """The cohort of a manifest: a CSV file with a row per slide; see docs/formats/manifest.md.

    Args:
        path: The CSV file; paths in it are relative to its folder.
        columns: Our column names to the manifest's, where they differ: `{"slide_id": "FILENAME"}`.
        slides: A folder in which slide files are found by slide_id, where the manifest has no path.
        join: A table with a row per case, whose columns (such as labels) each slide of the case gets.

    Raises:
        ManifestError: Listing every problem with its line.
    """
    return as_cohort(path, columns, slides=slides, join=join)


def cohort_from_slides(slides: Any) -> Cohort:
    """A cohort without a manifest: from slide files, or from a table with the columns of a manifest.

    Without a `slide_id`, a slide is called by its file's name without the ending; without a `case_id`, it is its own
    case. The checks are those of a manifest.

    Args:
        slides: A path or URL of a slide, or several; slide records; rows as mappings (`{"path": "a.svs", "label":
            "tumor"}`); or a pandas DataFrame. Paths are relative to the current folder; None and NaN are empty cells.

    Raises:
        ManifestError: Listing every problem with its line in the table, the first slide being line 2.

    Examples:
        >>> cohort_from_slides(["scans/a.svs", "scans/b.svs"]).records[1].slide_id
        'b'
        >>> cohort_from_slides([{"slide_id": "a", "label": "x"}, {"slide_id": "b", "label": "y"}]).classes
        ('x', 'y')
    """
    from tempfile import TemporaryDirectory

    from wsi_dbps.core.errors import ManifestError

    rows = _rows_of(slides)
    if rows and all(isinstance(each, SlideRecord) for each in rows):
        return Cohort.of(rows)
    with TemporaryDirectory() as folder:
        manifest = Path(folder) / "slides.csv"
        _write_rows(manifest, [_row_of(each) for each in rows])
        try:
            return as_cohort(manifest)
        except ManifestError as error:
            raise ManifestError(str(error).replace(str(manifest), "the table of slides")) from None


def _rows_of(slides: Any) -> list[Any]:
    """One item per slide."""
    if hasattr(slides, "to_dict"):  # a pandas DataFrame
        return list(slides.to_dict("records"))
    return [slides] if isinstance(slides, (str, os.PathLike, dict, SlideRecord)) else list(slides)


def _row_of(slide: Any) -> dict[str, str]:
    """The cells of a slide's row, paths made absolute."""
    row = {"path": os.fspath(slide)} if isinstance(slide, (str, os.PathLike)) else dict(slide)
    cells = {str(name): "" if value is None or _is_nan(value) else str(value) for name, value in row.items()}
    for name in ("path", "mask", "annotations"):
        if cells.get(name) and "://" not in cells[name]:
            cells[name] = str(Path(cells[name]).absolute())
    return cells


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    import csv

    names = list(dict.fromkeys(name for row in rows for name in row)) or ["slide_id"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


def cohort_part(
    cohort: Cohort | PathLike, columns: Sequence[str], split: Split, fold: int | None = None, *, need_path: bool = False
) -> Cohort:
    """The slides of one split of a cohort, the splits taken from its fold column where `fold` is given.

    Raises:
        PredictionError: If the split has no slide, with what the cohort holds and what to do.
        ManifestError: If the manifest cannot be used, or has no usable fold column.
        ConfigError: If there is no such fold.
    """
    from wsi_dbps.core.errors import PredictionError

    whole = as_cohort(cohort, columns, need_path=need_path)
    if fold is not None:
        whole = whole.with_fold(fold)
    part = whole if split == "all" else whole.part(split)
    if not len(part):
        raise PredictionError(_no_slide(cohort, whole, split))
    return part


def cohort_name(cohort: Cohort | PathLike) -> str:
    """What an error calls a cohort: its manifest's path, or `the cohort`."""
    return "the cohort" if isinstance(cohort, Cohort) else str(Path(os.fspath(cohort)))


def _no_slide(cohort: Cohort | PathLike, whole: Cohort, split: Split) -> str:
    """Why a part of a manifest is empty, and what to do."""
    name = cohort_name(cohort)
    if not len(whole):
        return f"{name}: holds no slide"
    counts = Counter(record.split for record in whole.records if record.split)
    found = ", ".join(f"{num} of {part}" for part, num in counts.items()) or "no slide with a split"
    manifest = "COHORT.csv" if isinstance(cohort, Cohort) else name
    return (
        f"{name}: holds no slide of split {split} ({found}, of {len(whole)} slides). For all slides add "
        f"--split all; to make splits run `wsi-dbps split {manifest} --out splits.csv` and give splits.csv"
    )


def one_slide(path: Cohort | PathLike) -> Cohort | None:
    """The cohort of one slide, where its file, its cache or its file of features is given; None for all else.

    The slide is called by the file's name without the ending, which is how `tile` names a cache.
    """
    from wsi_dbps.cohort.manifest import SLIDE_ENDINGS

    name = "" if isinstance(path, Cohort) else os.path.basename(os.fspath(path))
    if name.lower().endswith(".h5"):
        return Cohort.of([SlideRecord(name[:-3], name[:-3])])
    return cohort_from_slides(path) if name.lower().endswith(SLIDE_ENDINGS) else None
