"""`train` takes settings in every form, and returns what is in its run folder."""

import csv
import os
from pathlib import Path

import pytest

import wsi_dbps as wd
from wsi_dbps.training.given_settings import run_tables

DOTTED = {
    "encoder.name": "small_gn",
    "encoder.dim": 8,
    "selection.num_salient": 2,
    "selection.num_subsalient": 2,
    "selection.num_kept": 4,
    "aggregator.num_heads": 2,
    "training.epochs": 1,
    "training.device": "cpu",
    "training.decode_threads": 1,
}


def test_settings_are_the_same_as_tables_as_keys_with_a_dot_and_as_a_file(tmp_path: Path) -> None:
    tables = {"encoder": {"name": "small_gn", "dim": 8}, "training": {"epochs": 1}}
    (tmp_path / "run.toml").write_text('[encoder]\nname = "small_gn"\ndim = 8\n[training]\nepochs = 1\n')
    dotted = {"encoder.name": "small_gn", "encoder.dim": 8, "training": {"epochs": 1}}
    changes = ("encoder.name=small_gn", "encoder.dim=8", "training.epochs=1")
    found = [
        run_tables(None, tables, (), None),
        run_tables(None, dotted, (), None),
        run_tables(None, str(tmp_path / "run.toml"), (), None),
        run_tables(tmp_path / "run.toml", None, (), None),
        run_tables(None, None, changes, None),
    ]
    assert all(each == tables for each, _ in found)
    file = str(tmp_path / "run.toml")
    assert [source for _, source in found] == ["settings", "settings", file, file, "--set"]


def test_later_settings_replace_earlier_ones_and_leave_the_caller_s_alone(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[training]\nepochs = 1\nseed = 1\nbatch_slides = 1\n")
    mine = {"training": {"seed": 2, "batch_slides": 2}, "encoder.weights": tmp_path / "w.pth"}
    tables, source = run_tables(tmp_path / "run.toml", mine, ["training.batch_slides=3"], "cuda:1")
    assert tables == {
        "training": {"epochs": 1, "seed": 2, "batch_slides": 3, "device": "cuda:1"},
        "encoder": {"weights": str(tmp_path / "w.pth")},
    }
    assert source == f"{tmp_path / 'run.toml'} with settings with --set with --device"
    assert mine["training"] == {"seed": 2, "batch_slides": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder.nam": "x"}, r"settings: unknown setting \[encoder\] nam; known: name, "),
        ({"encoder": 3}, "settings: encoder: "),
        ({"training.epochs": "many"}, r"settings: \[training\] epochs: .*found 'many'"),
        ("no.toml", "no.toml: no such settings file"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_read(settings, message, tmp_path: Path) -> None:
    with pytest.raises(wd.ConfigError, match=message) as refused:
        wd.train("no.csv", "no caches", tmp_path / "run", settings)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_the_result_of_a_run_holds_its_folder_checkpoint_and_history(small_cohort, tmp_path: Path) -> None:
    run = wd.train(*small_cohort, tmp_path / "run", DOTTED)
    assert (run.run, run.checkpoint, os.fspath(run)) == (tmp_path / "run", tmp_path / "run/best.pt", f"{tmp_path}/run")
    with open(tmp_path / "run" / "history.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert [str(run.history[0][name]) for name in row] == list(row.values())
    assert run.best == run.history[0]
    assert run.summary.startswith("best epoch 1 of 1: val AUROC ")
    longer = wd.train(*small_cohort, run, {"training.epochs": 2}, resume=True)
    assert [row["epoch"] for row in longer.history] == [1, 2]


def test_the_result_of_all_folds_has_one_for_each(small_cohort, tmp_path: Path) -> None:
    cohort = wd.split(small_cohort[0], tmp_path / "folds.csv", folds=3).cohort
    result = wd.train(cohort, small_cohort[1], tmp_path / "runs", DOTTED, folds="all")
    assert [each.checkpoint.parent.name for each in result.trained] == ["fold0", "fold1", "fold2"]
    assert len(result.summary.splitlines()) == 3
    with pytest.raises(wd.ConfigError, match=r"holds 3 folds; ask for one of them: result.trained\[0\]"):
        _ = result.best


def test_what_is_said_of_a_run_goes_to_who_asked_for_it(small_cohort, tmp_path: Path, capsys) -> None:
    lines: list[str] = []
    wd.train(*small_cohort, tmp_path / "run", DOTTED, say=lines.append)
    assert [line for line in lines if line.startswith("epoch 1 of 1: train loss ")]
    assert "epoch 1 of 1" not in capsys.readouterr().err
