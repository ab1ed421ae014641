"""How the buffers moved: churn, overlap, entropy, first and last choice."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.core.errors import CheckpointError
from wsi_dbps.explain.selection_atlas import CURVES, atlas_csv, course, entropy, quartiles, read_courses
from wsi_dbps.formats.selection_record import VisitRecord, record_path, write_selection_record

NUM = 12


def visit(salient, recycled=(), logits=None, *, num=NUM, slide_id="a", place=0) -> VisitRecord:
    ids = [np.array(list(some), np.int64) for some in (salient, recycled)]
    logits = np.zeros((sum(map(len, ids)), 0)) if logits is None else np.array(logits)
    return VisitRecord(slide_id, place, False, np.ones(num, bool), *ids, logits.astype(np.float32))


visits = st.lists(st.sets(st.integers(0, NUM - 1), min_size=1), min_size=1, max_size=8)


@given(visits)
def test_first_comes_before_last_and_counts_sum(chosen) -> None:
    of = course("a", [(epoch, visit(ids)) for epoch, ids in enumerate(chosen, start=1)])
    ever = np.isin(np.arange(NUM), sorted(set().union(*chosen)))
    assert (of.times_N > 0).tolist() == (of.first_N > 0).tolist() == (of.last_N > 0).tolist() == ever.tolist()
    assert (of.first_N <= of.last_N).all()
    assert (of.times_N <= of.last_N - of.first_N + 1).all()
    assert of.times_N.sum() == sum(map(len, chosen))
    assert np.isnan(of.churn[0])
    assert ((of.churn[1:] >= 0) & (of.churn[1:] <= 1)).all()
    assert ((1 - of.churn[1:] == 0) == (of.jaccard[1:] == 0)).all()


@given(st.sets(st.integers(0, NUM - 1), min_size=1, max_size=NUM - 1))
def test_churn_is_0_when_buffers_repeat_and_1_when_they_share_nothing(ids) -> None:
    others = set(range(NUM)) - ids
    of = course("a", [(1, visit(ids, others)), (2, visit(ids, others)), (3, visit(others, ids))])
    assert of.churn[1:].tolist() == of.recycled_churn[1:].tolist() == [0, 1]
    assert of.jaccard[1:].tolist() == [1, 0]


@given(st.integers(2, 20), st.integers(1, 4), st.floats(-50, 50))
def test_equal_logits_have_entropy_1_whatever_their_level(num: int, heads: int, level: float) -> None:
    assert entropy(np.full((num, heads), level)) == pytest.approx(1)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=20))
def test_entropy_is_a_share(logits) -> None:
    assert 0 <= entropy(np.array(logits)[:, None]) <= 1 + 1e-12


def test_numbers_by_hand() -> None:
    logits = [[0.0], [np.log(3)]]
    of = course("a", [(1, visit([0, 1, 2, 3], [4])), (3, visit([3, 0, 5, 6], [4, 1])), (4, visit([7], [8], logits))])
    assert of.churn[1:].tolist() == [0.5, 1]
    assert of.jaccard[1:].tolist() == pytest.approx([2 / 6, 0])
    assert of.recycled_churn[1:].tolist() == [0.5, 1]
    assert (of.first_N[:8].tolist(), of.last_N[:8].tolist()) == ([1, 1, 1, 1, 0, 3, 3, 4], [3, 1, 1, 3, 0, 3, 3, 4])
    assert of.times_N[:8].tolist() == [2, 1, 1, 2, 0, 1, 1, 1]
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(2)
    assert np.isnan(of.entropy[:2]).all()
    assert of.entropy[2] == pytest.approx(quarter)
    assert np.isnan(entropy(np.zeros((1, 1))))


def test_quartiles_are_over_slides_and_absent_where_no_slide_has_any() -> None:
    slides = [
        course(name, [(1, visit([0, 1])), (2, visit(then))])
        for name, then in zip("abc", ([0, 1], [0, 2], [2, 3]), strict=True)
    ]
    slides[0] = replace(slides[0], explored_V=np.array([True, False]))
    first, second = quartiles(slides)
    assert first == {"epoch": 1, "num_slides": 3, "explored": pytest.approx(1 / 3)}
    assert second["churn"] == {"q1": 0.25, "median": 0.5, "q3": 0.75}
    assert "entropy" not in second
    table = list(csv.DictReader(io.StringIO(atlas_csv(slides))))
    assert [row["churn"] for row in table] == ["", "0", "", "0.5", "", "1"]
    assert list(table[0]) == ["slide_id", "epoch", "explored", *CURVES]


def test_a_run_without_record_and_one_of_mixed_records_are_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"run: no selection record; train with training.record = true"):
        read_courses(tmp_path / "run")
    for epoch, num in ((1, 12), (2, 13)):
        write_selection_record(record_path(tmp_path, epoch), epoch, [visit([0], num=num)])
    with pytest.raises(CheckpointError, match=r"a has another number of patches in some epochs"):
        read_courses(tmp_path)


def test_epochs_are_those_of_the_files(tmp_path) -> None:
    for epoch in (1, 2, 10):
        write_selection_record(record_path(tmp_path, epoch), epoch, [visit([epoch]), visit([0], slide_id="b", place=1)])
    a, b = read_courses(tmp_path)
    assert (a.slide_id, b.slide_id) == ("a", "b")
    assert a.epochs_V.tolist() == [1, 2, 10]
    assert a.first_N.tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 10, 0]
