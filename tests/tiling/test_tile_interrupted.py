"""Whatever stops a run, what lies in the folder is whole."""

import glob
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.errors import OutputError
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.tiling.outcomes import Failed, Tiled
from wsi_dbps.tiling.tile_cohort import tile_cohort
from wsi_dbps.tiling.tile_slide import tile_slide

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")

# The kernel ends a process that writes a file beyond its limit, and Python gets no say: a kill at a chosen byte.
LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
"""
TILE = """
import sys
from pathlib import Path
from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.settings import build
from wsi_dbps.formats.spec import CacheSpec
from wsi_dbps.tiling.tile_slide import tile_slide
tiling = {{"mpp_um": 0.5, "size_px": 64, "min_tissue": 0.5}}
spec = build(CacheSpec, {{"tiling": tiling, "thumbnail_px": 350}}, "test")
tile_slide(SlideRecord("a", "p1", Path(sys.argv[1])), spec, Path(sys.argv[2]), overwrite={overwrite})
"""


def run_limited(slide: Path, out: Path, limit: int, overwrite: bool = False) -> int:
    """The exit status of a process that tiles a slide and may write no file longer than `limit` bytes."""
    code = LIMITED.format(limit=limit) + TILE.format(overwrite=overwrite)
    return subprocess.run([sys.executable, "-B", "-c", code, slide, out], check=False, timeout=60).returncode


@posix
def test_a_killed_run_leaves_no_cache_and_the_next_one_is_as_if_nothing_had_been(
    slide_path: Path, record, make_spec, cache_file: Path, tmp_path: Path
) -> None:
    whole = cache_file.read_bytes()
    assert run_limited(slide_path, tmp_path, int(0.97 * len(whole))) == -signal.SIGXFSZ
    assert glob.glob("*", root_dir=tmp_path) == ["a.h5.wsi-dbps-part"]
    assert isinstance(tile_slide(record, make_spec(), tmp_path), Tiled)
    assert glob.glob("*", root_dir=tmp_path) == ["a.h5"]
    found, expected = PatchCache(tmp_path / "a.h5"), PatchCache(cache_file)
    assert found.jpegs(range(len(found))) == expected.jpegs(range(len(expected)))


@posix
def test_killed_while_overwriting_the_old_cache_stays(slide_path: Path, cache_file: Path, tmp_path: Path) -> None:
    old = cache_file.read_bytes()
    (tmp_path / "a.h5").write_bytes(old)
    assert run_limited(slide_path, tmp_path, int(0.9 * len(old)), overwrite=True) == -signal.SIGXFSZ
    assert (tmp_path / "a.h5").read_bytes() == old


@posix
def test_sigkill_at_any_time_leaves_a_whole_cache_or_none(slide_path: Path, tmp_path: Path) -> None:
    code = TILE.format(overwrite=True).splitlines()
    code = "\n".join([*code[:-1], "print('go', flush=True)", "while True:", "    " + code[-1]])
    arguments = [sys.executable, "-B", "-c", code, slide_path, tmp_path]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"go\n"
        for _ in range(40):  # the file is replaced again and again: each look finds a whole one
            if (tmp_path / "a.h5").exists():
                cache = PatchCache(tmp_path / "a.h5")
                assert cache.patches([0, len(cache) - 1]).shape == (2, 64, 64, 3)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert set(glob.glob("*", root_dir=tmp_path)) <= {"a.h5", "a.h5.wsi-dbps-part"}
    if (tmp_path / "a.h5").exists():
        cache = PatchCache(tmp_path / "a.h5")
        cache.patches(range(len(cache)))


@posix
def test_a_file_that_may_not_grow_is_named_and_the_old_one_stays(
    slide_path: Path, cache_file: Path, tmp_path: Path
) -> None:
    old = cache_file.read_bytes()
    (tmp_path / "a.h5").write_bytes(old)
    limit = LIMITED.replace("SIG_DFL", "SIG_IGN").format(limit=int(0.9 * len(old)))
    code = limit + TILE.format(overwrite=True)
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, slide_path, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1].endswith(f"OutputError: {tmp_path}/a.h5: cannot be written: File too large")
    assert (tmp_path / "a.h5").read_bytes() == old
    assert glob.glob("*", root_dir=tmp_path) == ["a.h5"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """Mounts disks of so many KiB, where this process may."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        path = tmp_path / f"disk{kib}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(path)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a small disk")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


@posix
def test_a_disk_too_small_at_any_stage_is_named_and_left_clean(
    record: SlideRecord, make_spec, small_disk, cache_file: Path
) -> None:
    kib = cache_file.stat().st_size // 1024
    for size in (4, kib // 3, kib * 3 // 4, kib + 8, kib * 3 // 2):
        disk = small_disk(size)
        (disk / "note").write_text("here before")
        with pytest.raises(OutputError) as caught:
            tile_slide(record, make_spec(), disk)
        assert str(caught.value) == f"{disk}/a.h5: cannot be written: No space left on device"
        assert glob.glob("*", root_dir=disk) == ["note"]
    assert isinstance(tile_slide(record, make_spec(), small_disk(3 * kib)), Tiled)


@posix
@pytest.mark.parametrize("command", ["tile", "tile with one slide", "export jpeg", "export png", "export tar"])
def test_a_command_on_a_full_disk_ends_with_2_in_one_line_and_nothing_torn(
    wsi_dbps, slide_path: Path, small_disk, tmp_path: Path, cache_file: Path, command: str
) -> None:
    caches = tmp_path / "caches"
    caches.mkdir()
    (caches / "a.h5").write_bytes(cache_file.read_bytes())
    num_slides = 1 if command == "tile with one slide" else 3
    rows = "".join(f"s{i},{slide_path}\n" for i in range(num_slides))
    (tmp_path / "cohort.csv").write_text(f"slide_id,path\n{rows}")
    kib = cache_file.stat().st_size // 1024
    sizes = [4, kib - 8]  # too small for one slide
    if num_slides == 3 and command == "tile":
        sizes = [kib * 3 // 4, kib * 5 // 4]  # and for two
    for size in sizes:
        disk = small_disk(size)
        if command.startswith("tile"):
            done = wsi_dbps("tile", tmp_path / "cohort.csv", "--out", disk, "--size", 64, "--workers", 2)
        else:
            done = wsi_dbps("export", caches, "--out", disk, "--format", command.split()[1])
        assert done.code == 2, (size, done)
        assert re.fullmatch(rf"wsi-dbps: {disk}/\S+: cannot be written: No space left on device\n", done.err), size
        for name in glob.glob("*", root_dir=disk):
            if name.endswith(".h5"):
                cache = PatchCache(disk / name)
                cache.patches(range(len(cache)))
            else:
                assert name in ("tiling.csv", "s0.h5.wsi-dbps-part", "s1.h5.wsi-dbps-part", "s2.h5.wsi-dbps-part"), name


def test_a_cohort_goes_on_past_the_slides_that_fail(record, make_spec, tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_text("hello")
    records = [record, SlideRecord("bad", "bad", tmp_path / "bad.svs"), SlideRecord("c", "c", record.path)]
    outcomes = {
        o.slide_id: o
        for o in tile_cohort(records, make_spec(), tmp_path / "out", new_executor=ThreadPoolExecutor, workers=2)
    }
    assert sorted(glob.glob("*", root_dir=tmp_path / "out")) == ["a.h5", "c.h5"]
    assert outcomes["bad"].error == (
        f"bad: {tmp_path}/bad.svs: not a slide: neither OpenSlide nor tiffslide knows the format"
    )
    assert outcomes["a"].num_patches == outcomes["c"].num_patches > 0


def test_a_full_disk_ends_the_cohort(record, make_spec, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=r"a.h5: cannot be written"):
        list(tile_cohort([record], make_spec(), tmp_path / "out", new_executor=ThreadPoolExecutor, workers=1))


@posix
def test_a_slide_that_kills_its_process_is_named_and_the_others_are_done(record, make_spec, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=0)
    deadly = SlideRecord("deadly", "d", tmp_path / "noise.png", mpp_um=0.5)
    records = [deadly, *(SlideRecord(name, name, record.path) for name in "abc")]
    limit = LIMITED.format(limit=500_000)  # below what `deadly` needs, above the others
    pool = partial(ProcessPoolExecutor, mp_context=get_context("forkserver"), initializer=exec, initargs=(limit, {}))
    found = list(tile_cohort(records, make_spec(tissue="none"), tmp_path / "out", new_executor=pool, workers=2))
    assert sorted(o.slide_id for o in found) == ["a", "b", "c", "deadly"]
    errors = {o.slide_id: o.error for o in found if isinstance(o, Failed)}
    assert errors == {
        "deadly": f"deadly: {tmp_path}/noise.png: the process that tiled it was killed, perhaps for want of memory, or "
        "crashed in the slide's decoder; try it alone, or with another --reader"
    }
    assert sorted(glob.glob("*.h5", root_dir=tmp_path / "out")) == [
        "a.h5",
        "b.h5",
        "c.h5",
    ]
