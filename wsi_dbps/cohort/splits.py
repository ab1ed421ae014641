"""Split a cohort by case (patient) into train, val and test, or into folds, stratified by label."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from wsi_dbps.cohort.cohort import MIN_FOLDS, SPLITS, Cohort, ordered_classes
from wsi_dbps.cohort.labels import check_classes
from wsi_dbps.core.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from wsi_dbps.cohort.cohort import SlideRecord


def assign_parts(cases: Mapping[str, tuple[str, ...]], shares: Mapping[str, Fraction], seed: int) -> dict[str, str]:
    """Assign each case to a part, stratified.

    The cases of a stratum are shuffled and assigned one by one, each to the part that is furthest behind its share of
    the stratum. Ties are broken by the part that is furthest behind its share of all cases so far, then by the order of
    `shares`. With equal shares, or up to three of them, each part's count in each stratum is within one of its share.
    The order of `cases` does not matter.

    Args:
        cases: Case to stratum.
        shares: Part to its share; they add up to 1.
        seed: Random seed for shuffling.

    Raises:
        ValueError: If the shares do not add up to 1.

    Examples:
        >>> from collections import Counter
        >>> cases = {str(i): ("tumour",) for i in range(10)}
        >>> parts = assign_parts(cases, {"a": Fraction(7, 10), "b": Fraction(3, 10)}, seed=0)
        >>> sorted(Counter(parts.values()).items())
        [('a', 7), ('b', 3)]
    """
    if sum(shares.values()) != 1:
        raise ValueError(f"shares must add up to 1, got {dict(shares)}")
    rng = np.random.default_rng(seed)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for case in sorted(cases):
        strata[cases[case]].append(case)

    parts: dict[str, str] = {}
    in_all: Counter[str] = Counter()
    for _, members in sorted(strata.items()):
        in_stratum: Counter[str] = Counter()
        for num_assigned, i in enumerate(rng.permutation(len(members)), start=1):
            behind = {
                part: (share * num_assigned - in_stratum[part], share * (len(parts) + 1) - in_all[part])
                for part, share in shares.items()
            }
            part = max(behind, key=behind.__getitem__)
            parts[members[i]] = part
            in_stratum[part] += 1
            in_all[part] += 1
    return parts


def split_cohort(cohort: Cohort, *, val: float = 0.2, test: float = 0.2, seed: int = 0) -> Cohort:
    """The cohort with new splits: every case is assigned to train, val or test. A share of 0 leaves that part empty.

    A slide without a label gets no split, and so does not take part.

    Raises:
        ConfigError: If the shares leave nothing to train on.
        ManifestError: If no slide has a label, the labels cannot be classes (`check_classes`), there are too few cases
            for the parts, or a class would have no case in train.
    """
    shares = {"val": Fraction(str(val)), "test": Fraction(str(test))} if _are_shares(val, test) else {}
    train = 1 - sum(shares.values(), Fraction(0))
    if not shares or train <= 0:
        raise ConfigError(f"val {val} and test {test} must be shares from 0, together below 1")
    shares = {part: share for part, share in {"train": train, **shares}.items() if share}

    parts = _assigned(cohort, shares, seed)
    _check_trained(cohort, {case for case, part in parts.items() if part == "train"}, "train")
    return replace(cohort, records=tuple(replace(r, split=_part_of(r, parts)) for r in cohort.records))


def fold_cohort(cohort: Cohort, *, num_folds: int, seed: int = 0) -> Cohort:
    """The cohort with new folds: every case gets a number from 0 in the `fold` column. Splits stay as they are.

    A slide without a label gets no fold, and so does not take part.

    Raises:
        ConfigError: If there are fewer folds than test, validation and training need.
        ManifestError: If no slide has a label, the labels cannot be classes (`check_classes`), there are fewer cases
            than folds, or a class would have no case to train on with one of the folds as test.
    """
    if num_folds < MIN_FOLDS:
        raise ConfigError(
            f"{num_folds} folds are too few: one tests, one validates, the rest train; ask for {MIN_FOLDS}"
        )
    folds = _assigned(cohort, {str(k): Fraction(1, num_folds) for k in range(num_folds)}, seed)
    for k in range(num_folds):
        out = {str(k), str((k + 1) % num_folds)}
        _check_trained(cohort, {case for case, fold in folds.items() if fold not in out}, f"train of fold {k}")
    records = tuple(replace(r, extra={**r.extra, "fold": _part_of(r, folds) or ""}) for r in cohort.records)
    return replace(cohort, records=records)


@dataclass(frozen=True)
class SplitCount:
    """How many slides and cases of one class lie in one split or fold."""

    part: str | None
    """None: not used."""
    label: str | None
    """None: no label."""
    num_slides: int
    num_cases: int


def split_table(cohort: Cohort, *, by: str = "split") -> list[SplitCount]:
    """Counts per split (or with `by="fold"` per fold) and class, parts in order, zeros included.

    A case whose slides have several labels counts under each of them.
    """
    slides: dict[tuple[str | None, str | None], list[SlideRecord]] = defaultdict(list)
    for record in cohort.records:
        part = record.split if by == "split" else record.extra.get(by) or None
        slides[part, record.label].append(record)
    found = {part for part, _ in slides}
    named = [s for s in SPLITS if s in found] if by == "split" else ordered_classes(p for p in found if p is not None)
    labels = [*cohort.classes, *([None] if any(r.label is None for r in cohort.records) else [])]
    return [
        SplitCount(part, label, len(here := slides.get((part, label), [])), len({r.case_id for r in here}))
        for part in [*named, *([None] if None in found else [])]
        for label in labels
    ]


def _are_shares(*shares: float) -> bool:
    return all(0 <= share < 1 for share in shares)


def _part_of(record: SlideRecord, parts: Mapping[str, str]) -> str | None:
    return None if record.label is None else parts[record.case_id]


def _assigned(cohort: Cohort, shares: Mapping[str, Fraction], seed: int) -> dict[str, str]:
    """The part of each case that has a label; no part is empty."""
    check_classes(cohort.records)
    labels = {record.case_id: record.label for record in cohort.records if record.label is not None}
    if not labels:
        raise ManifestError("no slide has a label; a split is stratified by label: fill the label column")
    if len(labels) < len(shares):
        raise ManifestError(f"{len(labels)} cases are too few for {len(shares)} parts ({', '.join(shares)})")
    parts = assign_parts({case: (label,) for case, label in labels.items()}, shares, seed)
    if empty := [part for part in shares if part not in parts.values()]:
        raise ManifestError(f"{len(labels)} cases leave {empty[0]} empty; add cases, or ask for other shares")
    return parts


def _check_trained(cohort: Cohort, cases: Set[str], where: str) -> None:
    """Refuse a split that leaves a class without a case to train on."""
    trained = {record.label for record in cohort.records if record.case_id in cases}
    for label in cohort.classes:
        if label not in trained:
            count = len({record.case_id for record in cohort.records if record.label == label})
            raise ManifestError(
                f"class {label!r} has {count} {'case' if count == 1 else 'cases'} and none of them in {where}; "
                "add cases, or merge or leave out the class"
            )
