"""Training in the processes of one group, one thing after the other; run by test_distributed.py, not by pytest.

    python several_processes.py COHORT.csv CACHES SETTINGS_FOLDER OUT

Each process writes to OUT/<rank>.json what every part raised: its type, message and exit code.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.core.errors import WsiDbpsError
from wsi_dbps.core.settings import read_toml
from wsi_dbps.training.distributed import joined
from wsi_dbps.training.folds import train_folds
from wsi_dbps.training.loop import train
from wsi_dbps.training.settings import build_run_config
from wsi_dbps.training.stopping import told_to_stop


def main(manifest: str, caches: str, settings: str, out: str) -> None:
    torch.set_num_threads(1)
    cohort, rank = read_manifest(manifest), int(os.environ["RANK"])
    raised = {}

    def run(name: str, whole: Callable[..., object] = train, folder: str = "") -> None:
        path = Path(settings) / f"{name}.toml"
        try:
            whole(cohort, caches, Path(out) / (folder or name), build_run_config(read_toml(path), str(path)))
        except WsiDbpsError as error:
            raised[folder or name] = [type(error).__name__, str(error), getattr(error, "exit_code", None)]

    with joined(30.0):
        for path in sorted(Path(settings).glob("equal_*.toml")):
            run(path.stem)
        run("folds", train_folds)
        run("batch_norm")
        with told_to_stop() as stopping:
            if rank == 1:  # one is told; all end at the same step
                stopping.note(signal.SIGTERM)
            run("equal_0", folder="sigterm")
        with told_to_stop() as stopping:
            for _ in range(2):  # a terminal tells all, and then torchrun each of its own
                stopping.note(signal.SIGINT)
            run("equal_0", folder="ctrl_c")
        (Path(out) / f"{rank}.json").write_text(json.dumps(raised))


if __name__ == "__main__":
    main(*sys.argv[1:])
