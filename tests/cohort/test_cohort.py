"""The cohort: one split per case, classes in order, splits from folds."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.cohort.cohort import Cohort, SlideRecord, ordered_classes
from wsi_dbps.core.errors import ConfigError, ManifestError

labels = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6))
numbers = st.lists(st.integers(-1000, 1000))


def folded(*folds: str) -> Cohort:
    return Cohort.of(SlideRecord(f"s{i}", f"p{i}", label="a", extra={"fold": fold}) for i, fold in enumerate(folds))


@given(labels)
def test_classes_are_each_label_once_whatever_the_order(labels: list[str]) -> None:
    assert set(ordered_classes(labels)) == set(labels)
    assert len(ordered_classes(labels)) == len(set(labels))
    assert ordered_classes(labels) == ordered_classes(labels[::-1])


@given(numbers)
def test_classes_that_are_numbers_are_in_order_of_value(numbers: list[int]) -> None:
    assert ordered_classes(str(number) for number in numbers) == tuple(str(n) for n in sorted(set(numbers)))


@given(numbers.map(lambda values: [abs(value) for value in values]), st.sampled_from(["grade ", "T", ""]))
def test_classes_that_end_in_numbers_are_in_order_of_the_number(numbers: list[int], word: str) -> None:
    assert ordered_classes(f"{word}{n}" for n in numbers) == tuple(f"{word}{n}" for n in sorted(set(numbers)))


def test_words_that_hold_no_number_are_sorted_as_text() -> None:
    assert ordered_classes(["tumour", "nan", "normal", "inf"]) == ("inf", "nan", "normal", "tumour")


@given(st.integers(3, 8), st.integers(0, 100))
def test_each_fold_tests_once_and_validates_once(num_folds: int, shift: int) -> None:
    cohort = folded(*(str((i + shift) % num_folds) for i in range(2 * num_folds)))
    rounds = [cohort.with_fold(k) for k in range(num_folds)]
    for slide in range(len(cohort)):
        splits = [cohort.records[slide].split for cohort in rounds]
        assert (splits.count("test"), splits.count("val")) == (1, 1)
        assert splits.count("train") == num_folds - 2


def test_with_fold_2_of_3_tests_on_2_and_validates_on_0() -> None:
    cohort = folded("0", "1", "2", "").with_fold(2, 3)
    assert [record.split for record in cohort.records] == ["val", "train", "test", None]


def test_a_part_keeps_the_classes_of_the_whole() -> None:
    cohort = Cohort.of([SlideRecord("s1", "p1", label="b", split="test"), SlideRecord("s2", "p2", label="a")])
    assert cohort.part("test") == Cohort((cohort.records[0],), ("a", "b"))
    assert len(cohort.part("train", "val")) == 0


def test_a_case_may_be_partly_unused() -> None:
    assert len(Cohort.of([SlideRecord("s1", "p", split="train"), SlideRecord("s2", "p")]).part("train")) == 1


def test_cases_gather_their_slides() -> None:
    a, b, c = SlideRecord("a", "p"), SlideRecord("b", "q"), SlideRecord("c", "p")
    assert Cohort.of([a, b, c]).cases() == {"p": (a, c), "q": (b,)}


def test_slides_are_picked_in_manifest_order() -> None:
    cohort = folded("0", "1", "2")
    assert cohort.slides("s2", "s0").records == (cohort.records[0], cohort.records[2])


def test_a_cohort_travels_to_a_worker_process() -> None:
    assert pickle.loads(pickle.dumps(folded("0", "1"))) == folded("0", "1")


def test_a_case_in_two_splits_is_refused() -> None:
    with pytest.raises(
        ManifestError, match=r"^case 'p' lies in split 'train' and, with slide 's2', in split 'test'; a c"
    ):
        Cohort.of([SlideRecord("s1", "p", split="train"), SlideRecord("s2", "p", split="test")])


def test_an_id_twice_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"^slide_id 's' appears twice"):
        Cohort.of([SlideRecord("s", "p"), SlideRecord("s", "q")])


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"^slide 's': label 'c' is no class; known: a, b$"):
        Cohort((SlideRecord("s", "p", label="c"),), ("a", "b"))


def test_an_unknown_slide_is_named() -> None:
    with pytest.raises(ManifestError, match=r"^not in the cohort: y, z$"):
        folded("0").slides("s0", "z", "y")


def test_an_unknown_split_is_a_bug() -> None:
    with pytest.raises(ValueError, match="unknown splits"):
        folded("0").part("validation")


@pytest.mark.parametrize(
    ("folds", "num_folds", "message"),
    [
        (["", ""], None, "no fold column, or an empty one; make one with: wsi-dbps split --folds K"),
        (["0", "1"], None, "the fold column must hold at least 3 folds, from 0, found 0, 1"),
        (["0", "2", "3"], None, "the fold column must hold 0 to 3, found 0, 2, 3"),
        (["0", "1", "2"], 5, "the fold column must hold 0 to 4, found 0, 1, 2"),
        (["0", "x", "-1"], None, "fold 'x' of slide 's1' is not a whole number from 0, nor of 1 more slides"),
    ],
)
def test_a_fold_column_that_cannot_be_used_is_refused(folds: list[str], num_folds: int | None, message: str) -> None:
    with pytest.raises(ManifestError) as error:
        folded(*folds).with_fold(0, num_folds)
    assert message in str(error.value)


def test_a_case_in_two_folds_is_refused() -> None:
    records = [SlideRecord(f"s{i}", "p", extra={"fold": str(i)}) for i in range(3)]
    with pytest.raises(ManifestError, match=r"^case 'p' lies in fold '0' and, with slide 's1', in fold '1'"):
        Cohort.of(records).with_fold(0)


def test_a_fold_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^fold 3 is not in the cohort; known: 0 to 2$"):
        folded("0", "1", "2").with_fold(3)
