"""Splits and folds: by case, stratified, the same for every row order."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.cohort.cohort import Cohort, SlideRecord
from wsi_dbps.cohort.splits import SplitCount, assign_parts, fold_cohort, split_cohort, split_table
from wsi_dbps.core.errors import ConfigError, ManifestError

seeds = st.integers(0, 2**32)
strata = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=60).map(
    lambda labels: {f"p{i}": (label,) for i, label in enumerate(labels)}
)


@st.composite
def shares(draw: st.DrawFn) -> dict[str, Fraction]:
    """Up to three parts of any size, or up to eight equal ones."""
    if draw(st.booleans()):
        num_parts = draw(st.integers(2, 8))
        return {str(i): Fraction(1, num_parts) for i in range(num_parts)}
    sizes = draw(st.lists(st.integers(1, 20), min_size=2, max_size=3))
    return {name: Fraction(size, sum(sizes)) for name, size in zip("xyz", sizes, strict=False)}


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    """Cohorts with cases enough in each class for five folds."""
    records = []
    for label in ("normal", "tumour"):
        for case in range(draw(st.integers(5, 12))):
            for slide in range(draw(st.integers(1, 3))):
                records.append(SlideRecord(f"{label}{case}-{slide}", f"{label}{case}", label=label))
    return Cohort.of(draw(st.permutations(records)))


def cohort_of(*labels: str) -> Cohort:
    return Cohort.of(SlideRecord(f"s{i}", f"p{i}", label=label) for i, label in enumerate(labels))


@given(strata, shares(), seeds)
def test_every_case_is_dealt_to_one_part(cases: dict[str, tuple[str, ...]], shares: dict, seed: int) -> None:
    parts = assign_parts(cases, shares, seed)
    assert set(parts) == set(cases)
    assert set(parts.values()) <= set(shares)


@given(strata, shares(), seeds)
def test_each_part_is_within_one_case_of_its_share_of_a_stratum(cases: dict, shares: dict, seed: int) -> None:
    dealt = Counter((cases[case], part) for case, part in assign_parts(cases, shares, seed).items())
    for stratum, size in Counter(cases.values()).items():
        for part, share in shares.items():
            assert abs(dealt[stratum, part] - share * size) < 1


@given(strata, st.integers(2, 8), seeds)
def test_equal_parts_differ_by_at_most_one_case_overall_and_in_a_stratum(cases: dict, num: int, seed: int) -> None:
    parts = assign_parts(cases, {str(i): Fraction(1, num) for i in range(num)}, seed)
    for stratum in set(cases.values()):
        sizes = Counter(part for case, part in parts.items() if cases[case] == stratum)
        assert max(sizes.values()) - min(sizes[str(i)] for i in range(num)) <= 1
    sizes = Counter(parts.values())
    assert max(sizes.values()) - min(sizes[str(i)] for i in range(num)) <= 1


@given(cohorts(), seeds, st.randoms())
def test_neither_row_order_nor_the_number_of_slides_changes_a_split(cohort: Cohort, seed: int, random) -> None:
    records = random.sample(cohort.records, len(cohort))
    for split in (split_cohort, lambda cohort, seed: fold_cohort(cohort, num_folds=5, seed=seed)):
        one, other = split(cohort, seed=seed), split(Cohort.of(records), seed=seed)
        assert sorted(one.records, key=by_id) == sorted(other.records, key=by_id)
        firsts = Cohort.of(slides[0] for slides in cohort.cases().values())
        assert split(firsts, seed=seed).records == one.slides(*(r.slide_id for r in firsts.records)).records


def by_id(record: SlideRecord) -> str:
    return record.slide_id


@given(cohorts(), seeds)
def test_a_split_covers_the_cohort_and_no_case_lies_in_two_parts(cohort: Cohort, seed: int) -> None:
    split = split_cohort(cohort, val=0.25, test=0.25, seed=seed)
    parts = [set(split.part(name).cases()) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(cohort.cases())
    assert len(split.part("train", "val", "test")) == len(cohort)


@given(cohorts(), seeds)
def test_every_fold_can_train_and_no_case_lies_in_two_folds(cohort: Cohort, seed: int) -> None:
    folded = fold_cohort(cohort, num_folds=5, seed=seed)
    for k in range(5):
        rounds = folded.with_fold(k, 5)
        assert {record.label for record in rounds.part("train").records} == set(cohort.classes)
    tested = [case for k in range(5) for case in folded.with_fold(k).part("test").cases()]
    assert sorted(tested) == sorted(cohort.cases())


def test_another_seed_deals_another_split() -> None:
    cohort = cohort_of(*"ab" * 20)
    assert split_cohort(cohort, seed=0) == split_cohort(cohort, seed=0)
    assert split_cohort(cohort, seed=0) != split_cohort(cohort, seed=1)


def test_ten_cases_of_each_class_become_six_two_and_two() -> None:
    assert split_table(split_cohort(cohort_of(*"ab" * 10))) == [
        SplitCount("train", "a", 6, 6),
        SplitCount("train", "b", 6, 6),
        SplitCount("val", "a", 2, 2),
        SplitCount("val", "b", 2, 2),
        SplitCount("test", "a", 2, 2),
        SplitCount("test", "b", 2, 2),
    ]


def test_a_share_of_nothing_leaves_the_part_empty() -> None:
    split = split_cohort(cohort_of(*"ab" * 5), val=0, test=0.2)
    assert (len(split.part("train")), len(split.part("val")), len(split.part("test"))) == (8, 0, 2)


@given(cohorts(), seeds, st.data())
def test_slides_without_a_label_get_no_part_and_change_no_other(cohort: Cohort, seed: int, data) -> None:
    unlabelled = [SlideRecord(f"more{i}", data.draw(st.sampled_from(["normal0", "new"]))) for i in range(3)]
    more = Cohort.of([*cohort.records, *unlabelled])
    split, folded = split_cohort(more, seed=seed), fold_cohort(more, num_folds=5, seed=seed)
    assert split.records[:-3] == split_cohort(cohort, seed=seed).records
    assert [r.split for r in split.records[-3:]] == [None] * 3
    assert folded.records[:-3] == fold_cohort(cohort, num_folds=5, seed=seed).records
    assert [r.extra["fold"] for r in folded.records[-3:]] == [""] * 3


def test_folds_leave_the_splits_and_other_columns_as_they_are() -> None:
    record = SlideRecord("s", "p", label="a", split="test", extra={"site": "Ulm", "fold": "9"})
    cohort = Cohort.of([record, *cohort_of("a", "a", "a").records])
    folded = fold_cohort(cohort, num_folds=3).records[0]
    assert folded.split == "test"
    assert folded.extra["site"] == "Ulm"
    assert folded.extra["fold"] in ("0", "1", "2")


def test_a_table_counts_slides_and_cases_and_shows_what_is_missing() -> None:
    records = [
        SlideRecord("1", "p", label="a", split="test", extra={"fold": "10"}),
        SlideRecord("2", "p", label="a", split="test", extra={"fold": "10"}),
        SlideRecord("3", "q", label="b", split="train", extra={"fold": "2"}),
        SlideRecord("4", "r"),
    ]
    rows = [(r.part, r.label, r.num_slides, r.num_cases) for r in split_table(Cohort.of(records))]
    assert rows == [
        ("train", "a", 0, 0), ("train", "b", 1, 1), ("train", None, 0, 0),
        ("test", "a", 2, 1), ("test", "b", 0, 0), ("test", None, 0, 0),
        (None, "a", 0, 0), (None, "b", 0, 0), (None, None, 1, 1),
    ]  # fmt: skip
    assert [row.part for row in split_table(Cohort.of(records), by="fold")][::3] == ["2", "10", None]


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.2, 1.0), (float("nan"), 0.2)])
def test_shares_that_leave_nothing_to_train_on_are_refused(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match=f"^val {val} and test {test} must be shares from 0, together below 1$"):
        split_cohort(cohort_of(*"aaaa"), val=val, test=test)


def test_shares_that_do_not_add_up_are_a_bug() -> None:
    with pytest.raises(ValueError, match="shares must add up to 1"):
        assign_parts({}, {"a": Fraction(1, 2)}, seed=0)


def test_two_folds_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^2 folds are too few: one tests, one validates, the rest train; ask for 3$"
    ):
        fold_cohort(cohort_of(*"aaaa"), num_folds=2)


def test_fewer_cases_than_parts_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"^2 cases are too few for 3 parts \(train, val, test\)$"):
        split_cohort(cohort_of("a", "b"))


def test_a_part_that_no_case_falls_to_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"^4 cases leave val empty; add cases, or ask for other shares$"):
        split_cohort(cohort_of(*"aaaa"), val=0.01)


def test_a_cohort_without_a_label_is_refused() -> None:
    cohort = Cohort.of([SlideRecord(f"s{i}", "p") for i in range(3)])
    with pytest.raises(ManifestError, match=r"^no slide has a label; a split is stratified by label: fill the label"):
        split_cohort(cohort)


def test_a_case_with_slides_of_two_labels_is_refused() -> None:
    """A patient with a negative and a positive lymph node, as in CAMELYON17."""
    records = [*cohort_of(*"ab" * 6).records, SlideRecord("x", "p0", label="b"), SlideRecord("y", "p1", label="a")]
    for deal_them in (split_cohort, lambda cohort: fold_cohort(cohort, num_folds=3)):
        with pytest.raises(ManifestError) as error:
            deal_them(Cohort.of(records))
        assert str(error.value) == (
            "case 'p0' has slides with different labels: 'a' on slide s0, 'b' on slide x (2 cases are so). A label "
            "belongs to the case: give its slides one label, or leave some of them out, or give each slide a case_id "
            "of its own (a patient's slides may then lie in train and in test)"
        )


def test_a_class_with_no_case_in_train_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"^class 'b' has 1 case and none of them in train; add cases, or merge or"):
        split_cohort(cohort_of(*"aaaaaaaaaab"), val=0.6, test=0.1)


def test_a_class_too_rare_for_the_folds_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"^class 'b' has 1 case and none of them in train of fold"):
        fold_cohort(cohort_of(*"aaaaaab"), num_folds=3)
