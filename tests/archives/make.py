"""Makes a folder of every file that wsi-dbps writes, for tests/test_archives.py to read with later code.

    python tests/archives/make.py tests/archives/NEW

`0.2` was made by commit 0332151. Only commands are called, so this script also runs with a later package. What the
commands wrote is changed in two ways: checkpoints are packed with xz, and the names of the machine and its folders are
taken out.
"""

from __future__ import annotations

import csv
import hashlib
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import torch

SPLITS = ("train",) * 4 + ("val",) * 2 + ("test",) * 4
FOLDS = {"train": 2, "val": 1, "test": 0}
LESION_PX = (24, 24, 104, 104)  # left, top, right, bottom in level-0 pixels
MODEL = (
    *("--set", "encoder.name=small_gn", "--set", "encoder.weights=weights.pth", "--set", "encoder.dim=16"),
    *("--set", "aggregator.num_heads=2", "--set", "optimizer.lr=1e-2", "--set", "training.device=cpu"),
    *("--set", "selection.num_salient=3", "--set", "selection.num_subsalient=5", "--set", "selection.chunk_size=8"),
    *("--set", "selection.drop_rate=0.2", "--set", "selection.exploration=0.5", "--set", "training.epochs=2"),
    *("--set", "training.batch_slides=1", "--set", "training.save_every_minutes=0"),
)
FEATURE_MODEL = (
    *("--set", "encoder.name=projector", "--set", "encoder.dim=8", "--set", "aggregator.num_heads=2"),
    *("--set", "selection.preset=dbps+", "--set", "selection.num_salient=3", "--set", "training.epochs=2"),
    *("--set", "aggregator.position=sinusoidal", "--set", "training.ema=0.5", "--set", "training.device=cpu"),
    *("--set", "training.seed=2"),
)


def slide_image(index: int) -> np.ndarray:
    """(160, 192, 3) uint8: glass, pink tissue, violet nuclei; slides of odd index have a lesion of larger nuclei."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:160, :192]
    shade = 8 * np.sin(x / 23 + index) + 8 * np.cos(y / 17 - index)
    image = np.full((160, 192, 3), 242.0)
    tissue = (x - 92) ** 2 / 88**2 + (y - 78) ** 2 / 74**2 < 1
    image[tissue] = (np.array([215, 150, 190]) + shade[..., None])[tissue]
    left, top, right, bottom = LESION_PX
    for cx, cy in rng.integers(0, (192, 160), (110, 2)):
        inside = index % 2 == 1 and left <= cx < right and top <= cy < bottom
        nucleus = ((x - cx) ** 2 + (y - cy) ** 2 < (5.5 if inside else 2.5) ** 2) & tissue
        image[nucleus] = (110, 70, 150)
    return image.astype(np.uint8)


def write_slide(path: Path, image: np.ndarray) -> None:
    """A pyramid of JPEG tiles of 32 px at 4 µm per pixel, with a second level at 8 µm."""
    with tifffile.TiffWriter(path) as out:
        for step in (1, 2):
            out.write(
                image[::step, ::step],
                photometric="rgb",
                subsampling=(2, 2),
                compression="jpeg",
                compressionargs={"level": 80, "outcolorspace": "ycbcr"},
                tile=(32, 32),
                subfiletype=int(step > 1),
                resolution=(2500 / step, 2500 / step),
                resolutionunit="CENTIMETER",
                metadata=None,
                software=False,
            )


def write_cohort(folder: Path) -> None:
    """Slides, annotations of the lesions, and cohort.csv."""
    (folder / "slides").mkdir()
    left, top, right, bottom = LESION_PX
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    lesion = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (folder / "lesion.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [lesion]}))
    rows = [("slide_id", "case_id", "path", "label", "split", "fold", "annotations")]
    for i, split in enumerate(SPLITS):
        write_slide(folder / "slides" / f"s{i}.tif", slide_image(i))
        label, annotations = ("tumour", "lesion.geojson") if i % 2 else ("normal", "")
        rows.append((f"s{i}", f"c{i}", f"slides/s{i}.tif", label, split, str(FOLDS[split]), annotations))
    for name, some in (("cohort.csv", rows), ("one.csv", [rows[0], rows[7]])):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(some)


def write_weights(path: Path) -> None:
    """Weights for `small_gn` of which most are zero and stay so: checkpoints of 2 MB are packed into some 50 kB.

    Whole groups of channels are off: their convolution is zero and their bias negative, so that after the ReLU they
    have neither output nor gradient.
    """
    torch.manual_seed(7)
    state, before, used_before = {}, 3, 3
    for i, channels in enumerate((24, 48, 96, 128)):
        used = channels // 8  # one of eight groups
        kernel = torch.zeros(channels, before, 3, 3)
        kernel[:used, :used_before] = torch.randn(used, used_before, 3, 3) / (used_before * 4.5) ** 0.5
        bias = torch.full((channels,), -1.0)
        bias[:used] = 0
        state |= {f"{1 + 3 * i}.weight": kernel, f"{2 + 3 * i}.weight": torch.ones(channels), f"{2 + 3 * i}.bias": bias}
        before, used_before = channels, used
    torch.save(state, path)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "wsi_dbps_cli.main", *arguments]


def wsi_dbps(*arguments: str) -> None:
    print("wsi-dbps", *arguments, flush=True)
    subprocess.run(command(*arguments), check=True)


def train_until_the_midst_of_epoch_2(*arguments: str, out: Path) -> None:
    """Train into `out` and end it by SIGTERM; again until last.pt lies in the first half of the second epoch."""
    for _ in range(50):
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(command("train", *arguments, "--out", str(out)))
        while process.poll() is None and progress(out / "last.pt") < (1, 1):
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        if process.wait() == 143 and progress(out / "last.pt")[0] == 1 and 1 <= progress(out / "last.pt")[1] <= 2:
            return
    raise SystemExit("no run was stopped in the midst of epoch 2")


def progress(last: Path) -> tuple[int, int]:
    """Epochs done, and steps of the next."""
    if not last.exists():
        return 0, 0
    content = torch.load(last, weights_only=True)
    return content["epoch"], content["loop"]["epoch"]["step"]


def without(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in folder.rglob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def fill(folder: Path) -> None:
    """Call every command that writes files; the working folder is `folder`."""
    write_cohort(folder)
    write_weights(folder / "weights.pth")
    run, old = "run", ("cohort.csv", "--caches", "caches")
    wsi_dbps("tile", "cohort.csv", "--out", "caches", "--qc", "--mpp", "6", "--size", "24", "--no-sheet")
    wsi_dbps("tile", "one.csv", "--out", "caches_given", "--coords", "caches", "--no-sheet")
    copied = ("--codec", "copy", "--mpp", "4", "--size", "32", "--no-sheet")
    wsi_dbps("tile", "one.csv", "--out", "caches_copied", *copied)

    wsi_dbps("train", *old, "--out", run, *MODEL)
    train_until_the_midst_of_epoch_2(*old, *MODEL, out=folder / "run_stopped")
    shutil.copytree(folder / run, folder / "run_raised")
    wsi_dbps("train", *old, "--out", "run_raised", "--resume", "--set", "training.epochs=3")
    without(folder / "run_raised", "best.pt", "last.pt")

    wsi_dbps("predict", run, *old, "--out", "predictions")
    wsi_dbps("predict", run, *old, "--split", "val", "--out", "predictions_val")
    wsi_dbps("evaluate", "predictions", "--val", "predictions_val", "--bootstrap", "50", "--out", "report")
    wsi_dbps("localise", "predictions", *old, "--val", "predictions_val", "--bootstrap", "50", "--out", "report")
    wsi_dbps("faithfulness", run, *old, "--out", "report", "--orders", "2", "--seeds", "2")
    formats = ("--format", "csv", "--format", "geojson")
    wsi_dbps("heatmap", run, *old, "--predictions", "predictions", "--out", "heatmaps", *formats)
    wsi_dbps("atlas", run, "--caches", "caches", "--out", "atlas")
    wsi_dbps("export", "caches/s6.h5", "--format", "tar", "--out", "exported", "--max", "4", "--labels", "one.csv")
    wsi_dbps("export", "caches/s7.h5", "--format", "jpeg", "--out", "exported_folders", "--max", "4")

    wsi_dbps("embed", *old, "--run", run, "--out", "features", "--device", "cpu")
    for layout in ("pt", "stamp"):
        one = ("one.csv", "--caches", "caches", "--run", run, "--out", f"features_{layout}")
        wsi_dbps("embed", *one, "--format", layout, "--device", "cpu")
    features = ("cohort.csv", "--caches", "features")
    wsi_dbps("train", *features, "--out", "run_folds", "--folds", "all", *FEATURE_MODEL)
    wsi_dbps("predict", "run_folds", *features, "--out", "predictions_folds", "--folds", "all")
    wsi_dbps("evaluate", "predictions_folds", "--bootstrap", "50", "--out", "report_folds")
    wsi_dbps("predict", "run_folds", *features, "--out", "predictions_ensemble", "--split", "test")
    wsi_dbps("compare", "predictions", "predictions_ensemble", "--bootstrap", "50", "--out", "report")
    without(folder, "tensorboard", "report.html", "*.png", "weights.pth", "slides/s[!6].tif")


def pack(folder: Path) -> None:
    """Pack checkpoints, and take out what tells where the archive was made."""
    for path in folder.rglob("*.pt"):
        if path.name in ("best.pt", "last.pt"):
            path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes()))
            path.unlink()
    for path in [*folder.rglob("*.json"), *folder.rglob("*.csv")]:
        before = path.read_bytes()
        after = before.replace(str(folder).encode(), b"/archive")
        after = re.sub(rb'"platform": "[^"]*"', b'"platform": "removed"', after)
        if after != before:
            path.write_bytes(after)
            replace_digest(path.parent / ".wsi-dbps-files", before, after)
    for path in folder.rglob(".wsi-dbps-files"):
        path.write_text(re.sub(r"process \d+ on \S+", "process 1 on host", path.read_text()))
    for path in folder.rglob("*"):
        if path.is_file() and (str(folder).encode() in path.read_bytes()):
            raise SystemExit(f"{path} names the folder in which it was made")


def replace_digest(record: Path, before: bytes, after: bytes) -> None:
    """Have the folder's record know a file as it is now: one that was edited would not be replaced."""
    old, new = (hashlib.blake2b(content, digest_size=8).hexdigest() for content in (before, after))
    text = record.read_text()
    if old not in text:
        raise SystemExit(f"{record} has no digest {old}")
    record.write_text(text.replace(old, new))


def main() -> None:
    target = Path(sys.argv[1]).absolute()
    if target.exists():
        raise SystemExit(f"{target} is there already")
    os.environ |= {"OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "0"}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work).resolve() / "archive"
        folder.mkdir()
        os.chdir(folder)
        fill(folder)
        pack(folder)
        os.chdir(target.parent)
        shutil.copytree(folder, target)


if __name__ == "__main__":
    main()
