"""Labels that cannot be classes are refused where cohorts are split and trained on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.cohort.labels import check_classes, mixed_cases
from wsi_dbps.core.errors import ManifestError


def slides(*labels: str | None) -> list[SlideRecord]:
    return [SlideRecord(f"s{i}", f"p{i}", label=label) for i, label in enumerate(labels)]


@given(st.integers(2, 40), st.integers(2, 3))
def test_words_of_which_each_has_slides_are_classes(num_classes: int, num_slides: int) -> None:
    check_classes(slides(*[f"grade {i}" for i in range(num_classes)] * num_slides))


@given(st.integers(1, 10))
def test_a_few_numbers_are_grades(num_classes: int) -> None:
    check_classes(slides(*map(str, range(num_classes))))


@given(st.sets(st.floats(0, 100).map(str), min_size=11))
def test_many_numbers_are_measurements(labels: set[str]) -> None:
    with pytest.raises(ManifestError, match=rf"^the labels are {len(labels)} different numbers, as of a measurement"):
        check_classes(slides(*labels, *labels))
    check_classes(slides(*labels), named=labels)


@pytest.mark.parametrize(
    ("one", "other"),
    [("metastasis", "Metastasis"), ("grade 1", "grade1"), ("Grün", "GRU\u0308N"), ("1", "1.0"), ("café", "cafe")],
)
def test_two_spellings_of_a_class_are_named_with_their_counts(one: str, other: str) -> None:
    with pytest.raises(ManifestError) as error:
        check_classes(slides(one, one, other, "normal", None))
    assert str(error.value) == (
        f"the labels {one!r} (2 slides) and {other!r} (1 slide) differ in spelling only and would be two classes; "
        "write them alike, or name both in training.classes"
    )
    check_classes(slides(one, other), named=(one, other))


@pytest.mark.parametrize(("one", "other"), [("1", "-1"), ("ER+", "ER-"), ("grade1", "grade2"), ("a", "ab")])
def test_labels_that_mean_something_else_are_two_classes(one: str, other: str) -> None:
    check_classes(slides(one, other))


def test_a_column_of_ids_is_no_column_of_labels() -> None:
    with pytest.raises(ManifestError, match=r"^12 of 13 labels, the first 'id0', are those of a single slide, as in a"):
        check_classes(slides(*[f"id{i}" for i in range(12)], "x", "x"))


def test_a_case_is_mixed_by_its_labels_and_not_by_slides_without() -> None:
    records = [SlideRecord("a", "p", label="x"), SlideRecord("b", "p"), SlideRecord("c", "q", label="x")]
    assert mixed_cases(records) == {}
    assert mixed_cases([*records, SlideRecord("d", "p", label="y")]) == {"p": {"x": "a", "y": "d"}}
    with pytest.raises(ManifestError, match=r"^case 'p' has slides with different labels: 'x' on slide a, 'y' on sl"):
        check_classes([*records, SlideRecord("d", "p", label="y")])
