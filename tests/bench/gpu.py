"""What a GPU shows: seconds a step, peak memory, share of the peak rate, and share of time spent waiting for data.

    python tests/bench/gpu.py [--device cuda] [--peak-tflops 989] [--steps 5]
    python tests/bench/gpu.py --device cpu --tiny

ResNet-18 and ResNet-50, bf16 and fp32, `full` (as many patches as fit), `ips` and `dbps` at N = 4096, N' = 2048,
M = 16, S = 64, 4 slides a step, 256 px. Caches of JPEG patches are written to a temporary folder first, and read with
decoding on the CPU and, where torchvision can, on the GPU. Prints a Markdown table. A step is selection, forward,
backward and AdamW.

Share of the peak: the encoder's floating-point operations, by `torch.utils.flop_counter`, over the time not spent
waiting, over `--peak-tflops` (default: dense bf16 of an H100 or H200; of fp32 with TF32 off, give your own).
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wsi_dbps.bags.bags import PatchReader
from wsi_dbps.bags.gpu_decode import pick_decoder
from wsi_dbps.core.errors import ConfigError
from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.core.settings import to_dict
from wsi_dbps.dbps.drop import draw_kept, num_kept
from wsi_dbps.formats.cache_writer import CacheHead, CacheWriter, PixelSource, Provenance, encode_jpeg
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.spec import CacheSpec, TilingSpec
from wsi_dbps.models.device import autocast, pick_device, pick_precision
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.training.augment import augment
from wsi_dbps.training.optimizer import build_optimizer
from wsi_dbps.training.settings import RunConfig, as_size, build_run_config

WAYS: dict[str, dict[str, Any]] = {
    "full": {"preset": "full"},
    "ips": {"preset": "ips"},
    "dbps": {"preset": "dbps", "num_subsalient": 64},
}


class WaitingBag:
    """A cache that counts the seconds in which its reader kept the device waiting."""

    def __init__(self, cache: PatchCache, reader: PatchReader) -> None:
        self.cache, self.reader, self.waited = cache, reader, 0.0

    @property
    def num_patches(self) -> int:
        """N."""
        return len(self.cache)

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its pixels."""
        chunks = self.reader.read(self.cache, id_lists)
        while True:
            start = time.perf_counter()
            pixels = next(chunks, None)
            self.waited += time.perf_counter() - start
            if pixels is None:
                return
            yield pixels


def main() -> None:
    """Write caches, run every combination, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8, help="that read and decode")
    parser.add_argument("--tiny", action="store_true", help="sizes for a smoke test on a CPU")
    options = parser.parse_args()
    device = pick_device(options.device)
    patches, kept, slides, side = (24, 12, 2, 64) if options.tiny else (4096, 2048, 4, 256)
    encoders = ("resnet18",) if options.tiny else ("resnet18", "resnet50")
    precisions = ("fp32",) if options.tiny or device.type != "cuda" else ("bf16", "fp32")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    print(f"{name}, torch {torch.__version__}; N = {patches}, N' = {kept}, {slides} slides of {side} px a step\n")
    print("| encoder | precision | preset | decoding | N' | s a step | peak memory | of the peak rate | data wait |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        caches = [write_cache(Path(folder) / f"{i}.h5", patches, side, seed=i) for i in range(slides)]
        for encoder, precision, way, decoding in itertools.product(encoders, precisions, WAYS, ("cpu", "gpu")):
            tables = {
                "encoder": {"name": encoder, "pretrained": False},
                "selection": {"num_salient": min(16, kept // 3), "num_kept": kept} | WAYS[way],
                "training": {"precision": precision, "batch_slides": slides, "decode_threads": options.threads},
            }
            try:
                gpu = pick_decoder(decoding, device)
            except ConfigError as error:
                print(f"| {encoder} | {precision} | {way} | {decoding} | | {error} | | | |")
                continue
            print(row(tables, caches, device, gpu, options.steps, options.peak_tflops), flush=True)


def row(
    tables: dict[str, Any],
    caches: list[PatchCache],
    device: torch.device,
    gpu: torch.device | None,
    num_steps: int,
    peak_tflops: float,
) -> str:
    """A row of the table; `full` keeps half as many patches until they fit."""
    kept = tables["selection"]["num_kept"]
    while True:
        tables["selection"] |= {"num_kept": kept, "num_salient": min(tables["selection"]["num_salient"], kept)}
        config = build_run_config(tables, "bench")
        try:
            seconds, waited, peak, flops = measure(config, caches, device, gpu, num_steps)
            break
        except torch.cuda.OutOfMemoryError:
            if config.selection.selector != "all" or kept == 1:
                raise
        kept //= 2
        torch.cuda.empty_cache()
    share = flops / max(seconds - waited, 1e-9) / (peak_tflops * 1e12)
    cells = (
        config.encoder.name,
        config.training.precision,
        config.selection.preset,
        "cpu" if gpu is None else "gpu",
        str(kept),
        f"{seconds:.3f}",
        as_size(peak) if device.type == "cuda" else "not counted",
        f"{share:.1%}",
        f"{waited / seconds:.1%}",
    )
    return "| " + " | ".join(cells) + " |"


def measure(
    config: RunConfig, caches: list[PatchCache], device: torch.device, gpu: torch.device | None, num_steps: int
) -> tuple[float, float, int, int]:
    """Median seconds of a step, of them waiting for data, peak bytes, and the encoder's operations in a step."""
    torch.manual_seed(0)
    model = SlideModel(2, config.encoder, config.aggregator, config.selection).to(device).train()
    optimizer, s = build_optimizer(model, config.optimizer), config.selection
    reader = PatchReader(config.training.decode_threads, pin_memory=device.type == "cuda", gpu=gpu)
    bags = [WaitingBag(cache, reader) for cache in caches]
    precision = pick_precision(config.training.precision, device)
    targets, draws = torch.arange(len(bags), device=device) % 2, torch.Generator().manual_seed(0)

    def step() -> None:
        with autocast(device, precision):
            chosen = []
            for bag in bags:
                kept = num_kept(bag.num_patches, s.num_salient, count=s.num_kept)
                chosen.append(model.select(bag, draw_kept(bag.num_patches, kept, draws), draws))
            logits = model(chosen, partial(augment, config=config.augmentation))
        nn.functional.cross_entropy(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times = []
        for bag in bags:
            bag.waited = 0.0
        for _ in range(num_steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    finally:
        reader.close()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    forward, both = operations(model, caches[0].grid.size_px)
    kept = num_kept(bags[0].num_patches, s.num_salient, count=s.num_kept)
    salient = kept if s.selector == "all" else s.num_salient
    scored = 0 if s.selector == "all" else kept
    flops = len(bags) * (scored * forward + salient * both)
    return median(times), sum(bag.waited for bag in bags) / num_steps, peak, flops


def operations(model: SlideModel, side: int) -> tuple[int, int]:
    """Of the encoder for a patch: forward, and forward with backward."""
    with FlopCounterMode(display=False) as counter:
        embedding = model.encoder(torch.zeros(1, 3, side, side, device=model.device))
        forward = counter.get_total_flops()
        embedding.sum().backward()
    return forward, counter.get_total_flops()


def write_cache(path: Path, num_patches: int, side: int, seed: int) -> PatchCache:
    """A cache of patches with smooth colours and texture, of about the bytes that tissue has."""
    rng = np.random.default_rng(seed)
    columns = 64
    spec = CacheSpec(tiling=TilingSpec(mpp_um=0.5, size_px=side))
    rows = np.stack([np.arange(num_patches) % columns, np.arange(num_patches) // columns], 1)
    size = Size(columns * side, (num_patches // columns + 1) * side)
    grid = TileGrid(rows * side, float(side), size, 0.5, side, 0.5)
    provenance = Provenance(path.stem, "bench", "bench", "bench", "file", "")
    thumbnail = encode_jpeg(np.zeros((16, 16, 3), np.uint8), 90)
    tissue_N = np.ones(num_patches, np.float32)
    head = CacheHead(
        grid, tissue_N, provenance, to_dict(spec), PixelSource("reader", 0), thumbnail, np.ones((1, 1), np.bool_)
    )
    path.touch()
    writer = CacheWriter(path, head)
    for _ in range(num_patches):
        base = rng.uniform(90, 230, (side // 8, side // 8, 3)).repeat(8, 0).repeat(8, 1)
        noisy = base + rng.normal(0, 10, (side, side, 1))
        jpeg = encode_jpeg(np.clip(noisy, 0, 255).astype(np.uint8), 90)
        writer.add(jpeg, zlib.crc32(jpeg))
    writer.finish(head)
    writer.close()
    return PatchCache(path)


if __name__ == "__main__":
    main()
