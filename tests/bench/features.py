"""Features, measured: embedding against the encoder alone, and a training step on a bag of 250,000 features.

python tests/bench/features.py embed [--patches 512] [--size 256]
python tests/bench/features.py step [--patches 250000] [--dim 512] [--kept 4096]
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from wsi_dbps.bags.bags import CacheBag, PatchReader
from wsi_dbps.cohort.cohort import Cohort, SlideRecord
from wsi_dbps.dbps.drop import draw_kept
from wsi_dbps.formats.features import FeatureFile
from wsi_dbps.formats.spec import CacheSpec, TilingSpec
from wsi_dbps.inference.embed import embed
from wsi_dbps.models.encoders import build_encoder
from wsi_dbps.models.settings import AggregatorConfig, EncoderConfig, SelectionConfig
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.synth.pyramid import write_aperio
from wsi_dbps.tiling.outcomes import Tiled
from wsi_dbps.tiling.tile_slide import tile_slide


def rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def bench_embed(folder: Path, patches: int, size: int) -> None:
    rng = np.random.default_rng(0)
    across, down = 16, patches // 16
    coarse = rng.integers(60, 220, (down * size // 8, across * size // 8, 3), dtype=np.uint8)
    image = coarse.repeat(8, 0).repeat(8, 1)
    write_aperio(folder / "a.svs", image, mpp_um=1.0, tile_px=256, quality=90)
    record = SlideRecord(slide_id="a", case_id="a", path=folder / "a.svs")
    spec = CacheSpec(tiling=TilingSpec(mpp_um=1.0, size_px=size, tissue="none", min_tissue=0.0))
    assert isinstance(tile_slide(record, spec, folder / "caches"), Tiled)
    config = EncoderConfig(name="resnet18", pretrained=False)
    torch.manual_seed(0)
    encoder = build_encoder(config).eval()
    pixels = torch.randint(0, 256, (64, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        encoder(pixels)
        start = time.monotonic()
        for _ in range(max(1, patches // 64)):
            encoder(pixels)
        alone = max(1, patches // 64) * 64 / (time.monotonic() - start)
    start = time.monotonic()
    result = embed(config, Cohort.of([record]), folder / "caches", folder / "out", batch=64, device="cpu")
    whole = result.num_patches / (time.monotonic() - start)
    print(f"resnet18, {size} px, {result.num_patches} patches: the encoder alone {alone:.1f}/s, embed {result.speed}")
    print(f"with opening, writing and building the encoder {whole:.1f}/s: {whole / alone:.2f} of the encoder alone")


def bench_step(folder: Path, patches: int, dim: int, kept: int) -> None:
    rng = np.random.default_rng(0)
    for name, chunks in (("contiguous (ours, STAMP)", None), ("chunks (32, D) (CLAM)", (32, dim)),
                         ("chunks (1, D) (TRIDENT)", (1, dim))):  # fmt: skip
        path = folder / "a.h5"
        with h5py.File(path, "w") as file:
            rows = file.create_dataset("features", (patches, dim), np.float32, chunks=chunks)
            for start in range(0, patches, 10_000):
                stop = min(start + 10_000, patches)
                rows[start:stop] = rng.normal(size=(stop - start, dim))
            file["coords"] = np.zeros((patches, 2), np.int64)
        torch.manual_seed(0)
        selection = SelectionConfig(num_salient=16, num_subsalient=64, num_kept=kept, chunk_size=512)
        encoder = EncoderConfig(name="projector", dim=512, num_features=dim)
        model = SlideModel(2, encoder, AggregatorConfig(), selection).train()
        reader = PatchReader(2)
        bag = CacheBag(SlideRecord(slide_id="a", case_id="a"), FeatureFile(path), reader)
        draws, times, before = torch.Generator().manual_seed(0), [], rss_mib()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        for _ in range(5):
            start_s = time.monotonic()
            chosen = model.select(bag, draw_kept(patches, kept, draws), draws)
            torch.nn.functional.cross_entropy(model([chosen]), torch.tensor([1])).backward()
            times.append(time.monotonic() - start_s)
        reader.close()
        size = patches * dim * 4 / 2**20
        (peak,) = (int(x.split()[1]) / 1024 for x in Path("/proc/self/status").read_text().split("\n") if "VmHWM" in x)
        print(
            f"{name}: a step {sorted(times)[2]:.3f} s, RSS {before:.0f}, peak {peak:.0f} MiB; the file {size:.0f} MiB"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("embed", "step"))
    parser.add_argument("--patches", type=int)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--kept", type=int, default=4096)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if given.what == "embed":
            bench_embed(Path(name), given.patches or 512, given.size)
        else:
            bench_step(Path(name), given.patches or 250_000, given.dim, given.kept)
