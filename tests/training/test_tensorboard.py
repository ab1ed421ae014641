"""What TensorBoard reads is what history.csv says, also after an epoch is trained again."""

from pathlib import Path

import pytest

from wsi_dbps.training.tensorboard import write_events


def test_tensorboard_reads_every_epoch_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = [{"epoch": i, "train_loss": 1 / i, "val_loss": 2 / i, "val_auroc": None, "lr": 1e-4} for i in (1, 2, 3)]
    for row in (*rows[:2], {**rows[1], "train_loss": 9.0}, *rows[1:]):  # the second is trained again, twice
        write_events(tmp_path, row)
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["lr", "train_loss", "val_loss"]
    found = [(event.step, event.value) for event in read.Scalars("train_loss")]
    assert found == [(row["epoch"], pytest.approx(row["train_loss"])) for row in rows]
