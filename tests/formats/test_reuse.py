"""An output is reused only if its inputs and settings are the same; otherwise the error names every difference."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.core.errors import PredictionError, SpecMismatchError
from wsi_dbps.formats.reuse import differences, is_kept, refuse_others

facts = st.dictionaries(st.sampled_from("abcde"), st.none() | st.integers(0, 2) | st.text(max_size=2))


@given(found=facts, asked=facts)
def test_nothing_differs_only_where_every_value_asked_for_is_there_and_equal(found: dict, asked: dict) -> None:
    assert (differences(found, asked) == []) == (asked.items() <= found.items())
    assert len(differences(found, asked)) == len(asked.items() - found.items())


def test_every_difference_is_named_in_the_order_in_which_it_was_asked_for() -> None:
    found = {"mpp_um": 0.5, "quality": 90, "mask": "1f", "extra": 1}
    asked = {"quality": 80, "mpp_um": 0.5, "mask": "2e", "seed": None}
    words = {"mask": "the mask was another one than m.png"}
    assert differences(found, asked, words=words) == [
        "quality is 90 in it, 80 asked",
        "the mask was another one than m.png",
        "seed is not named in it, None asked",
    ]
    assert differences({"a": 1}, {"a": 2}, sentence="{name} was {before}, now {now}") == ["a was 1, now 2"]


def test_an_output_made_otherwise_is_refused_in_one_line_or_overwritten() -> None:
    path, found = Path("caches/a.h5"), {"quality": 90, "icc": "keep"}
    assert is_kept(path, found, {"quality": 90}, "pass --overwrite")
    assert not is_kept(path, found, {"quality": 90}, "pass --overwrite", overwrite=True)
    assert not is_kept(path, found, {"quality": 80}, "pass --overwrite", overwrite=True)
    with pytest.raises(SpecMismatchError) as caught:
        is_kept(path, found, {"quality": 80, "icc": "srgb"}, "pass --overwrite")
    assert str(caught.value) == (
        "caches/a.h5 was made otherwise: quality is 90 in it, 80 asked; icc is 'keep' in it, 'srgb' asked; "
        "pass --overwrite"
    )


def test_the_error_is_of_the_class_asked_for() -> None:
    refuse_others("a.h5", [], "predict again", raised=PredictionError)
    with pytest.raises(PredictionError, match=r"^a\.h5: comes from another cache; predict again$"):
        refuse_others("a.h5", ["comes from another cache"], "predict again", raised=PredictionError)
