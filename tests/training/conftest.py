"""Settings for runs of seconds, runs that tests share, trainers in memory, and runs in processes of their own."""

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from wsi_dbps.bags.bags import FeatureKind
from wsi_dbps.cohort.cohort import Cohort, SlideRecord
from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.core.settings import to_toml
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.tasks.classification import Classification
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.data import TrainingData
from wsi_dbps.training.loop import TrainingResult, train
from wsi_dbps.training.settings import RunConfig, build_run_config
from wsi_dbps.training.trainer import Trainer


class Started:
    """A process of `wsi-dbps train`; what it says goes to a file, so that no full pipe holds it up."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self._log = log
        with open(log, "w") as file:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=env)

    def running(self) -> bool:
        return self._process.poll() is None

    def until(self, there: Callable[[], bool], seconds: float = 550) -> None:
        """Wait until something is so while it runs, or until it has ended."""
        end = time.monotonic() + seconds
        while self.running() and not there():
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)  # between two looks

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 550) -> int:
        return self._process.wait(seconds)

    def said(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """How sums are split among threads moves the last bit of a loss, and with it a close choice."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_config():
    def make(**tables: dict[str, Any]) -> RunConfig:
        small: dict[str, dict[str, Any]] = {
            "encoder": {"name": "small_gn", "dim": 16},
            "selection": {"num_salient": 3, "num_subsalient": 6, "num_kept": 12, "chunk_size": 16},
            "aggregator": {"num_heads": 2},
            "optimizer": {"lr": 1e-3},
            "training": {"epochs": 2, "batch_slides": 4, "device": "cpu", "decode_threads": 1},
        }
        return build_run_config({k: small.get(k, {}) | tables.get(k, {}) for k in small | tables}, "test")

    return make


# ---- trained runs that tests share


@dataclass(frozen=True)
class Trained:
    """A finished run; its folder is read only, copy it to go on with it."""

    run: Path
    config: RunConfig
    result: TrainingResult
    said: tuple[str, ...]

    def copy(self, to: Path) -> Path:
        shutil.copytree(self.run, to)
        return to


@pytest.fixture(scope="session")
def trained(small_cohort, tmp_path_factory):
    """Train once per session and settings; returns what that left."""
    found: dict[RunConfig, Trained] = {}

    def trained(config: RunConfig) -> Trained:
        if config not in found:
            run, said = tmp_path_factory.mktemp("trained") / "run", []
            result = train(read_manifest(small_cohort[0]), small_cohort[1], run, config, say=said.append)
            found[config] = Trained(run, config, result, tuple(said))
        return found[config]

    return trained


@pytest.fixture(scope="session")
def plain_run(trained, make_config) -> Trained:
    """Two epochs of three steps with the settings of `make_config`."""
    return trained(make_config())


@pytest.fixture(scope="session")
def stepwise_config(make_config) -> RunConfig:
    """Three steps an epoch, each of two batches of two slides, and last.pt after every step."""
    training = {"epochs": 2, "batch_slides": 2, "accumulate": 2, "save_every_minutes": 0.0, "ema": 0.9}
    return make_config(training=training, selection={"exploration": 0.5})


# ---- trainers in memory


@dataclass(frozen=True)
class MemoryBag:
    """A slide whose features, or pixels, are a tensor."""

    record: SlideRecord
    rows: torch.Tensor

    @property
    def num_patches(self) -> int:
        return len(self.rows)

    def read(self, id_lists):
        return (self.rows[ids] for ids in id_lists)

    def expect(self, id_lists) -> None:
        """Nothing is to be read ahead."""


def slide(i: int) -> SlideRecord:
    return SlideRecord(f"slide_{i:02d}", f"case_{i:02d}", None, label=("flat", "coarse")[i % 2])


@pytest.fixture(scope="session")
def make_trainer(make_config):
    """A trainer of 12 slides of 20 patches each, 4 more to validate, features unless `rows` makes others.

    `edit` changes the training slides.
    """

    def features(label: int, draws: torch.Generator) -> torch.Tensor:
        return torch.randn(20, 6, generator=draws) + label

    def make(
        *, rows=features, edit=list, stopping=lambda: False, model_class=SlideModel, **tables: dict[str, Any]
    ) -> Trainer:
        tables.setdefault("encoder", {"name": "projector", "dim": 8, "num_features": 6})
        config = make_config(**tables)
        draws = torch.Generator().manual_seed(5)
        bags = [MemoryBag(slide(i), rows(i % 2, draws)) for i in range(16)]
        parts = edit(bags[4:]), bags[:4]
        loop = config.training
        task = Classification.fitted(
            *([bag.record for bag in part] for part in parts), balanced=loop.class_weights == "balanced"
        )
        data = TrainingData(*map(tuple, parts), task, FeatureKind(6, "noise"), ())
        torch.manual_seed(loop.seed)
        model = model_class(task.num_outputs, config.encoder, config.aggregator, config.selection)
        return Trainer(model, data, config, stopping=stopping)

    return make


# ---- runs in processes of their own


@pytest.fixture(scope="module")
def run_together_in():
    """Start a command in several processes that meet as torchrun's do, at a free port, or in one; logs go to a folder.

    Processes that still run when the tests of a module are done are killed.
    """
    running: list[Started] = []
    stores: list[TCPStore] = []

    def run_together_in(logs: Path, command: list[str], processes: int) -> list[Started]:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        if processes > 1:
            stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(stores[-1].port), "WORLD_SIZE": str(processes)}
            env |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        started = []
        for rank in range(processes):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            started.append(Started(command, env | ranks, logs / f"{len(running)}.log"))
            running.append(started[-1])
        return started

    yield run_together_in
    for process in running:
        process.end()


@pytest.fixture
def run_together(tmp_path, run_together_in):
    """As `run_together_in`, the logs in the test's own folder."""
    return lambda command, processes: run_together_in(tmp_path, command, processes)


@pytest.fixture
def start(small_cohort, tmp_path, run_together):
    """Start `wsi-dbps train` in a process of its own, or of a launcher, with --resume where there is a run."""

    def start(
        run: Path,
        config: RunConfig,
        *more: str,
        cohort: Path = small_cohort[0],
        launcher: Sequence[str] = (sys.executable, "-m"),
    ) -> list[Started]:
        settings = tmp_path / f"{run.name}.toml"
        settings.write_text(to_toml(config))
        command = [*launcher, "wsi_dbps_cli.main", "train", str(cohort), "--caches", str(small_cohort[1])]
        command += ["--out", str(run), "--config", str(settings), *more]
        return run_together(command + ["--resume"] * (run / "run.json").exists(), 1)

    return start


@pytest.fixture(scope="session")
def folded(small_cohort) -> Cohort:
    """The small cohort with a column of three folds."""
    records = read_manifest(small_cohort[0]).records
    return Cohort.of(dataclasses.replace(record, extra={"fold": str(i // 2 % 3)}) for i, record in enumerate(records))


@pytest.fixture
def assert_same_run():
    """Two run folders hold the same history, checkpoints and selection records, to the bit."""

    def same(one: Path, other: Path) -> None:
        assert history_without_times(one) == history_without_times(other)
        for name in ("last.pt", "best.pt"):
            first, second = (load_checkpoint(run / name).model_state for run in (one, other))
            assert all(torch.equal(first[key], second[key]) for key in first)
        records = [{p.name: p.read_bytes() for p in (run / "selection").iterdir()} for run in (one, other)]
        assert records[0] == records[1]

    return same


@pytest.fixture(scope="session")
def numbers():
    """The rows of a history.csv, without times."""
    return history_without_times


def history_without_times(run: Path) -> list[dict[str, str]]:
    with open(run / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "data_wait")} for row in csv.DictReader(file)]
