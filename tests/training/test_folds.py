"""Cross-validation trains each fold once, whatever stops it."""

import csv
import shlex
import signal

import pytest

from wsi_dbps.cohort.manifest import write_manifest
from wsi_dbps.core.errors import ManifestError, StoppedError
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.folds import train_folds

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")


def test_every_fold_is_trained_and_listed_and_nothing_is_done_twice(folded, caches, tmp_path, make_config) -> None:
    config = make_config(training={"epochs": 1})

    def end(line: str) -> None:
        if line.startswith("fold 1, 2 of 3: "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_folds(folded, caches, tmp_path / "out", config, say=end)
    before = load_checkpoint(tmp_path / "out" / "fold0" / "last.pt").fingerprint()
    results = train_folds(folded, caches, tmp_path / "out", config)
    assert load_checkpoint(tmp_path / "out" / "fold0" / "last.pt").fingerprint() == before
    with open(tmp_path / "out" / "folds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["fold"] for row in rows] == ["0", "1", "2"]
    assert [float(row["val_loss"]) for row in rows] == [result.best["val_loss"] for result in results]
    assert [float(row["val_auroc"]) for row in rows] == [result.best["val_auroc"] for result in results]
    for fold in range(3):
        with open(tmp_path / "out" / f"fold{fold}" / "cohort.csv", newline="") as file:
            used = {row["slide_id"] for row in csv.DictReader(file)}
        assert used == {r.slide_id for r in folded.records if r.extra["fold"] != str(fold)}


def test_sigterm_between_two_folds_ends_the_run(folded, caches, tmp_path, make_config) -> None:
    def last_moment(line: str) -> None:
        if line.startswith("epoch 1 of 1: "):
            signal.raise_signal(signal.SIGTERM)  # after the fold's last look at whether to stop

    with pytest.raises(StoppedError, match=r"ended by SIGTERM between two folds; 1 of 3 are done$") as error:
        train_folds(folded, caches, tmp_path / "out", make_config(training={"epochs": 1}), say=last_moment)
    assert error.value.exit_code == 143
    assert (tmp_path / "out" / "folds.csv").exists()


def test_a_manifest_without_folds_is_refused(cohort, caches, tmp_path, make_config) -> None:
    with pytest.raises(ManifestError, match="the manifest has no fold column, or an empty one"):
        train_folds(cohort, caches, tmp_path / "out", make_config())


@pytest.mark.slow
def test_folds_that_are_stopped_name_the_command_that_goes_on(folded, tmp_path, make_config, start, wsi_dbps) -> None:
    write_manifest(tmp_path / "cohort.csv", folded)
    config = make_config(training={"epochs": 4, "save_every_minutes": 0.0})
    (process,) = start(tmp_path / "out", config, "--folds", "all", cohort=tmp_path / "cohort.csv")
    process.until((tmp_path / "out" / "fold1" / "last.pt").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, process.said()
    command = process.said().splitlines()[-1].partition("go on with: wsi-dbps ")[2]
    assert command.endswith("--folds all")
    for arguments in (shlex.split(command), [*shlex.split(command), "--resume"]):  # either goes on
        again = wsi_dbps(*arguments)
        assert again.code == 0, again.err
        assert len((tmp_path / "out" / "folds.csv").read_text().splitlines()) == 4
