"""Heatmaps of one slide in every format, from attention that is there already: seconds and peak memory of the command.

    python tests/bench/heatmap.py CACHES/<slide_id>.h5 [--classes 2] [--smooth UM]

The attention is made up: smooth fields over the slide and noise, with evidence by class. The manifest names no slide
file, so none can be opened.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from wsi_dbps.bags.bags import PatchKind
from wsi_dbps.formats.attention import SlideAttention, attention_path
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.predictions import Prediction
from wsi_dbps.models.settings import AggregatorConfig, EncoderConfig
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.training.checkpoint import load_checkpoint, save_checkpoint
from wsi_dbps.training.settings import RunConfig

FORMATS = ("png", "ome-tiff", "geojson", "sheet", "csv")


def made_up(cache: PatchCache, classes: tuple[str, ...], checkpoint_fingerprint: str) -> SlideAttention:
    rng = np.random.default_rng(0)
    n, at_N2 = len(cache), cache.grid.origins_lv0 / [cache.grid.slide_lv0.width, cache.grid.slide_lv0.height]
    field_N = np.zeros(n)
    for _ in range(8):
        far_N = ((at_N2 - rng.random(2)) ** 2).sum(axis=1)
        field_N += rng.normal() * np.exp(-far_N / (2 * rng.uniform(0.03, 0.12) ** 2))
    logits_N = (4 * field_N + rng.normal(0, 0.5, n)).astype(np.float32)
    weights_N = np.exp(logits_N - logits_N.max())
    rank_N = np.argsort(np.argsort(-logits_N))
    role_N = np.where(rank_N < 16, 1, np.where(rank_N < 80, 2, 0)).astype(np.uint8)
    evidence_NC = np.outer(field_N, rng.normal(size=len(classes))) + rng.normal(0, 0.02, (n, len(classes)))
    shares = tuple((np.arange(1, len(classes) + 1) / np.arange(1, len(classes) + 1).sum()).tolist())
    return SlideAttention(
        cache.slide_id,
        Prediction(cache.slide_id, cache.slide_id, None, None, n, shares),
        classes,
        cache.grid,
        logits_N[:, None],
        weights_N / weights_N.sum(),
        role_N,
        cache.fingerprint,
        checkpoint_fingerprint,
        evidence_NC.astype(np.float32),
    )


def prepare(folder: Path, cache: PatchCache, num_classes: int) -> None:
    """A run of random weights, a manifest without paths, and attention, all in `folder`."""
    classes = tuple(f"class{i}" for i in range(num_classes))
    encoder, aggregator = EncoderConfig(name="small_gn", dim=16), AggregatorConfig(num_heads=2)
    config = RunConfig(encoder=encoder, aggregator=aggregator)
    model = SlideModel(num_classes, encoder, aggregator, config.selection, load_weights=False)
    kind = PatchKind(mpp_um=cache.grid.mpp_um, size_px=cache.grid.size_px)
    path = folder / "run" / "best.pt"
    save_checkpoint(path, model, config=config, classes=classes, patch_kind=kind, epoch=1, loop_state={})
    attention = made_up(cache, classes, load_checkpoint(path).fingerprint())
    attention.write(attention_path(folder / "pred", cache.slide_id))
    (folder / "cohort.csv").write_text(f"slide_id\n{cache.slide_id}\n")


def run(folder: Path, caches: Path, formats: tuple[str, ...], smooth_um: float) -> str:
    """Seconds and MiB of one call of the command."""
    wanted = [part for name in formats for part in ("--format", name)]
    folders = [
        "--caches",
        str(caches),
        "--predictions",
        str(folder / "pred"),
        "--out",
        str(folder / "maps"),
        "--split",
        "all",
    ]
    command = [sys.executable, "-c", "from wsi_dbps_cli.main import run; run()", "heatmap", str(folder / "run")]
    start = time.perf_counter()
    process = subprocess.Popen([*command, str(folder / "cohort.csv"), *folders, *wanted, "--smooth", str(smooth_um)])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {status}")
    seconds, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
    return f"{seconds:6.1f} s  {cpu:6.1f} s CPU  {used.ru_maxrss / 1024:6.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--smooth", type=float, default=0.0)
    a = parser.parse_args()
    cache = PatchCache(a.cache)
    print(f"{len(cache)} patches, slide {cache.grid.slide_lv0} px, {a.classes} classes, smoothed by {a.smooth:g} µm")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, cache, a.classes)
        for formats in (*((one,) for one in FORMATS), FORMATS):
            print(f"{' '.join(formats):<32}{run(folder, a.cache.parent, formats, a.smooth)}", flush=True)
        for path in sorted((folder / "maps").iterdir()):
            print(f"{path.name:<32}{path.stat().st_size / 1e6:6.1f} MB")


if __name__ == "__main__":
    main()
