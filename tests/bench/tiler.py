"""`wsi-dbps tile` beside hs2p on one slide: whole processes, start included, in turn, and the ratio of paired runs.

    python tests/bench/tiler.py SLIDE --hs2p /path/to/hs2p --mpp 0.25 --size 256 --repeat 3

hs2p reads with OpenSlide, finds tissue by its defaults, and writes a TAR of tiles with TurboJPEG and 2 workers; its
previews are off. Ours runs with 2 workers and its defaults. The two find a little more or less tissue, so time is given
per patch as well. Also: `--codec reader` (OpenSlide and an encoder alone), and `cp` of the finished cache (which it
does not sync). Before each run the slide is read, and a file of its size is written and
removed: on virtual machines, memory that the guest has not touched for a while comes from the host at 0.3 GB/s, which
would be all that is measured.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from wsi_dbps.formats.patch_cache import PatchCache

CONFIG = """\
csv: {csv}
output_dir: {out}
save_tiles: true
tiling:
  backend: openslide
  mask_backend: openslide
  params: {{requested_spacing_um: {mpp}, requested_tile_size_px: {size}, overlap: 0.0}}
  preview: {{save_mask_preview: false, save_tiling_preview: false}}
speed: {{num_workers: 2, jpeg_backend: turbojpeg}}
wandb: {{enable: false}}
"""


def main() -> None:
    """Run, in turn, and print a row per tool and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--hs2p", help="The hs2p command; without it only ours is timed.")
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--reader", action="store_true", help="Also time --codec reader.")
    options = parser.parse_args()
    tools = ["ours", *(["reader"] if options.reader else []), *(["hs2p"] if options.hs2p else []), "cp"]
    found: dict[str, list[tuple[float, int, float]]] = {tool: [] for tool in tools}
    with tempfile.TemporaryDirectory(dir=options.slide.parent) as folder:
        for _ in range(options.repeat):
            for tool in tools:
                found[tool].append(timed(tool, options, Path(folder)))
                print(tool, "{:.2f} s, {} patches, {:.0f} MB peak".format(*found[tool][-1]), flush=True)
    for tool in tools:
        seconds, patches, memory = (np.median([run[k] for run in found[tool]]) for k in range(3))
        print(f"{tool:<8} {seconds:7.2f} s {patches:8.0f} patches {patches / seconds:9.0f}/s {memory:6.0f} MB", end="")
        pairs = zip(found[tool], found["ours"], strict=True)
        ratios = [(run[0] / run[1]) / (our[0] / our[1]) for run, our in pairs]
        print(f"  {np.median(ratios):6.2f} x ours per patch ({min(ratios):.2f} to {max(ratios):.2f})")


def timed(tool: str, options: argparse.Namespace, folder: Path) -> tuple[float, int, float]:
    """(seconds, patches, MB of the largest process) of one run."""
    slide, out = options.slide.resolve(), folder / tool
    if out.exists() and tool != "cp":
        shutil.rmtree(out)
    csv = folder / "cohort.csv"
    settings = ["--mpp", str(options.mpp), "--size", str(options.size), "--workers", "2"]
    if tool == "hs2p":
        csv.write_text(f"sample_id,image_path\na,{slide}\n")
        config = folder / "hs2p.yaml"
        config.write_text(CONFIG.format(csv=csv, out=out, mpp=options.mpp, size=options.size))
        command = [options.hs2p, "--skip-datetime", str(config)]
    elif tool == "cp":
        cache = folder / "ours" / "a.h5"
        (folder / "copy.h5").unlink(missing_ok=True)
        command = ["cp", str(cache), str(folder / "copy.h5")]
    else:
        csv.write_text(f"slide_id,path\na,{slide}\n")
        command = ["wsi-dbps", "tile", str(csv), "--out", str(out), *settings]
        command += ["--codec", "reader"] if tool == "reader" else []
    warm(slide, folder / "warm")
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    memory = peak_mb(process)
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"{command}: {process.stderr.read().decode()[-2000:]}")
    if tool == "hs2p":
        with tarfile.open(next(out.rglob("*.tar"))) as tar:
            return seconds, sum(name.endswith((".jpg", ".jpeg")) for name in tar.getnames()), memory
    return seconds, len(PatchCache(folder / ("ours" if tool == "cp" else tool) / "a.h5")), memory


def warm(slide: Path, beside: Path) -> None:
    """Leave the slide in memory, and as much memory free that the machine has at hand."""
    with open(slide, "rb") as file, open(beside, "wb") as copy:
        shutil.copyfileobj(file, copy, 8 << 20)
    beside.unlink()


def peak_mb(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process; the largest sum of the memory of it and its children, shared pages counted once."""
    peak = 0.0
    while process.poll() is None:
        total = 0
        for pid in tree(process.pid):
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except (OSError, ProcessLookupError):
                continue
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        peak = max(peak, total / 1024)
        time.sleep(0.05)
    return peak or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in below for p in tree(int(child)))]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
