"""The file of a selection record."""

import numpy as np
import pytest

from wsi_dbps.core.errors import CheckpointError
from wsi_dbps.formats.selection_record import VisitRecord, read_selection_record, record_path, write_selection_record
from wsi_dbps.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")


def test_a_visit_round_trips_and_equal_visits_are_equal_bytes(tmp_path) -> None:
    visits = [
        VisitRecord(
            "b", 1, True, np.array([True] * 11), np.array([4]), np.array([], int), np.empty((1, 0), np.float32)
        ),
        VisitRecord("a", 0, False, np.arange(9) % 2 == 0, np.array([8, 0]), np.array([2]), np.ones((3, 2), np.float32)),
    ]
    for name in ("one.npz", "two.npz"):
        write_selection_record(tmp_path / name, 7, visits)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    first, second = read_selection_record(tmp_path / "one.npz")
    assert (first.slide_id, first.place, first.explored) == ("a", 0, False)
    assert first.kept_N.tolist() == (np.arange(9) % 2 == 0).tolist()
    assert (first.salient_M.tolist(), first.recycled_S.tolist()) == ([8, 0], [2])
    assert first.logits_KR.tolist() == [[1, 1]] * 3
    assert (len(second.kept_N), second.recycled_S.tolist()) == (11, [])
    assert np.isnan(second.logits_KR).all()


def test_without_it_no_file_is_written(cohort, caches, tmp_path, make_config) -> None:
    train(cohort, caches, tmp_path / "run", make_config(training={"epochs": 1, "record": False}))
    with pytest.raises(CheckpointError, match=r"epoch_0001.npz: no such selection record; train with training.record"):
        read_selection_record(record_path(tmp_path / "run", 1))


def test_a_damaged_or_foreign_record_is_named(tmp_path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    with pytest.raises(CheckpointError, match=r"a.npz: not a readable selection record"):
        read_selection_record(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", format="other", format_version=1)
    with pytest.raises(
        CheckpointError, match=r"b.npz: is 'other' version 1, not 'wsi-dbps selection record' version 1"
    ):
        read_selection_record(tmp_path / "b.npz")
    with (tmp_path / "c.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(CheckpointError, match=r"c.npz: not a readable selection record"):
        read_selection_record(tmp_path / "c.npz")


@pytest.mark.parametrize("row", [-1, 4])
def test_a_patch_that_the_slide_has_not_is_named(tmp_path, row) -> None:
    visit = VisitRecord("s", 0, False, np.ones(4, bool), np.array([0, row]), np.array([1]), np.zeros((3, 1)))
    write_selection_record(tmp_path / "a.npz", 1, [visit])
    with pytest.raises(CheckpointError, match=r"a.npz: .*: s has 4 patches, and others are chosen"):
        read_selection_record(tmp_path / "a.npz")
