"""Several processes are one: the same losses, the same choices, one writer; and none waits for the dead."""

import csv
import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from wsi_dbps.cohort.manifest import write_manifest
from wsi_dbps.core.errors import ConfigError
from wsi_dbps.core.settings import to_toml
from wsi_dbps.formats.selection_record import read_selection_record, record_path
from wsi_dbps.models.device import pick_device
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.distributed import World
from wsi_dbps.training.folds import train_folds
from wsi_dbps.training.loop import train

pytestmark = [pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning"), pytest.mark.slow]
PROCESSES = 3


def curve(run: Path, *columns: str) -> list[float]:
    with open(run / "history.csv", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) for column in columns]


@pytest.fixture(scope="module")
def configs(make_config):
    """Three ways to divide 12 slides among three processes."""
    return [
        make_config(training={"epochs": 2} | training, selection={"exploration": 0.3})
        for training in (
            {"batch_slides": 4},  # two, one and one
            {"batch_slides": 5, "accumulate": 2, "class_weights": "balanced"},  # 5, 5 and 2 slides
            {"batch_slides": 11, "ema": 0.9},  # the second batch holds one slide: two processes have none
        )
    ]


@pytest.fixture(scope="module")
def several(configs, make_config, small_cohort, folded, tmp_path_factory, run_together_in):
    """The folder in which three processes have trained, and what each of them raised."""
    folder = tmp_path_factory.mktemp("several")
    write_manifest(folder / "cohort.csv", folded)
    (folder / "settings").mkdir()
    batch_norm = {"name": "small_gn", "dim": 16, "batch_norm": "train"}
    named = {f"equal_{i}": config for i, config in enumerate(configs)}
    named |= {"folds": make_config(training={"epochs": 1}), "batch_norm": make_config(encoder=batch_norm)}
    for name, config in named.items():
        (folder / "settings" / f"{name}.toml").write_text(to_toml(config))
    script = Path(__file__).with_name("several_processes.py")
    arguments = [str(script), str(folder / "cohort.csv"), str(small_cohort[1]), str(folder / "settings"), str(folder)]
    for process in run_together_in(folder, [sys.executable, *arguments], PROCESSES):
        assert process.wait() == 0, process.said()
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_several_processes_equal_one(trained, configs, several, number) -> None:
    one, several = trained(configs[number]).run, several[0] / f"equal_{number}"
    columns = ("train_loss", "val_loss", "val_auroc", "explored")
    assert curve(several, *columns) == pytest.approx(curve(one, *columns), rel=1e-5)
    models = (load_checkpoint(run / "last.pt").model_state for run in (one, several))
    torch.testing.assert_close(*models, rtol=1e-3, atol=1e-4)
    for epoch in (1, 2):
        for a, b in zip(*(read_selection_record(record_path(run, epoch)) for run in (one, several)), strict=True):
            assert (a.slide_id, a.explored) == (b.slide_id, b.explored)
            assert (a.kept_N == b.kept_N).all()


def test_several_processes_train_every_fold_as_one_does(folded, caches, tmp_path, make_config, several) -> None:
    train_folds(folded, caches, tmp_path / "one", make_config(training={"epochs": 1}))
    found = [
        list(csv.DictReader((folder / "folds.csv").read_text().splitlines()))
        for folder in (tmp_path / "one", several[0] / "folds")
    ]
    assert len(found[0]) == 3
    for one, other in zip(*found, strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=1e-5)


def test_all_processes_end_at_the_same_step_if_one_is_told_to_stop(
    cohort, caches, tmp_path, configs, several, trained
) -> None:
    folder, raised = several
    for name, by, code in (("sigterm", "SIGTERM", 143), ("ctrl_c", "Ctrl-C", 130)):
        message = f"{folder / name}: ended by {by} after step 1 of 3 of epoch 1; all is saved"
        assert [of[name] for of in raised] == [["StoppedError", message, code]] * PROCESSES
    train(cohort, caches, folder / "sigterm", configs[0], resume=True)  # one process goes on
    assert curve(folder / "sigterm", "train_loss", "val_loss") == pytest.approx(
        curve(trained(configs[0]).run, "train_loss", "val_loss"), rel=1e-5
    )


def test_batch_statistics_of_several_processes_are_refused(several) -> None:
    for raised in several[1]:
        name, message, _ = raised["batch_norm"]
        assert (name, "batch_norm = 'train': not in several processes" in message) == ("ConfigError", True)


def test_a_run_under_torchrun_that_is_preempted_goes_on_as_one(
    cohort, caches, tmp_path, make_config, trained, start
) -> None:
    config = make_config(training={"epochs": 16, "save_every_minutes": 0.0})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    (agent,) = start(tmp_path / "run", config, launcher=torchrun)
    agent.until((tmp_path / "run" / "last.pt").exists)
    agent.send_signal(signal.SIGTERM)  # it tells its processes
    assert agent.wait() != 0
    (said,) = {line for line in agent.said().splitlines() if "ended by SIGTERM" in line}
    assert "; go on with: torchrun --standalone --nproc-per-node=2 -m wsi_dbps_cli.main train " in said
    train(cohort, caches, tmp_path / "run", config, resume=True)
    assert curve(tmp_path / "run", "train_loss", "val_loss") == pytest.approx(
        curve(trained(config).run, "train_loss", "val_loss"), rel=1e-5
    )


LIBRARY = """
import os, sys, time
from pathlib import Path
from torch import distributed
from wsi_dbps.core.errors import StoppedError, TrainingError
from wsi_dbps.training.distributed import joined
how, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
(folder / f"up_{rank}").touch()
while len(list(folder.glob("up_*"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.01)  # all are up before any waits for the others with a limit
try:
    with joined(0.25 if how == "hangs" else 30.0) as world:
        for _ in range(20):
            world.sum([1.0] * 1000)
        if how in ("dies", "hangs"):
            (folder / f"{how}_{rank}").touch()
            while True:
                world.sum([1.0])
        raise {"stopped": StoppedError, "failed": TrainingError}[how]("as a run ends")
except TrainingError as error:
    assert not distributed.is_initialized()  # its threads are gone
    print(error, file=sys.stderr)
    sys.exit(7)
"""


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_python_code_that_ends_after_an_error_has_its_own_exit_code(tmp_path, run_together, how) -> None:
    """Where the process group outlives the error, about a third of these processes are aborted instead (SIGABRT)."""
    three = run_together([sys.executable, "-c", LIBRARY, how, str(tmp_path)], 3)
    assert [process.wait() for process in three] == [7, 7, 7], "".join(process.said() for process in three)


@pytest.mark.parametrize(("how", "blow"), [("dies", signal.SIGKILL), ("hangs", signal.SIGSTOP)])
def test_a_process_that_dies_or_hangs_ends_the_others_in_one_line(tmp_path, run_together, how, blow) -> None:
    two = run_together([sys.executable, "-c", LIBRARY, how, str(tmp_path)], 2)
    two[1].until((tmp_path / f"{how}_1").exists)
    two[1].send_signal(blow)
    assert two[0].wait() == 7, two[0].said()
    said = two[0].said().splitlines()[-1]
    assert said.startswith("process 0 of 2: another process of the run has ended or does not answer (")
    assert said.endswith("its own message says why; go on with --resume")


def test_shares_cover_and_are_disjoint() -> None:
    for size in (1, 2, 3, 7):
        shares = [World(rank, size).mine(range(10)) for rank in range(size)]
        assert sorted(i for share in shares for i in share) == list(range(10))


def test_a_gpu_that_several_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="device 'cuda:1' cannot be used by 2 processes at once; set it to 'cuda'"):
        pick_device("cuda:1", num_processes=2)
