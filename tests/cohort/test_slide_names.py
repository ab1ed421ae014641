"""Slide ids name files."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.cohort.names import same_file_key, why_unsafe

any_text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=250)


@given(any_text.filter(lambda text: why_unsafe(text) is None))
def test_a_safe_id_names_a_file_with_our_longest_ending(slide_id: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{slide_id}.attention.ome.tiff.wsi-dbps-part"
        path.touch()
        assert path.parent == Path(folder)
        assert path.exists()


@given(any_text)
def test_ids_that_differ_in_case_have_one_key(slide_id: str) -> None:
    assert same_file_key(slide_id) == same_file_key(slide_id.casefold())


@pytest.mark.parametrize(
    "slide_id", ["TCGA-A8-A07B-01Z-00-DX1.8F5C", "Präparat 7", "切片", "🔬", "a,b'c", "-1", "con7"]
)
def test_a_usual_id_is_safe(slide_id: str) -> None:
    assert why_unsafe(slide_id) is None


@pytest.mark.parametrize(
    ("slide_id", "why"),
    [
        ("a/b", "it contains '/'"),
        ("a\\b", "it contains '\\\\'"),
        ("a\0b", "it contains '\\x00'"),
        ("a\nb", "it contains '\\n'"),
        ("a:b", "it contains ':'"),
        ("..", "it starts with a dot"),
        (".a", "it starts with a dot"),
        ("a.", "it ends with a dot or a space"),
        ("Con", "Windows reserves that name"),
        ("lpt1.svs", "Windows reserves that name"),
        ("é" * 101, "it is 202 bytes long, at most 200 leave room for file endings"),
    ],
)
def test_an_unsafe_id_is_explained(slide_id: str, why: str) -> None:
    assert why_unsafe(slide_id) == why


def test_two_unicode_forms_of_one_name_have_one_key() -> None:
    assert same_file_key("Pr\u00e4p") == same_file_key("pra\u0308p")
