"""Cross-validation trains each fold once, whatever stops it."""

import csv
import dataclasses
import shlex
import signal
import sys

import pytest

from wsi_dbps.cohort.cohort import Cohort
from wsi_dbps.cohort.manifest import write_manifest
from wsi_dbps.core.errors import ManifestError, StoppedError
from wsi_dbps.training import folds as folds_module
from wsi_dbps.training import loop as loop_module
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.folds import train_folds

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")


@pytest.fixture
def folded(cohort: Cohort) -> Cohort:
    return Cohort.of(
        dataclasses.replace(record, extra={"fold": str(i // 2 % 3)}) for i, record in enumerate(cohort.records)
    )


def test_every_fold_is_trained_and_listed_and_nothing_is_done_twice(
    folded, caches, tmp_path, make_config, monkeypatch
) -> None:
    config = make_config(training={"epochs": 1})
    whole, calls = folds_module.train, iter(range(100))

    def stop(*arguments: object, **named: object) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return whole(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(folds_module, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        train_folds(folded, caches, tmp_path / "out", config)
    monkeypatch.setattr(folds_module, "train", whole)
    before = load_checkpoint(tmp_path / "out" / "fold0" / "last.pt").fingerprint()
    results = train_folds(folded, caches, tmp_path / "out", config)
    assert load_checkpoint(tmp_path / "out" / "fold0" / "last.pt").fingerprint() == before
    with open(tmp_path / "out" / "folds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["fold"] for row in rows] == ["0", "1", "2"]
    assert [float(row["val_loss"]) for row in rows] == [result.best["val_loss"] for result in results]
    for fold in range(3):
        with open(tmp_path / "out" / f"fold{fold}" / "cohort.csv", newline="") as file:
            used = {row["slide_id"] for row in csv.DictReader(file)}
        assert used == {r.slide_id for r in folded.records if r.extra["fold"] != str(fold)}


def test_sigterm_between_two_folds_ends_the_run(folded, caches, tmp_path, make_config, monkeypatch) -> None:
    whole = loop_module.write_history

    def last_moment(*arguments: object) -> None:
        whole(*arguments)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)  # after the fold's last look at whether to stop

    monkeypatch.setattr(loop_module, "write_history", last_moment)
    with pytest.raises(StoppedError, match=r"ended by SIGTERM between two folds; 1 of 3 are done$") as error:
        train_folds(folded, caches, tmp_path / "out", make_config(training={"epochs": 1}))
    assert error.value.exit_code == 143
    assert (tmp_path / "out" / "folds.csv").exists()


def test_a_manifest_without_folds_is_refused(cohort, caches, tmp_path, make_config) -> None:
    with pytest.raises(ManifestError, match="the manifest has no fold column, or an empty one"):
        train_folds(cohort, caches, tmp_path / "out", make_config())


def test_two_processes_train_every_fold_as_one_does(folded, caches, tmp_path, make_config, start) -> None:
    config = make_config(training={"epochs": 1})
    train_folds(folded, caches, tmp_path / "one", config)
    write_manifest(tmp_path / "cohort.csv", folded)
    two = start(tmp_path / "two", config, "--folds", "all", cohort=tmp_path / "cohort.csv", processes=2)
    assert [process.wait() for process in two] == [0, 0], two[0].said() + two[1].said()
    found = [list(csv.DictReader((tmp_path / name / "folds.csv").read_text().splitlines())) for name in ("one", "two")]
    for one, other in zip(*found, strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=1e-5)


def test_folds_that_are_stopped_name_the_command_that_goes_on(
    folded, tmp_path, make_config, start, run_together
) -> None:
    write_manifest(tmp_path / "cohort.csv", folded)
    config = make_config(training={"epochs": 8, "save_every_minutes": 0.0})
    (process,) = start(tmp_path / "out", config, "--folds", "all", cohort=tmp_path / "cohort.csv")
    process.until((tmp_path / "out" / "fold1" / "last.pt").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, process.said()
    command = process.said().splitlines()[-1].partition("go on with: wsi-dbps ")[2]
    assert command.endswith("--folds all")
    for arguments in (shlex.split(command), [*shlex.split(command), "--resume"]):  # either goes on
        (again,) = run_together([sys.executable, "-m", "wsi_dbps_cli.main", *arguments], 1)
        assert again.wait() == 0, again.said()
        assert len((tmp_path / "out" / "folds.csv").read_text().splitlines()) == 4
