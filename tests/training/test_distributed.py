"""Several processes are one: the same losses, the same choices, one writer; and none waits for the dead."""

import csv
import signal
import sys

import pytest
import torch

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.formats.selection_record import read_selection_record, record_path
from wsi_dbps.models.device import pick_device
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.distributed import World
from wsi_dbps.training.loop import train

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
        assert process.wait() == 0, process.said()
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
    config = make_config(training={"epochs": 16, "save_every_minutes": 0.0})
    train(cohort, caches, tmp_path / "one", config)
    two = start(tmp_path / "run", config, processes=2)
    two[1].until((tmp_path / "run" / "last.pt").exists)
    two[1].send_signal(signal.SIGTERM)  # one is told; both end at the same step
    assert [process.wait() for process in two] == [143, 143], two[0].said() + two[1].said()
    assert "ended by SIGTERM" in two[0].said().splitlines()[-1]
    train(cohort, caches, tmp_path / "run", config, resume=True)
    assert curve(tmp_path / "run", "train_loss", "val_loss") == pytest.approx(
        curve(tmp_path / "one", "train_loss", "val_loss"), rel=1e-5
    )


def test_ctrl_c_ends_two_processes_at_the_same_step(tmp_path, make_config, start) -> None:
    config = make_config(training={"epochs": 500, "save_every_minutes": 0.0})
    two = start(tmp_path / "run", config, processes=2)
    two[0].until((tmp_path / "run" / "last.pt").exists)
    for process in two:
        process.send_signal(signal.SIGINT)  # as a terminal tells all, and then torchrun each of its own
        process.send_signal(signal.SIGINT)
    assert [process.wait() for process in two] == [130, 130], two[0].said() + two[1].said()
    assert "ended by Ctrl-C" in two[0].said().splitlines()[-1]
    assert "(in 2 processes, started as these were)" in two[0].said().splitlines()[-1]


@pytest.mark.parametrize(("blow", "wait_minutes"), [(signal.SIGKILL, 30.0), (signal.SIGSTOP, 0.25)])
def test_a_process_that_dies_or_hangs_ends_the_others_in_one_line(
    tmp_path, make_config, start, blow, wait_minutes
) -> None:
    training = {"epochs": 500, "save_every_minutes": 0.0, "wait_minutes": wait_minutes}
    two = start(tmp_path / "run", make_config(training=training), processes=2)
    two[1].until((tmp_path / "run" / "last.pt").exists)
    two[1].send_signal(blow)
    assert two[0].wait() == 2, two[0].said()
    said = two[0].said().splitlines()[-1]
    assert said.startswith("wsi-dbps: process 0 of 2: another process of the run has ended or does not answer (")
    assert said.endswith("its own message says why; go on with --resume")
    assert load_checkpoint(tmp_path / "run" / "last.pt")


LIBRARY = """
import sys
from torch import distributed
from wsi_dbps.core.errors import StoppedError, TrainingError
from wsi_dbps.training.distributed import joined
error = {"stopped": StoppedError, "failed": TrainingError}[sys.argv[1]]
try:
    with joined(5.0) as world:
        for _ in range(20):
            world.sum([1.0] * 1000)
        raise error("as a run ends")
except TrainingError as error:
    assert not distributed.is_initialized()  # its threads are gone
    sys.exit(7)
"""


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_python_code_that_ends_after_an_error_has_its_own_exit_code(run_together, how) -> None:
    """Where the process group outlives the error, about a third of these processes are aborted instead (SIGABRT)."""
    for _ in range(3):
        two = run_together([sys.executable, "-c", LIBRARY, how], 2)
        assert [process.wait() for process in two] == [7, 7], two[0].said() + two[1].said()


def test_shares_cover_and_are_disjoint() -> None:
    for size in (1, 2, 3, 7):
        shares = [World(rank, size).mine(range(10)) for rank in range(size)]
        assert sorted(i for share in shares for i in share) == list(range(10))


def test_what_several_processes_cannot_share_is_refused(cohort, caches, tmp_path, make_config, start) -> None:
    with pytest.raises(ConfigError, match="device 'cuda:1' cannot be used by 2 processes at once; set it to 'cuda'"):
        pick_device("cuda:1", num_processes=2)
    config = make_config(encoder={"name": "small_gn", "dim": 16, "batch_norm": "train"})
    for process in start(tmp_path / "run", config, processes=2):
        assert process.wait() == 2
        assert "batch_norm = 'train': not in several processes" in process.said()
