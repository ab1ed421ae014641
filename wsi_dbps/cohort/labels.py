"""Check that labels can be classes, as `split` and `train` do before they begin."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, Protocol

from wsi_dbps.cohort.cohort import finite_number
from wsi_dbps.core.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from wsi_dbps.cohort.cohort import SlideRecord

MOST_NUMBERS: Final = 10
"""Distinct numbers that are taken as classes, such as grades; more of them are taken as measurements."""


class Labelled(Protocol):
    """A slide of a manifest, or its prediction: it has a case and perhaps a label."""

    @property
    def slide_id(self) -> str | None:
        """The slide; None for a whole case."""

    @property
    def case_id(self) -> str:
        """The case that it belongs to."""

    @property
    def label(self) -> str | None:
        """Its label, if it has one."""


def mixed_cases(records: Iterable[Labelled]) -> dict[str, dict[str, str]]:
    """The cases whose slides have different labels: for each its labels, each with the first slide that has it."""
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        if record.label is not None:
            labels[record.case_id].setdefault(record.label, str(record.slide_id))
    return {case_id: its for case_id, its in labels.items() if len(its) > 1}


def check_classes(records: Iterable[SlideRecord], named: Collection[str] = ()) -> None:
    """Check that each case has one label, and that the labels are classes and not measurements or misspellings.

    Args:
        records: Slides to learn from or to test on; those without a label do not count.
        named: `training.classes`: labels that the user has named are classes as they are.

    Raises:
        ManifestError: Naming the case or the labels, how many slides have them, and what to change.
    """
    labelled = [record for record in records if record.label is not None]
    if mixed := mixed_cases(labelled):
        case_id, its = next(iter(mixed.items()))
        found = ", ".join(f"{label!r} on slide {slide}" for label, slide in its.items())
        others = f" ({len(mixed)} cases are so)" if len(mixed) > 1 else ""
        raise ManifestError(
            f"case {case_id!r} has slides with different labels: {found}{others}. A label belongs to the case: give "
            "its slides one label, or leave some of them out, or give each slide a case_id of its own (a patient's "
            "slides may then lie in train and in test)"
        )
    counts = Counter(str(record.label) for record in labelled)
    spellings: dict[str | float, str] = {}
    for label in counts:
        if (other := spellings.setdefault(_normalised(label), label)) != label and not {label, other} <= set(named):
            raise ManifestError(
                f"the labels {other!r} ({_slides(counts[other])}) and {label!r} ({_slides(counts[label])}) differ in "
                "spelling only and would be two classes; write them alike, or name both in training.classes"
            )
    if named:
        return
    if len(counts) > MOST_NUMBERS and all(finite_number(label) is not None for label in counts):
        raise ManifestError(
            f"the labels are {len(counts)} different numbers, as of a measurement, and each would be a class; this "
            "version trains classifiers only: group them into a few classes in the label column (such as low and high)"
        )
    single = [label for label, count in counts.items() if count == 1]
    if len(counts) > MOST_NUMBERS and 2 * len(single) > len(counts):
        raise ManifestError(
            f"{len(single)} of {len(counts)} labels, the first {single[0]!r}, are those of a single slide, as in a "
            "column of ids or measurements; use another column (--columns label=NAME), or group the labels into classes"
        )


def _normalised(label: str) -> str | float:
    """A form that is the same for labels that differ only in case, accents or blanks, or are the same number."""
    if (number := finite_number(label)) is not None:
        return number
    letters = unicodedata.normalize("NFKD", label).casefold()
    return "".join(c for c in letters if not c.isspace() and not unicodedata.combining(c))


def _slides(count: int) -> str:
    return f"{count} slide{'s' * (count != 1)}"
