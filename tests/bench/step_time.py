"""Time of a training step of DBPS beside IPS, on one device, the two taking turns in one run.

    python tests/bench/step_time.py [--encoder resnet18] [--side 96] [--patches 256] [--repeats 7]

A step is selection, forward, backward and AdamW on one bag in memory: nothing is read. Prints the median of each and of
the ratios of the pairs, with their range. On a CPU seconds are those of its work, which others on the machine change
less than the clock's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import nn

from wsi_dbps.dbps.drop import draw_kept, num_kept
from wsi_dbps.models.bag import TensorBag
from wsi_dbps.models.device import pick_device
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.training.augment import augment
from wsi_dbps.training.optimizer import build_optimizer
from wsi_dbps.training.settings import RunConfig, build_run_config


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--patches", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--salient", type=int, default=16)
    parser.add_argument("--subsalient", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = pick_device(options.device)
    bag = TensorBag(torch.randint(0, 256, (options.patches, 3, options.side, options.side), dtype=torch.uint8))
    ways = {
        "ips": {"preset": "ips"},
        "dbps": {"preset": "dbps", "num_subsalient": options.subsalient},
        "dbps, half dropped": {"preset": "dbps", "num_subsalient": options.subsalient, "drop_rate": 0.5},
    }
    steps = {}
    for name, selection in ways.items():
        tables = {
            "encoder": {"name": options.encoder, "pretrained": False},
            "selection": {"num_salient": options.salient} | selection,
        }
        steps[name] = make_step(build_run_config(tables, "bench"), bag, device)
    now = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in steps.values():
        step()
    for _ in range(options.repeats):
        for name, step in steps.items():
            start = now()
            step()
            seconds[name].append(now() - start)
    print("| | seconds a step | of IPS | range |\n|---|---|---|---|")
    for name, found in seconds.items():
        ratios = [ours / ips for ours, ips in zip(found, seconds["ips"], strict=True)]
        print(f"| {name} | {median(found):.3f} | {median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |")


def make_step(config: RunConfig, bag: TensorBag, device: torch.device) -> Callable[[], None]:
    """A whole training step on the bag; it has ended on the device when it returns."""
    torch.manual_seed(0)
    model = SlideModel(2, config.encoder, config.aggregator, config.selection).to(device).train()
    optimizer = build_optimizer(model, config.optimizer)
    draws, s = torch.Generator().manual_seed(0), config.selection
    target = torch.tensor([1], device=device)

    def step() -> None:
        kept = draw_kept(bag.num_patches, num_kept(bag.num_patches, s.num_salient, rate=s.drop_rate), draws)
        chosen = model.select(bag, kept, draws)
        loss = nn.functional.cross_entropy(model([chosen], partial(augment, config=config.augmentation)), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


if __name__ == "__main__":
    main()
