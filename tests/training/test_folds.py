"""Cross-validation trains each fold once, whatever stops it."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from wsi_dbps.cohort.cohort import Cohort
from wsi_dbps.cohort.manifest import write_manifest
from wsi_dbps.config import to_toml
from wsi_dbps.errors import ManifestError, StoppedError
from wsi_dbps.training import folds as folds_module
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
    whole = folds_module.train

    def last_moment(*arguments: object, **named: object) -> object:
        result = whole(*arguments, **named)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(folds_module, "train", last_moment)
    with pytest.raises(StoppedError, match="1 of 3 folds are done; the same command goes on"):
        train_folds(folded, caches, tmp_path / "out", make_config(training={"epochs": 1}))
    assert (tmp_path / "out" / "folds.csv").exists()


def test_a_manifest_without_folds_is_refused(cohort, caches, tmp_path, make_config) -> None:
    with pytest.raises(ManifestError, match="the manifest has no fold column, or an empty one"):
        train_folds(cohort, caches, tmp_path / "out", make_config())


TOGETHER = """
import sys
from pathlib import Path
from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.config import read_toml
from wsi_dbps.training.config import build_run_config
from wsi_dbps.training.folds import train_folds
cohort, caches, out, settings = map(Path, sys.argv[1:])
train_folds(read_manifest(cohort, need_label=True), caches, out, build_run_config(read_toml(settings), "test"))
"""


def test_two_processes_train_every_fold_as_one_does(folded, caches, tmp_path, make_config) -> None:
    config = make_config(training={"epochs": 1})
    train_folds(folded, caches, tmp_path / "one", config)
    write_manifest(tmp_path / "cohort.csv", folded)
    (tmp_path / "run.toml").write_text(to_toml(config))
    arguments = [str(tmp_path / "cohort.csv"), str(caches), str(tmp_path / "two"), str(tmp_path / "run.toml")]
    port = str(40_000 + os.getpid() % 10_000)
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    two = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, *arguments],
            env=os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(300) for process in two] == [0, 0]
    found = [list(csv.DictReader((tmp_path / name / "folds.csv").read_text().splitlines())) for name in ("one", "two")]
    for one, other in zip(*found, strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=1e-5)
