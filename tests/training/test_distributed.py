"""Several processes are one: the same losses, the same choices, one writer; and none waits for the dead."""

import csv
import signal
import time

import pytest
import torch

from wsi_dbps.errors import ConfigError
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.distributed import World
from wsi_dbps.training.loop import pick_device, train
from wsi_dbps.training.record import read_selection_record, record_path

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")


def curve(run, *columns: str) -> list[float]:
    with open(run / "history.csv", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) for column in columns]


@pytest.mark.parametrize(
    ("processes", "training"),
    [
        (2, {"batch_slides": 4}),
        (2, {"batch_slides": 5, "accumulate": 2, "class_weights": "balanced"}),  # 5, 5 and 2 slides
        (3, {"batch_slides": 11, "ema": 0.9}),  # the second batch holds one slide: two processes have none
    ],
)
def test_several_processes_equal_one(cohort, caches, tmp_path, make_config, start, processes, training) -> None:
    config = make_config(training={"epochs": 3} | training, selection={"exploration": 0.3})
    train(cohort, caches, tmp_path / "one", config)
    for process in start(tmp_path / "several", config, processes=processes):
        assert process.wait() == 0, process.stderr.read()
    columns = ("train_loss", "val_loss", "val_auroc", "explored")
    assert curve(tmp_path / "several", *columns) == pytest.approx(curve(tmp_path / "one", *columns), rel=1e-5)
    one, several = (load_checkpoint(tmp_path / run / "last.pt").model_state for run in ("one", "several"))
    assert all(torch.allclose(one[name], several[name], rtol=1e-3, atol=1e-4) for name in one)
    for epoch in (1, 2, 3):
        for a, b in zip(
            *(read_selection_record(record_path(tmp_path / run, epoch)) for run in ("one", "several")), strict=True
        ):
            assert (a.slide_id, a.explored) == (b.slide_id, b.explored)
            assert (a.kept_N == b.kept_N).all()


def test_a_run_of_two_processes_that_is_preempted_goes_on_as_one(cohort, caches, tmp_path, make_config, start) -> None:
    config = make_config(training={"epochs": 4, "save_every_minutes": 0.0})
    train(cohort, caches, tmp_path / "one", config)
    two = start(tmp_path / "run", config, processes=2)
    end = time.monotonic() + 120
    while not (tmp_path / "run" / "last.pt").exists() and time.monotonic() < end:
        time.sleep(0.01)
    two[1].send_signal(signal.SIGTERM)  # one is told; both end at the same step
    assert [process.wait(120) for process in two] == [143, 143]
    train(cohort, caches, tmp_path / "run", config, resume=True)
    assert curve(tmp_path / "run", "train_loss", "val_loss") == pytest.approx(
        curve(tmp_path / "one", "train_loss", "val_loss"), rel=1e-5
    )


@pytest.mark.parametrize(("blow", "wait_minutes"), [(signal.SIGKILL, 30.0), (signal.SIGSTOP, 0.1)])
def test_a_process_that_dies_or_hangs_ends_the_others_in_one_line(
    cohort, caches, tmp_path, make_config, start, blow, wait_minutes
) -> None:
    training = {"epochs": 500, "save_every_minutes": 0.0, "wait_minutes": wait_minutes}
    two = start(tmp_path / "run", make_config(training=training), processes=2)
    end = time.monotonic() + 120
    while not (tmp_path / "run" / "last.pt").exists() and time.monotonic() < end:
        time.sleep(0.01)
    two[1].send_signal(blow)
    assert two[0].wait(120) == 2
    said = two[0].stderr.read().splitlines()[-1]
    assert said.startswith("wsi-dbps: process 0 of 2: another process of the run has ended or does not answer (")
    assert said.endswith("its own message says why; go on with --resume")
    assert load_checkpoint(tmp_path / "run" / "last.pt")


def test_shares_cover_and_are_disjoint() -> None:
    for size in (1, 2, 3, 7):
        shares = [World(rank, size).mine(range(10)) for rank in range(size)]
        assert sorted(i for share in shares for i in share) == list(range(10))


def test_what_several_processes_cannot_share_is_refused(cohort, caches, tmp_path, make_config, start) -> None:
    with pytest.raises(ConfigError, match="device 'cuda:1' cannot be used by 2 processes at once; set it to 'cuda'"):
        pick_device("cuda:1", World(0, 2))
    config = make_config(encoder={"name": "small_gn", "dim": 16, "batch_norm": "train"})
    for process in start(tmp_path / "run", config, processes=2):
        assert process.wait() == 2
        assert "batch_norm = 'train': not in several processes" in process.stderr.read()
