"""Several processes and machines at one folder: no slide is tiled twice, and a stuck one takes nothing with it."""

import glob
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core import files
from wsi_dbps.core.errors import ConfigError
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.tiling.executors import in_processes, on_cluster
from wsi_dbps.tiling.outcomes import Busy, Failed, Tiled
from wsi_dbps.tiling.tile_cohort import tile_cohort
from wsi_dbps.tiling.tile_slide import tile_slide

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks and signals")

HOLD = """
import sys, time
from pathlib import Path
from wsi_dbps.core.files import claimed
with claimed(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half of it")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that is at `a.h5`, until it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "a.h5"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@posix
def test_a_slide_that_another_process_is_at_is_left_alone(holder, record, make_spec, tmp_path: Path) -> None:
    outcome = tile_slide(record, make_spec(), tmp_path, wait=False)
    assert outcome == Busy("a")
    assert (tmp_path / "a.h5.wsi-dbps-part").read_bytes() == b"half of it"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert tile_slide(record, make_spec(), tmp_path, wait=False).num_patches > 0
    assert glob.glob("*", root_dir=tmp_path) == ["a.h5"]


@posix
def test_a_cohort_waits_for_such_a_slide_at_its_end(holder, record, make_spec, tmp_path: Path) -> None:
    other = SlideRecord("b", "b", record.path)
    found = tile_cohort([record, other], make_spec(), tmp_path, new_executor=ThreadPoolExecutor, workers=1)
    assert next(found).slide_id == "b"
    holder.send_signal(signal.SIGKILL)
    assert next(found).slide_id == "a"
    assert sorted(glob.glob("*", root_dir=tmp_path)) == ["a.h5", "b.h5"]


@posix
def test_two_runs_share_a_cohort_without_tiling_a_slide_twice(record, make_spec, tmp_path: Path) -> None:
    records = [SlideRecord(f"s{i:02d}", "c", record.path) for i in range(12)]

    def run(_: int) -> list:
        return list(tile_cohort(records, make_spec(), tmp_path, new_executor=ThreadPoolExecutor, workers=2))

    with ThreadPoolExecutor(2) as pool:
        outcomes = [outcome for found in pool.map(run, range(2)) for outcome in found]
    assert not [o for o in outcomes if isinstance(o, Failed)]
    tiled = [o.slide_id for o in outcomes if isinstance(o, Tiled)]
    assert sorted(tiled) == [r.slide_id for r in records]  # each once
    assert sorted(glob.glob("*", root_dir=tmp_path)) == [f"{r.slide_id}.h5" for r in records]


@posix
def test_a_cache_is_read_while_its_writer_has_not_let_go_of_the_lock(cache_file: Path, tmp_path: Path) -> None:
    """A lock belongs to the file, not to its name: for a moment a cache that is in place is still locked."""
    path = tmp_path / "a.h5"
    with files.claimed(path) as beside:
        beside.write_bytes(cache_file.read_bytes())
        files.put_in_place(beside, path)
        cache = PatchCache(path)
        assert cache.jpegs(range(len(cache))) == PatchCache(cache_file).jpegs(range(len(cache)))
        assert cache.tissue_mask().any()
        assert (cache.quality(), len(cache.dropped())) == ({}, 0)


@posix
@pytest.mark.slow
def test_two_commands_at_one_folder_tile_every_slide_once(slide_path: Path, tmp_path: Path) -> None:
    cohort, out = tmp_path / "cohort.csv", tmp_path / "out"
    cohort.write_text("slide_id,path\n" + "".join(f"s{i},{slide_path}\n" for i in range(8)))
    command = [sys.executable, "-m", "wsi_dbps_cli.main", "tile", cohort, "--size", "64", "--workers", "1"]
    pair = [
        subprocess.Popen([*command, "--out", out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert sum(int(line.split()[0]) for line, _ in said) == 8  # "N slides tiled": each by one of the two
    names = [*(f"s{i}.h5" for i in range(8)), "contact-sheet.html", "tiling.csv"]
    assert sorted(glob.glob("*", root_dir=out)) == sorted(names)


def test_without_locks_a_claim_is_had(tmp_path: Path, monkeypatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with files.claimed(tmp_path / "a") as partial_path:
        partial_path.write_text("x")
        files.put_in_place(partial_path, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "x"
    assert glob.glob("*", root_dir=tmp_path) == ["a"]


@posix
def test_a_slide_that_hangs_fails_after_the_time_limit_and_the_others_are_done(
    record, make_spec, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "hangs.svs")  # opening it waits for a writer that never comes
    records = [SlideRecord("hangs", "h", tmp_path / "hangs.svs"), *(SlideRecord(n, n, record.path) for n in "abc")]
    found = {
        o.slide_id: o
        for o in tile_cohort(
            records, make_spec(tissue="none"), tmp_path / "out", new_executor=in_processes, workers=2, time_limit_s=5.0
        )
    }
    assert found.pop("hangs").error == (
        f"hangs: {tmp_path}/hangs.svs: it took longer than 5 s; raise --time-limit, or try another --reader"
    )
    assert [type(o) for o in found.values()] == [Tiled] * 3
    assert sorted(glob.glob("*", root_dir=tmp_path / "out")) == ["a.h5", "b.h5", "c.h5"]


def wait_for(condition) -> None:
    """Return once it holds; fail if it does not within a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Every process below this one that was started for slides or to start such."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [below for child in found for below in descendants(child)]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("ending", "num_slides"),
    [("SIGTERM", 3), ("SIGKILL", 3), ("SIGHUP", 1), ("SIGINT", 1)],
)
def test_a_command_that_is_told_to_end_takes_its_workers_with_it_and_says_how_to_go_on(
    slide_path: Path, tmp_path: Path, ending: str, num_slides: int
) -> None:
    os.mkfifo(tmp_path / "hangs.tif")  # a slide whose reading never ends
    rows = [f"s{i},{tmp_path}/hangs.tif\n" for i in range(num_slides - 1)]
    (tmp_path / "cohort.csv").write_text("".join(["slide_id,path\n", f"a,{tmp_path}/a.tif\n", *rows]))
    (tmp_path / "a.tif").write_bytes(slide_path.read_bytes())
    if num_slides == 1:
        (tmp_path / "a.tif").unlink()
        os.mkfifo(tmp_path / "a.tif")
    arguments = ["tile", tmp_path / "cohort.csv", "--out", tmp_path / "out", "--size", "64", "--workers", "2"]
    number = getattr(signal, ending)
    # Where a signal is ignored (`nohup`, a shell's background job), children ignore it too, and `tile` respects that.
    ignored = number != signal.SIGKILL and signal.getsignal(number) is signal.SIG_IGN
    if ignored:
        signal.signal(number, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "-m", "wsi_dbps_cli.main", *arguments], stderr=subprocess.PIPE, text=True, bufsize=1
    )
    if ignored:
        signal.signal(number, signal.SIG_IGN)
    try:
        if num_slides > 1:
            wait_for((tmp_path / "out" / "a.h5").exists)
            below = descendants(process.pid)
            assert len(below) >= 3
        else:
            with open(tmp_path / "a.tif", "wb"):  # opens once the command reads the slide
                below = []
                process.send_signal(number)
                process.wait(60)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.communicate()
    if ending == "SIGKILL":
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert said == f"wsi-dbps: ended by {ending}; finished slides are kept; the same command goes on\n"
    wait_for(lambda: not any(map(is_running, below)))


@posix
@pytest.mark.slow
def test_a_dask_cluster_tiles_the_same_and_outlives_a_killed_worker(record, make_spec, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    records = [SlideRecord(f"s{i:02d}", "c", record.path) for i in range(6)]
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", memory_limit=0
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        outcomes = tile_cohort(
            records, make_spec(), tmp_path, new_executor=lambda _: client.get_executor(pure=False), workers=2
        )
        found = [next(outcomes)]
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        found += outcomes
    assert sorted(o.slide_id for o in found) == [r.slide_id for r in records]
    assert not [o for o in found if isinstance(o, Failed)]
    alone = PatchCache(tile_slide(record, make_spec(), tmp_path / "alone").path)
    for slide in records:
        cache = PatchCache(tmp_path / f"{slide.slide_id}.h5")
        assert cache.jpegs(range(len(cache))) == alone.jpegs(range(len(alone)))
    assert not [name for name in glob.glob("*", root_dir=tmp_path) if not re.fullmatch(r"s\d\d\.h5|alone", name)]


def test_no_scheduler_is_said() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(ConfigError, match=r"^--dask tcp://127\.0\.0\.1:1: no scheduler answers "):
        on_cluster("tcp://127.0.0.1:1", timeout_s=0.5)


@posix
@pytest.mark.slow
def test_a_scheduler_that_dies_is_named_and_no_slide_is_blamed(slide_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    os.mkfifo(tmp_path / "hangs.tif")
    (tmp_path / "cohort.csv").write_text(f"slide_id,path\na,{slide_path}\nb,{tmp_path}/hangs.tif\n")
    address_file = tmp_path / "scheduler.json"
    part = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", address_file, "--no-dashboard"]
    scheduler = subprocess.Popen([*part, "--port", "0", "--host", "127.0.0.1"], stderr=subprocess.DEVNULL)
    started = [scheduler]
    try:
        wait_for(lambda: address_file.exists() and address_file.read_text().endswith("}"))
        address = json.loads(address_file.read_text())["address"]
        part = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
        part += ["--local-directory", tmp_path / "scratch"]
        started.append(subprocess.Popen([*part, "--nthreads", "1"], stderr=subprocess.DEVNULL))
        command = [
            sys.executable,
            "-m",
            "wsi_dbps_cli.main",
            "tile",
            tmp_path / "cohort.csv",
            "--out",
            tmp_path / "out",
        ]
        command += ["--size", "64", "--dask", address]
        tile = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(tile)
        wait_for((tmp_path / "out" / "a.h5").exists)
        scheduler.kill()
        said = tile.communicate(timeout=120)[1]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert tile.returncode == 2
    assert said.splitlines()[-1] == (
        f"wsi-dbps: --dask {address}: the scheduler no longer answers; finished slides are kept; start it again, and "
        "the same command goes on"
    )
    assert "hangs.tif" not in said
