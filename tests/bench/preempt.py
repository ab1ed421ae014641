"""How runs of two processes end when they are pre-empted: SIGTERM to one of them, at a random moment of training.

    python tests/bench/preempt.py WORK [--runs 20] [--busy 2]

Makes a small synthetic cohort in the folder WORK (once), starts `wsi-dbps train` in two processes as often as `--runs`
says, and counts the pairs of exit codes; (143, 143) is right. `--busy` processes compute beside, for a loaded machine.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from torch.distributed import TCPStore

SETTINGS = """
[encoder]
name = "small_gn"
dim = 16
[selection]
num_salient = 3
num_subsalient = 6
num_kept = 12
[aggregator]
num_heads = 2
[training]
epochs = 100000
device = "cpu"
save_every_minutes = 0.0
"""
COMMAND = [sys.executable, "-m", "wsi_dbps_cli.main"]


def preempt(work: Path, wait_seconds: float) -> tuple[int, ...]:
    """Exit codes of two processes, of which the second was sent SIGTERM this long after the first checkpoint."""
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a free port, as torchrun's
    env = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    train = [*COMMAND, "train", str(work / "cohort.csv"), "--caches", str(work / "caches"), "--out", str(run)]
    train += ["--config", str(work / "preempt.toml")]
    two = [
        subprocess.Popen(train, env=env | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.DEVNULL)
        for rank in ("0", "1")
    ]
    while not (run / "last.pt").exists() and all(process.poll() is None for process in two):
        time.sleep(0.01)
    time.sleep(wait_seconds)
    two[1].send_signal(signal.SIGTERM)
    return tuple(process.wait(300) for process in two)


def main() -> None:
    """Run the series."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--busy", type=int, default=0)
    arguments = parser.parse_args()
    if not (arguments.work / "caches").exists():
        from wsi_dbps.synth.cohort import make_cohort

        make_cohort(arguments.work, num_slides=24, seed=0, size_px=1024)
        tile = ["tile", str(arguments.work / "cohort.csv"), "--out", str(arguments.work / "caches")]
        subprocess.run([*COMMAND, *tile, "--mpp", "2", "--size", "48"], check=True)
    (arguments.work / "preempt.toml").write_text(SETTINGS)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)]
    try:
        chance, found = random.Random(0), Counter[tuple[int, ...]]()
        for done in range(arguments.runs):
            found[preempt(arguments.work, chance.uniform(0, 1))] += 1
            print(f"{done + 1} of {arguments.runs}: {dict(found)}", flush=True)
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    main()
