"""A heatmap of one slide from cached attention, beside CLAM's way: whole processes in turn, and the ratio of pairs.

    python tests/bench/clam_heatmap.py SLIDE RUN COHORT.csv CACHES PRED --clam CHECKOUT --clam-python PYTHON

CLAM (github.com/mahmoodlab/CLAM, its `create_heatmaps.py` unmodified) segments the slide, cuts it, and extracts
features again: patches of 256 px of level 0 without overlap, its ResNet-50 up to the third stage at 224 px, 256 patches
at once, a CLAM_SB ("small") of random weights. It is asked for the least that gives a picture: one pass, and its block
map; not for what its template has beside that (overlap, for which it extracts a second time, patches of most
attention, a copy of the slide). It keeps the features of that pass beside its results, so a second call over the same
folder, which draws from them, is timed too.

Two things are changed from outside, neither of which costs it time: the encoder's weights are random (no download), and
where there is no GPU its classifier goes to the CPU instead of failing. Its results go to a fresh folder every time.

Ours draws SLIDE's PNG and GeoJSON; PRED is what `predict RUN COHORT.csv --caches CACHES --split all` wrote.
COHORT.csv names this slide only, by its file's name. The last row is ours from nothing: tile, predict and heatmap, by
RUN's own encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.models.encoders.build import build_encoder
from wsi_dbps.models.settings import EncoderConfig
from wsi_dbps.training.checkpoint import load_checkpoint

OURS = [sys.executable, "-c", "from wsi_dbps_cli.main import run; run()"]
TOOLS = ("ours", "CLAM", "CLAM from its features")
START = """\
import runpy, sys, timm, torch
create, to = timm.create_model, torch.nn.Module.to
timm.create_model = lambda *names, **given: create(*names, **{**given, "pretrained": False})
if not torch.cuda.is_available():
    torch.nn.Module.to = lambda module, *given: to(module, *("cpu" if where == "cuda" else where for where in given))
script = sys.argv[1]
sys.path.insert(0, script.rpartition("/")[0])
sys.argv = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""
CHECKPOINT = """\
import sys, torch
sys.path.insert(0, sys.argv[1])
from models.model_clam import CLAM_SB
torch.save(CLAM_SB(size_arg="small", dropout=0.0, n_classes=2, embed_dim=1024).state_dict(), sys.argv[2])
"""


def main() -> None:
    """Run both in turn, print a row of each run and the ratios, then ours from nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("slide", "run", "cohort", "caches", "pred"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--clam", type=Path, required=True, help="A checkout of CLAM.")
    parser.add_argument("--clam-python", default=sys.executable, help="A Python that has what CLAM imports.")
    parser.add_argument("--repeat", type=int, default=2)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, a.slide.resolve(), a.clam.resolve(), a.clam_python)
        seconds = []
        for _ in range(a.repeat):
            warm(a.slide)
            one = [ours(folder, a.run, a.cohort, a.caches, a.pred)]
            shutil.rmtree(folder / "clam", ignore_errors=True)
            one += [clam(folder, a.clam.resolve(), a.clam_python) for _ in range(2)]
            seconds.append(one)
            rows = zip(TOOLS, one, strict=True)
            print("; ".join(f"{tool} {s:.2f} s, {cpu_s:.2f} of CPU" for tool, (s, cpu_s) in rows), flush=True)
        report(a, folder, np.array(seconds))
        all_s = from_nothing(folder, a.run, a.cohort, a.caches / f"{a.slide.stem}.h5")
        print(f"ours from nothing, by {encoder(a.run)}: {all_s}")


def prepare(folder: Path, slide: Path, checkout: Path, python: str) -> None:
    """CLAM's configuration (JSON is YAML), its checkpoint, and a folder with a link to the slide."""
    (folder / "slides").mkdir()
    (folder / "slides" / slide.name).symlink_to(slide)
    (folder / "start.py").write_text(START)
    subprocess.run([python, "-c", CHECKPOINT, checkout, folder / "clam.pt"], check=True, stdout=subprocess.DEVNULL)
    out = folder / "clam"
    config = {
        "exp_arguments": {
            "n_classes": 2,
            "save_exp_code": "bench",
            "raw_save_dir": str(out / "raw"),
            "production_save_dir": str(out / "maps"),
            "batch_size": 256,
        },
        "data_arguments": {
            "data_dir": str(folder / "slides"),
            "process_list": None,
            "preset": str(checkout / "presets" / "bwh_biopsy.csv"),
            "slide_ext": slide.suffix,
            "label_dict": {"a": 0, "b": 1},
        },
        "patching_arguments": {"patch_size": 256, "overlap": 0.0, "patch_level": 0, "custom_downsample": 1},
        "encoder_arguments": {"model_name": "resnet50_trunc", "target_img_size": 224},
        "model_arguments": {
            "ckpt_path": str(folder / "clam.pt"),
            "model_type": "clam_sb",
            "initiate_fn": "initiate_model",
            "model_size": "small",
            "drop_out": 0.0,
            "embed_dim": 1024,
        },
        "heatmap_arguments": {
            "calc_heatmap": False,
            "use_ref_scores": False,
            "use_roi": False,
            "use_center_shift": True,
            "alpha": 0.4,
            "cmap": "jet",
        },
        "sample_arguments": {"samples": []},
    }
    (folder / "clam.yaml").write_text(json.dumps(config))


def clam(folder: Path, checkout: Path, python: str) -> tuple[float, float]:
    """Seconds, and of CPU, of one run."""
    command = [python, folder / "start.py", checkout / "create_heatmaps.py", "--config_file", folder / "clam.yaml"]
    return timed(command, folder, "Y\n")  # it asks whether to go on


def ours(folder: Path, run: Path, cohort: Path, caches: Path, pred: Path) -> tuple[float, float]:
    """Seconds, and of CPU, of one `heatmap` into a fresh folder."""
    shutil.rmtree(folder / "maps", ignore_errors=True)
    given = ["heatmap", run.resolve(), cohort.resolve(), "--caches", caches.resolve()]
    return timed([*OURS, *given, "--predictions", pred.resolve(), "--out", folder / "maps"], folder)


def from_nothing(folder: Path, run: Path, cohort: Path, cache: Path) -> str:
    """Seconds of `tile`, `predict` and `heatmap`, one after another."""
    kind = PatchCache(cache)
    size = ["--size", kind.grid.size_px, "--mpp", kind.grid.mpp_um]
    new, pred = folder / "caches", folder / "pred"
    tile_s, _ = timed([*OURS, "tile", cohort.resolve(), "--out", new, *size], folder)
    predict = ["predict", run.resolve(), cohort.resolve(), "--caches", new, "--split", "all", "--out", pred]
    predict_s, _ = timed([*OURS, *predict], folder)
    heatmap_s, _ = ours(folder, run, cohort, new, pred)
    all_s = tile_s + predict_s + heatmap_s
    return f"{all_s:.1f} s (tile {tile_s:.1f}, predict {predict_s:.1f}, heatmap {heatmap_s:.1f})"


def report(a: argparse.Namespace, folder: Path, seconds_P32: np.ndarray) -> None:
    """What was compared, and each against ours: medians, and the ratio of pairs with its range."""
    (clam_h5,) = (folder / "clam" / "raw").rglob(f"{a.slide.stem}.h5")
    with h5py.File(clam_h5) as file:
        patches, features = file["features"].shape
    drawn = [path.name for path in sorted((folder / "maps").iterdir()) if path.is_file()]
    pictures = sorted(path.name for path in (folder / "clam").rglob("*") if path.suffix in (".png", ".jpg"))
    print(f"ours: {len(PatchCache(a.caches / f'{a.slide.stem}.h5'))} patches; {', '.join(drawn)}")
    print(f"CLAM: {patches} patches of {features} features; {', '.join(pictures)}")
    ratios_P32 = seconds_P32 / seconds_P32[:, :1]
    for k, tool in enumerate(TOOLS):
        for what, s_P, ratio_P in zip(("s", "s of CPU"), seconds_P32[:, k].T, ratios_P32[:, k].T, strict=True):
            print(f"{tool}: {np.median(s_P):.2f} {what}, {np.median(ratio_P):.1f} times ours", end="")
            print(f" ({ratio_P.min():.1f} to {ratio_P.max():.1f}, {len(s_P)} pairs)")


def encoder(run: Path) -> str:
    """The name and size of a run's encoder."""
    config: EncoderConfig = load_checkpoint(run / "best.pt").config.encoder
    size = sum(p.numel() for p in build_encoder(config, load_weights=False).parameters())
    return f"{config.name} ({size / 1e6:.2f} M parameters)"


def timed(command: list[object], folder: Path, answer: str = "") -> tuple[float, float]:
    """Seconds, and of CPU with its children, of a whole process run in `folder`; its own words only if it fails."""
    parts, before, start = [str(part) for part in command], children_cpu_s(), time.perf_counter()
    done = subprocess.run(parts, check=False, cwd=folder, input=answer, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{parts}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    return seconds, children_cpu_s() - before


def children_cpu_s() -> float:
    """Seconds of CPU of all that ran under this process and has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def warm(path: Path) -> None:
    """Leave a file in memory."""
    with open(path, "rb") as file:
        while file.read(8 << 20):
            pass


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
