"""Which slides, whose, with which label, in which split."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from wsi_dbps.cohort.names import id_of_file, is_url
from wsi_dbps.core.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from wsi_dbps.core.files import PathLike

SPLITS: Final = ("train", "val", "test")

MIN_FOLDS = 3  # one tests, one validates, at least one trains


@dataclass(frozen=True)
class SlideRecord:
    """One row of a cohort manifest; None is an empty cell or an absent column."""

    slide_id: str
    """Unique in the cohort; names every output of the slide."""
    case_id: str
    """The patient. All slides of a case are in the same split."""
    path: Path | None = None
    """The slide file."""
    label: str | None = None
    split: str | None = None
    """`train`, `val` or `test`; None: not used."""
    mpp_um: float | None = None
    """µm per level-0 pixel, where the manifest overrides the file."""
    mask: Path | None = None
    """A tissue mask to use instead of segmentation."""
    annotations: Path | None = None
    """Areas that a person has drawn on the slide; see docs/formats/annotations.md."""
    coords: Path | None = None
    """The output folder of another tool that chose this slide's tiles (`tile --coords`); not a column."""
    url: str | None = None
    """The URL of a slide that is not a local file (`s3://...`), as written; `path` is then None."""
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Every other column (`fold`, `site`, ...), as written."""

    @classmethod
    def of_file(cls, file: PathLike) -> Self:
        """A slide by its file alone, a path or a URL: its name is the slide_id, and each slide is its own case."""
        where = os.fspath(file)
        slide_id = id_of_file(where)
        if is_url(where):
            return cls(slide_id, slide_id, url=where)
        return cls(slide_id, slide_id, Path(where))

    @property
    def file(self) -> Path | str | None:
        """The slide file: a path, or a URL."""
        return self.path or self.url


@dataclass(frozen=True)
class Cohort:
    """Slides in manifest order, and their classes in the order of the logits."""

    records: tuple[SlideRecord, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_one_per_case(self.records, lambda record: record.split, "split")
        seen: set[str] = set()
        for record in self.records:
            if record.slide_id in seen:
                raise ManifestError(
                    f"slide_id {record.slide_id!r} appears twice; ids name the outputs, make them unique"
                )
            if record.label is not None and record.label not in self.classes:
                known = ", ".join(self.classes) or "none"
                raise ManifestError(f"slide {record.slide_id!r}: label {record.label!r} is no class; known: {known}")
            seen.add(record.slide_id)

    @classmethod
    def of(cls, records: Iterable[SlideRecord]) -> Self:
        """A cohort whose classes are the labels of its records, in the order of `ordered_classes`."""
        records = tuple(records)
        return cls(records, ordered_classes(record.label for record in records if record.label is not None))

    def __len__(self) -> int:
        return len(self.records)

    def part(self, *splits: str) -> Cohort:
        """The slides of these splits, possibly none; the classes stay those of the whole cohort."""
        if unknown := set(splits) - set(SPLITS):
            raise ValueError(f"unknown splits {sorted(unknown)}; known: {', '.join(SPLITS)}")
        return replace(self, records=tuple(record for record in self.records if record.split in splits))

    def slides(self, *slide_ids: str) -> Cohort:
        """The slides with these ids, in manifest order.

        Raises:
            ManifestError: If an id is not in the cohort.
        """
        if unknown := set(slide_ids) - {record.slide_id for record in self.records}:
            raise ManifestError(f"not in the cohort: {', '.join(sorted(unknown))}")
        return replace(self, records=tuple(record for record in self.records if record.slide_id in slide_ids))

    def cases(self) -> dict[str, tuple[SlideRecord, ...]]:
        """The slides of each case, cases in order of first appearance."""
        slides: dict[str, list[SlideRecord]] = defaultdict(list)
        for record in self.records:
            slides[record.case_id].append(record)
        return {case_id: tuple(records) for case_id, records in slides.items()}

    def folds(self) -> dict[str, int]:
        """The fold of each slide whose `fold` cell is filled.

        Raises:
            ManifestError: If a cell is not a whole number from 0, or a case lies in two folds.
        """
        _check_one_per_case(self.records, lambda record: record.extra.get("fold", "").strip() or None, "fold")
        cells = {record.slide_id: record.extra.get("fold", "").strip() for record in self.records}
        if wrong := {slide: cell for slide, cell in cells.items() if cell and not re.fullmatch("[0-9]{1,4}", cell)}:
            slide, cell = next(iter(wrong.items()))
            also = f", nor of {len(wrong) - 1} more slides" if len(wrong) > 1 else ""
            raise ManifestError(f"fold {cell!r} of slide {slide!r} is not a whole number from 0{also}")
        return {slide: int(cell) for slide, cell in cells.items() if cell}

    def with_fold(self, fold: int, num_folds: int | None = None) -> Cohort:
        """The cohort whose splits follow from the `fold` column.

        Fold `fold` is the test split, the next one (after the last, fold 0) the validation split, the others train. A
        slide with an empty `fold` is not used.

        Args:
            fold: From 0.
            num_folds: None: one more than the highest fold in the column.

        Raises:
            ManifestError: If there is no usable `fold` column, or it holds other folds than `num_folds` promises.
            ConfigError: If `fold` is not one of them.
        """
        folds = self.folds()
        if not folds:
            raise ManifestError(
                "the manifest has no fold column, or an empty one; make one with: wsi-dbps split --folds K"
            )
        num_folds = max(folds.values()) + 1 if num_folds is None else num_folds
        if set(folds.values()) != set(range(num_folds)) or num_folds < MIN_FOLDS:
            found = ", ".join(map(str, sorted(set(folds.values()))))
            wanted = f"0 to {num_folds - 1}" if num_folds >= MIN_FOLDS else f"at least {MIN_FOLDS} folds, from 0"
            raise ManifestError(f"the fold column must hold {wanted}, found {found}")
        if not 0 <= fold < num_folds:
            raise ConfigError(f"fold {fold} is not in the cohort; known: 0 to {num_folds - 1}")
        named = {fold: "test", (fold + 1) % num_folds: "val"}
        splits = {slide: named.get(its, "train") for slide, its in folds.items()}
        return replace(self, records=tuple(replace(r, split=splits.get(r.slide_id)) for r in self.records))


def ordered_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Each label once: by value where all are numbers, else as text in which 2 comes before 10.

    Examples:
        >>> ordered_classes(["grade10", "grade2", "grade2"])
        ('grade2', 'grade10')
        >>> ordered_classes(["10", "-1", "0.5"])
        ('-1', '0.5', '10')
    """
    unique = sorted(set(labels))
    values = {label: number for label in unique if (number := finite_number(label)) is not None}
    return tuple(sorted(unique, key=values.__getitem__ if len(values) == len(unique) else _natural_key))


def finite_number(text: str) -> float | None:
    """The number a text holds; None for other text, nan and infinities."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None  # Python reads 0_25 as 25


def _natural_key(text: str) -> list[tuple[int, str]]:
    """Text and runs of digits in turn; a longer run of digits is a larger number."""
    parts = re.split("([0-9]+)", text)
    return [(len(part.lstrip("0")), part.lstrip("0")) if i % 2 else (0, part) for i, part in enumerate(parts)]


def _check_one_per_case(records: Iterable[SlideRecord], value: Callable[[SlideRecord], str | None], what: str) -> None:
    """Refuse a case whose slides lie in two splits or folds: its patient would be both trained and tested on."""
    first: dict[str, str] = {}
    for record in records:
        its = value(record)
        if its is not None and first.setdefault(record.case_id, its) != its:
            raise ManifestError(
                f"case {record.case_id!r} lies in {what} {first[record.case_id]!r} and, with slide "
                f"{record.slide_id!r}, in {what} {its!r}; a case lies in one {what} only"
            )
