"""predictions.csv, as written and as edited by hand."""

import csv
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.formats.predictions import Prediction, Predictions, read_predictions

TABLE = Predictions(
    ("normal", "tumor"),
    (
        Prediction("s1", "c1", "test", "tumor", 10, (0.2, 0.8)),
        Prediction("s2", "c1", "test", None, 20, (0.4, 0.6)),
        Prediction("s3", "c2", "test", "normal", 30, (0.9, 0.1)),
    ),
    (
        Prediction(None, "c1", "test", "tumor", 30, (0.3, 0.7)),
        Prediction(None, "c2", "test", "normal", 30, (0.9, 0.1)),
    ),
)


@pytest.fixture
def edited(tmp_path):
    """The table after `change(lines)`, read again; line 1 is the header."""

    def read(change):
        path = tmp_path / "predictions.csv"
        TABLE.write_csv(path)
        with path.open(newline="") as file:
            lines = list(csv.reader(file))
        change(lines)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(lines)
        return read_predictions(path)

    return read


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_what_was_written_is_read_to_the_last_digit(tmp_path_factory, ps):
    slides = tuple(Prediction(f"s{i}", "c", None, None, 1, (1 - p, p)) for i, p in enumerate(ps))
    mean = sum(ps) / len(ps)
    table = Predictions(("a", "b"), slides, (Prediction(None, "c", None, None, len(ps), (1 - mean, mean)),))
    path = tmp_path_factory.mktemp("table") / "predictions.csv"
    table.write_csv(path)
    assert read_predictions(path) == table


def test_a_table_rounded_to_three_digits_is_taken(edited):
    assert edited(lambda lines: lines[4].__setitem__(slice(7, 9), ["0.3004", "0.6996"])).cases[0].case_id == "c1"


def cell(line, column, value):
    return lambda lines: lines[line - 1].__setitem__(lines[0].index(column), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.insert(2, lines[1]), "line 3: slide s1 appears a second time; keep one of its rows"),
        (lambda lines: lines.append(lines[5]), "line 7: case c2 appears a second time; keep one of its rows"),
        (lambda lines: lines.pop(4), "line 2: slide s1 is of case c1, which has no row; predict again"),
        (lambda lines: lines.pop(3), "line 5: case c2 has no slide in the table; predict again"),
        (cell(2, "slide_id", ""), "line 2: a slide has a slide_id and a case_id, a case has a case_id only"),
        (cell(5, "slide_id", "s1"), "line 5: a slide has a slide_id and a case_id, a case has a case_id only"),
        (cell(6, "case_id", ""), "line 6: a slide has a slide_id and a case_id, a case has a case_id only"),
        (cell(5, "label", "normal"), "line 5: case c1 has label normal, its slides have tumor; make them the same"),
        (cell(5, "label", ""), "line 5: case c1 has label none, its slides have tumor; make them the same"),
        (
            cell(3, "label", "normal"),
            "line 5: case c1 has label tumor, its slides have normal, tumor; make them the same",
        ),
        (cell(6, "split", "val"), "line 6: case c2 has split val, its slides have test; make them the same"),
        (
            lambda lines: lines[1].__setitem__(slice(5, 9), ["normal", "10", "0.6", "0.4"]),
            "line 5: case c1 has probabilities 0.3, 0.7, the mean of its slides is 0.5, 0.5; ",
        ),
        (cell(2, "prob_tumor", "nan"), "line 2: probabilities (0.2, nan) are not shares of 1"),
        (cell(2, "prob_tumor", "much"), "line 2: not a number: could not convert string to float: 'much'"),
        (cell(2, "label", "benign"), "line 2: label 'benign' is not one of the classes normal, tumor"),
        (cell(2, "level", "patch"), "line 2: level is 'patch'; it is slide or case"),
        (lambda lines: lines.__setitem__(5, lines[5][:2]), "line 6: has another number of cells than the 9 column"),
        (lambda lines: lines[2].append("new"), "line 3: has another number of cells than the 9 column names"),
        (cell(2, "predicted", "normal"), "line 2: predicted is 'normal', though 'tumor' is the most probable; correct"),
        (cell(2, "predicted", "benign"), "line 2: predicted is 'benign', though 'tumor' is the most probable; correct"),
        (cell(2, "num_patches", "-1"), "line 2: num_patches is -1"),
        (cell(2, "split", "tset"), "line 2: split 'tset' is none of train, val, test; correct it"),
        (cell(2, "case_id", "c" * 200_000), "line 2: not CSV: field larger than field limit"),
    ],
)
def test_an_edited_table_is_refused_in_one_line_that_says_where(edited, change, message):
    with pytest.raises(PredictionError) as refused:
        edited(change)
    said = str(refused.value)
    assert said.partition("predictions.csv, ")[2].startswith(message)
    assert "\n" not in said


def test_columns_of_one_name_are_refused(edited):
    with pytest.raises(PredictionError, match=r"predictions.csv: the column prob_tumor appears twice; keep one"):
        edited(cell(1, "prob_normal", "prob_tumor"))


def test_swapped_classes_do_not_pass(edited):
    with pytest.raises(PredictionError, match="line 2: predicted is 'tumor', though 'normal' is the most probable"):
        edited(lambda lines: lines[0].__setitem__(slice(7, 9), lines[0][8:6:-1]))


def test_what_is_no_folder_or_no_file_is_named(tmp_path):
    (tmp_path / "predictions.csv").mkdir()
    with pytest.raises(PredictionError, match=r"predictions.csv: cannot be read: Is a directory"):
        read_predictions(tmp_path / "predictions.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(PredictionError, match=r"file: is a file; give the folder that `wsi-dbps predict` wrote"):
        read_predictions(tmp_path / "file" / "predictions.csv")


def test_the_order_of_the_rows_is_free(edited):
    found = edited(lambda lines: lines.__setitem__(slice(1, 6), lines[5:0:-1]))
    assert replace(found, slides=found.slides[::-1], cases=found.cases[::-1]) == TABLE
