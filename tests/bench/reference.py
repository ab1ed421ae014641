"""A training step of ours beside the published code's, on the same tensors, on a CPU: seconds, paired, and memory.

    python tests/bench/reference.py /path/to/DBPS --px 112 --patches 108 --salient 12 --batch 4

The published code (github.com/Qinrong-NKU/DBPS) is run as it is, in its "CA" and "Hard" configuration: every patch is
encoded without gradient, M are kept by attention, the embeddings of all others are recycled, one cross-attention pools
both, and its own loss, log(softmax + eps), is taken. Ours: `concat`, S = N - M, the same width, heads and chunk.
Both: ResNet-18 from random weights, AdamW, dropout 0.1, fp32. Theirs takes floats and keeps batch norm in training
mode; ours takes uint8 and keeps it frozen. Neither reads a file. Memory is the peak resident set of a process of its
own (Linux), above what it held with both libraries and the pixels, as uint8, in place.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES, DIM, HEADS = 2, 512, 8


def main() -> None:
    """Time both in turn in one process, then measure the memory of each in its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--px", type=int, default=112)
    parser.add_argument("--patches", type=int, default=108)
    parser.add_argument("--salient", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--chunk", type=int, default=64, help="Patches per call without gradient; a multiple of --batch."
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--memory-of", choices=["ours", "theirs"])
    options = parser.parse_args()
    sys.path.insert(0, str(options.reference.resolve()))
    torch.manual_seed(0)
    shape = (options.batch, options.patches, 3, options.px, options.px)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = torch.arange(options.batch) % CLASSES
    if options.memory_of:
        from architecture import DBformer  # noqa: F401 - the modules of both are counted for neither

        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = peak_mb()
        step = STEPS[options.memory_of](options, pixels, labels)
        for _ in range(2):
            step()
        print(json.dumps(peak_mb() - before))
        return
    steps = {name: make(options, pixels, labels) for name, make in STEPS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(options.repeat + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    ratios = np.array(seconds["ours"]) / np.array(seconds["theirs"])
    for name in steps:
        memory = json.loads(subprocess.check_output([sys.executable, *sys.argv, "--memory-of", name]))
        print(f"{name:<7} {np.median(seconds[name]):.2f} s a step, {memory:.0f} MB above its start")
    print(f"ours / theirs: {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})")


def peak_mb() -> float:
    """Peak resident set of this process (Linux)."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def ours(options: argparse.Namespace, pixels: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One step of this package."""
    from wsi_dbps.models.bag import TensorBag
    from wsi_dbps.models.settings import AggregatorConfig, EncoderConfig, SelectionConfig
    from wsi_dbps.models.slide_model import SlideModel
    from wsi_dbps.training.optimizer import build_optimizer
    from wsi_dbps.training.settings import OptimizerConfig

    model = SlideModel(
        CLASSES,
        EncoderConfig(name="resnet18", pretrained=False),
        AggregatorConfig(name="concat", num_heads=HEADS),
        SelectionConfig(
            num_salient=options.salient, num_subsalient=options.patches - options.salient, chunk_size=options.chunk
        ),
    )
    optimizer = build_optimizer(model, OptimizerConfig())
    bags, draws = [TensorBag(bag) for bag in pixels], torch.Generator().manual_seed(0)
    ids, criterion = torch.arange(options.patches), torch.nn.CrossEntropyLoss()

    def step() -> None:
        model.train()
        chosen = [model.select(bag, ids, draws) for bag in bags]
        criterion(model(chosen), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def theirs(options: argparse.Namespace, pixels: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One step of the published code."""
    from architecture.DBformer import DBformer

    tasks = {"task0": {"id": 0, "name": "slide", "act_fn": "softmax", "metric": "accuracy"}}
    settings: dict[str, Any] = {
        "n_class": CLASSES, "M": options.salient, "test_M": options.salient, "I": options.chunk // options.batch,
        "D": DIM, "D_k": DIM // HEADS, "D_v": DIM // HEADS, "D_inner": 4 * DIM, "H": HEADS, "S": 0, "n_token": 1,
        "N": options.patches, "use_pos": False, "tasks": tasks, "shuffle": False, "shuffle_style": "batch",
        "sample_style": "Hard", "is_image": True, "lrs": False, "single": False, "enc_type": "resnet18",
        "pretrained": False, "n_chan_in": 3, "n_res_blocks": 4, "attention": "CA", "attn_dropout": 0.1, "dropout": 0.1,
    }  # fmt: skip
    model = DBformer(torch.device("cpu"), SimpleNamespace(**settings))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    floats = pixels.float() / 255

    def step() -> None:
        model.train()
        salient, positions, rest, *_ = model.dbps(floats)
        predicted = model(salient, positions, rest)["slide"].view(len(labels), -1)
        torch.nn.functional.nll_loss(torch.log(predicted + 1e-6), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


STEPS: dict[str, Callable[[argparse.Namespace, torch.Tensor, torch.Tensor], Callable[[], None]]] = {
    "ours": ours,
    "theirs": theirs,
}

if __name__ == "__main__":
    main()
