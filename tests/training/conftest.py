"""Settings for runs of seconds, and runs in processes of their own."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from wsi_dbps.core.settings import to_toml
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.settings import RunConfig, build_run_config


class Started:
    """A process of `wsi-dbps train`; what it says goes to a file, so that no full pipe holds it up."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self._log = log
        with open(log, "w") as file:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=env)

    def running(self) -> bool:
        return self._process.poll() is None

    def until(self, there: Callable[[], bool], seconds: float = 300) -> None:
        """Wait until something is so while it runs, or until it has ended."""
        end = time.monotonic() + seconds
        while self.running() and not there():
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 300) -> int:
        return self._process.wait(seconds)

    def said(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
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


@pytest.fixture
def run_together(tmp_path):
    """Start a command in several processes that meet as torchrun's do, at a free port, or in one."""
    running: list[Started] = []
    stores: list[TCPStore] = []

    def run_together(command: list[str], processes: int) -> list[Started]:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        if processes > 1:
            stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(stores[-1].port), "WORLD_SIZE": str(processes)}
            env |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        started = []
        for rank in range(processes):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            started.append(Started(command, env | ranks, tmp_path / f"{len(running)}.log"))
            running.append(started[-1])
        return started

    yield run_together
    for process in running:
        process.end()


@pytest.fixture
def start(small_cohort, tmp_path, run_together):
    """Start `wsi-dbps train` in processes of their own, with --resume where there is a run."""

    def start(
        run: Path, config: RunConfig, *more: str, cohort: Path = small_cohort[0], processes: int = 1
    ) -> list[Started]:
        settings = tmp_path / f"{run.name}.toml"
        settings.write_text(to_toml(config))
        command = [sys.executable, "-m", "wsi_dbps_cli.main", "train", str(cohort), "--caches", str(small_cohort[1])]
        command += ["--out", str(run), "--config", str(settings), *more]
        return run_together(command + ["--resume"] * (run / "run.json").exists(), processes)

    return start


@pytest.fixture
def assert_same_run():
    """Two run folders hold the same history, checkpoints and selection records, to the bit."""

    def same(one: Path, other: Path) -> None:
        assert numbers(one) == numbers(other)
        for name in ("last.pt", "best.pt"):
            first, second = (load_checkpoint(run / name).model_state for run in (one, other))
            assert all(torch.equal(first[key], second[key]) for key in first)
        records = [{p.name: p.read_bytes() for p in (run / "selection").iterdir()} for run in (one, other)]
        assert records[0] == records[1]

    return same


def numbers(run: Path) -> list[dict[str, str]]:
    with open(run / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "data_wait")} for row in csv.DictReader(file)]
