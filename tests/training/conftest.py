"""Settings for runs of seconds, and runs in processes of their own."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from wsi_dbps.config import to_toml
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.config import RunConfig, build_run_config

TRAIN = """
import sys
from pathlib import Path
import torch
from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.config import read_toml
from wsi_dbps.errors import StoppedError, WsiDbpsError
from wsi_dbps.training.config import build_run_config
from wsi_dbps.training.loop import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    cohort, caches, run, config = map(Path, sys.argv[1:5])
    resume = (run / "run.json").exists()
    try:
        train(read_manifest(cohort), caches, run, build_run_config(read_toml(config), "test"), resume=resume)
    except WsiDbpsError as error:
        print(f"wsi-dbps: {error}", file=sys.stderr)
        sys.exit(143 if isinstance(error, StoppedError) else 2)
"""
"""What `wsi-dbps train` does, with --resume where there is a run."""


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
def start(small_cohort, tmp_path):
    """Start training in processes of their own."""
    running: list[subprocess.Popen[str]] = []

    def start(run: Path, config: RunConfig, *, processes: int = 1, **env: str) -> list[subprocess.Popen[str]]:
        script, settings = tmp_path / "train.py", tmp_path / f"{run.name}.toml"
        script.write_text(TRAIN)
        settings.write_text(to_toml(config))
        port = str(20_000 + (os.getpid() * 7 + len(running)) % 20_000)
        together = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = []
        for rank in range(processes):
            torchrun = {"RANK": str(rank), "LOCAL_RANK": str(rank), **together} if processes > 1 else {}
            command = [sys.executable, str(script), *map(str, (*small_cohort, run, settings))]
            everything = os.environ | {"OMP_NUM_THREADS": "1"} | torchrun | env
            started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=everything))
        running.extend(started)
        return started

    yield start
    for process in running:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


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
