"""Cohorts as workflows take them: an object, or the path of a manifest."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from wsi_dbps.cohort.cohort import Cohort

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
Device = Annotated[str, "auto (the first GPU, else the CPU), cpu, cuda, cuda:1, mps ..."]


def as_cohort(
    cohort: Cohort | PathLike,
    columns: Sequence[str] | Mapping[str, str] = (),
    *,
    need_path: bool = False,
    need_label: bool = False,
    join: PathLike | None = None,
    slides: PathLike | None = None,
) -> Cohort:
    """A cohort as it is, or the cohort of a manifest at a path; all but `cohort` matters for a path only.

    Args:
        cohort: A cohort, or the path of a manifest.
        columns: Our column names to the manifest's: a mapping, or texts such as `slide_id=FILENAME`.
        need_path: Whether every slide needs a path to a file that exists.
        need_label: Whether the slides to train on need a label.
        join: A table with a row per case, whose columns are added.
        slides: A folder in which slide files are found by slide_id.

    Raises:
        ManifestError: Listing every problem of the manifest with its line.
        ConfigError: If a text of `columns` is not `ours=theirs`.
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest

    if isinstance(cohort, Cohort):
        return cohort
    renamed = parse_columns(list(columns)) if not hasattr(columns, "keys") else dict(columns)
    return read_manifest(cohort, columns=renamed, need_path=need_path, need_label=need_label, join=join, slides=slides)


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
