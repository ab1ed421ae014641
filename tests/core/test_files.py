import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.core.digests import digest, file_digest
from wsi_dbps.core.errors import OutputError
from wsi_dbps.core.files import write_json, write_text, written_whole
from wsi_dbps.core.ownership import RECORD

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), plain))
def test_a_digest_knows_no_order_of_keys(value: dict) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


@settings(deadline=None)
@given(plain, plain)
def test_two_values_share_a_digest_only_if_they_are_one(a: object, b: object) -> None:
    assert (digest(a) == digest(b)) == (repr(a) == repr(b) or digest([a]) == digest([b]))


def test_a_digest_by_hand() -> None:
    text = rb'{"a":1,"b":[0.5,"\u00b5"]}'
    assert digest({"b": [0.5, "µ"], "a": 1}) == hashlib.blake2b(text, digest_size=8).hexdigest() == "15c3a41bac9cd603"


def test_a_file_appears_whole_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "µ\n")
    assert path.read_bytes() == "µ\n".encode()
    assert sorted(os.listdir(path.parent)) == [RECORD, "a.txt"]
    assert file_digest(path) != file_digest(Path(__file__))


def test_what_fails_midway_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), written_whole(path) as partial:
        partial.write_text("half" * (1 // 0))
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [RECORD, "a.txt"]


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.txt.wsi-dbps-part").write_text("what a killed run left, longer than the new text")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == [RECORD, "a.txt"]


def test_nan_is_refused_because_it_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_named_with_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    (tmp_path / "a.txt.wsi-dbps-part").symlink_to("/dev/full")
    with pytest.raises(OutputError) as caught:
        write_text(path, "new")
    assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [RECORD, "a.txt"]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    path = tmp_path / "out" / "a.txt"
    with pytest.raises(OutputError, match=f"^{path}: cannot be written: (File exists|Not a directory)$"):
        write_text(path, "new")


def test_a_file_that_is_a_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.mkdir()
    with pytest.raises(OutputError, match=f"^{path}: exists and was not written by wsi-dbps"):
        write_text(path, "new")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_name_beyond_what_the_system_takes_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written: File name too long$"):
        write_text(tmp_path / ("a" * 300), "new")
