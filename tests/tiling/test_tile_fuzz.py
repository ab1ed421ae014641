"""Files cut short and with wrong bits, and runs killed at any moment: no wrong cache, no crash, nothing left behind."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.errors import UnreadableSlideError
from wsi_dbps.core.geometry import Region
from wsi_dbps.core.settings import build
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.spec import CacheSpec
from wsi_dbps.slides.open import open_slide
from wsi_dbps.synth.pyramid import write_aperio
from wsi_dbps.tiling.tile_slide import tile_slide

VARIANTS = int(os.environ.get("WSI_DBPS_FUZZ", "40"))
KILLS = int(os.environ.get("WSI_DBPS_KILLS", "4"))


def variants(path: Path, count: int, seed: int):
    """Yields damaged contents: cut short, wrong bits, blocks of zeros or of noise; half of them near an end."""
    whole, rng = path.read_bytes(), random.Random(seed)
    for i in range(count):
        content = bytearray(whole)
        kind = ("cut", "bit", "bits", "zeros", "noise")[i % 5]
        near_an_end = rng.choice((rng.randrange(4096), -rng.randrange(1, 4096)))
        place = (near_an_end if rng.random() < 0.5 else rng.randrange(len(whole))) % len(whole)
        if kind == "cut":
            del content[place:]
        elif kind in ("bit", "bits"):
            for _ in range(1 if kind == "bit" else 30):
                content[place] ^= 1 << rng.randrange(8)
                place = rng.randrange(len(whole))
        else:
            block = bytes(512) if kind == "zeros" else rng.randbytes(512)
            content[place : place + 512] = block[: len(whole) - place]
        yield kind, bytes(content)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # tiffslide leaves a file open that it fails to open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", [None, "CMU-1-Small-Region.svs", "OS-1-detail.ome.tif", "test3-DAPI-2-387.ndpi"])
def test_a_damaged_slide_is_refused_or_its_cache_shows_what_its_file_shows(request, tmp_path: Path, name) -> None:
    """`WSI_DBPS_FUZZ=500` for a long search."""
    if name is None:
        source = tmp_path / "synthetic.svs"
        image = np.random.default_rng(0).integers(60, 200, (400, 500, 3), dtype=np.uint8)
        write_aperio(source, image, mpp_um=0.5, tile_px=64, quality=80)
    else:
        source = request.getfixturevalue("real_data") / "slides" / name
    with open_slide(source) as slide:
        mpp = slide.info.mpp_um
        from wsi_dbps.slides.jpeg_tiles import jpeg_levels

        [level, *_] = jpeg_levels(source, slide.info)
    side = 512 if isinstance(level, str) else level.tile_px
    asked = {"mpp_um": mpp, "size_px": side, "tissue": "none", "min_tissue": 0.0}
    spec = build(CacheSpec, {"tiling": asked, "max_damaged": 0.2}, "test")
    path, good = tmp_path / ("damaged" + source.suffix), 0
    for number, (_kind, content) in enumerate(variants(source, VARIANTS, seed=1)):
        path.write_bytes(content)
        out = tmp_path / f"out{number}"
        outcome = tile_slide(SlideRecord("a", "a", path), spec, out)
        assert outcome.traceback is None, outcome.traceback
        if outcome.error is not None:
            assert "\n" not in outcome.error
            assert not list(out.glob("*"))
            continue
        cache = PatchCache(outcome.path)
        patches, scale = cache.patches(range(len(cache))), cache.grid.tile_lv0 / cache.grid.size_px
        with open_slide(path, cache.facts.reader) as slide:
            for (x, y), patch in list(zip(cache.grid.origins_lv0.tolist(), patches, strict=True))[
                :: max(1, len(cache) // 25)
            ]:
                if cache.facts.pixel_path != "copy" or scale != 1:
                    continue
                try:
                    seen = slide.read(Region(0, x, y, side, side))
                except UnreadableSlideError:
                    continue  # the decoder below is stricter than JPEG asks
                np.testing.assert_array_equal(patch, seen)
        good += 1
    assert good > VARIANTS // 20  # wrong bits in pixels are most of the file: the test must not pass by refusing all


RUN = """
import sys
from pathlib import Path
from wsi_dbps_cli.main import run
sys.argv = ["wsi-dbps", "tile", sys.argv[1], "--out", sys.argv[2], "--mpp", "0.5", "--size", "64", "--workers", "2",
            "--tissue", "none", "--min-tissue", "0", "--codec", sys.argv[3]]
run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("codec", ["auto", "jpeg"])
def test_after_kills_at_any_moment_one_run_makes_what_an_unbroken_run_makes(tmp_path: Path, codec: str) -> None:
    """`WSI_DBPS_KILLS=50` for a long search."""
    rng = np.random.default_rng(0)
    rows = ["slide_id,path"]
    for i in range(12):
        image = rng.integers(60, 200, (512, 640, 3), dtype=np.uint8)
        write_aperio(tmp_path / f"s{i}.svs", image, mpp_um=0.5, tile_px=64, quality=80)
        rows.append(f"s{i},s{i}.svs")
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(folder: str) -> subprocess.Popen:
        (tmp_path / folder).mkdir(exist_ok=True)
        arguments = [sys.executable, "-c", RUN, tmp_path / "cohort.csv", "out", codec]
        options = {"env": environment, "cwd": tmp_path / folder, "stdout": subprocess.DEVNULL}
        return subprocess.Popen(arguments, start_new_session=True, **options)

    begin = time.monotonic()
    assert start("unbroken").wait() == 0
    seconds = time.monotonic() - begin
    moments, out = random.Random(0), tmp_path / "killed" / "out"
    for _ in range(KILLS):
        process = start("killed")
        time.sleep(moments.uniform(0.3, 1.0) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in out.glob("*.h5"):
            PatchCache(path).patches([0])
    time.sleep(0.2)
    assert start("killed").wait() == 0
    expected = sorted(os.listdir(tmp_path / "unbroken" / "out"))
    assert sorted(os.listdir(out)) == expected
    for name in expected:
        if name.endswith(".h5"):
            assert (out / name).read_bytes() == (tmp_path / "unbroken" / "out" / name).read_bytes()
