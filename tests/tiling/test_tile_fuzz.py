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
from wsi_dbps.tiling.outcomes import Failed
from wsi_dbps.tiling.tile_slide import tile_slide

VARIANTS = int(os.environ.get("WSI_DBPS_FUZZ", "20"))
KILLS = int(os.environ.get("WSI_DBPS_KILLS", "2"))


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
@pytest.mark.parametrize(
    "name",
    [
        None,
        pytest.param("CMU-1-Small-Region.svs", marks=pytest.mark.slow),
        "OS-1-detail.ome.tif",
        pytest.param("test3-DAPI-2-387.ndpi", marks=pytest.mark.slow),
    ],
)
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
        if isinstance(outcome, Failed):
            assert outcome.traceback is None, outcome.traceback
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
from wsi_dbps.workflows.tile import tile
tile(sys.argv[1], sys.argv[2], size=64, tissue="none", min_tissue=0, codec="jpeg", workers=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_after_kills_one_run_makes_what_an_unbroken_run_makes_and_keeps_what_was_finished(tmp_path: Path) -> None:
    """Each run is killed as soon as it has finished one more slide, while its workers are at others.

    `WSI_DBPS_KILLS=9` for a longer search.
    """
    rng, out = np.random.default_rng(0), tmp_path / "out"
    rows = ["slide_id,path"]
    for i in range(KILLS + 4):
        image = rng.integers(60, 200, (512, 640, 3), dtype=np.uint8)
        write_aperio(tmp_path / f"s{i}.svs", image, mpp_um=0.5, tile_px=64, quality=80)
        rows.append(f"s{i},s{i}.svs")
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")

    def start() -> subprocess.Popen:
        arguments = [sys.executable, "-c", RUN, tmp_path / "cohort.csv", out]
        return subprocess.Popen(arguments, start_new_session=True)

    finished: dict[str, tuple[int, int]] = {}
    for _ in range(KILLS):
        process = start()
        while process.poll() is None and len(list(out.glob("*.h5"))) <= len(finished):
            time.sleep(0.005)
        assert process.returncode is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("*.h5")}
        assert finished.items() < now.items()
        finished = now
    assert start().wait() == 0
    names = [f"s{i}.h5" for i in range(KILLS + 4)]
    assert sorted(os.listdir(out)) == [".wsi-dbps-files", "contact-sheet.html", *names, "tiling.csv"]
    for name in names:
        alone = tmp_path / "alone" / name
        spec = build(CacheSpec, {"tiling": {"size_px": 64, "tissue": "none", "min_tissue": 0}, "codec": "jpeg"}, "test")
        tile_slide(SlideRecord(alone.stem, alone.stem, tmp_path / f"{alone.stem}.svs"), spec, alone.parent)
        assert (out / name).read_bytes() == alone.read_bytes()
        if name in finished:
            assert finished[name] == ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns)
