"""HDF5 files on a disk that fills up: one error in plain words, no crash, and nothing torn left behind."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi_dbps.formats.hdf5 import h5_written_whole

SIZES = [4096 * pages for pages in (1, 2, 3, 4, 5, 7, 9, 12, 16, 20, 22, 24)]
"""The file below takes about 102 kB: it fits on none of these."""
FILL = """
import resource, sys
from pathlib import Path
import h5py, numpy as np
from wsi_dbps.core.errors import OutputError
from wsi_dbps.formats.hdf5 import h5_written_whole

def fill(path, source):
    with h5_written_whole(path) as file, h5py.File(source, "r") as other:
        rows = file.create_dataset("features", (1000, 16), np.float32)
        file["coords"] = np.zeros((1000, 2), np.int64)
        file["coords"].attrs["name"] = "a slide"
        other.copy("thumbnail", file)
        file.attrs.update(format="a format", slide_id="a")
        for start in range(0, 1000, 50):
            rows[start : start + 50] = 1.0

source, *targets = sys.argv[1:]
for target in targets:
    folder, _, limit = target.partition("=")
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        fill(Path(folder) / "a.h5", source)
    except OutputError as error:
        print(error)
    else:
        print("written")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file["thumbnail"] = np.zeros(20_000, np.uint8)
    return tmp_path / "source.h5"


@pytest.fixture
def full_disks(small_disks) -> list[Path]:
    """A small file system for each of SIZES."""
    return small_disks(SIZES)


def run(*arguments: object) -> list[str]:
    """The lines of a child that must end well: a crash of HDF5 would end it by a signal."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_disk_of_any_size_that_is_too_small_is_one_error(full_disks: list[Path], source: Path) -> None:
    lines = run(source, *full_disks)
    assert lines == [f"{folder}/a.h5: cannot be written: No space left on device" for folder in full_disks]
    assert not any(list(folder.iterdir()) for folder in full_disks)


@pytest.mark.skipif(sys.platform == "win32", reason="the system limits no file sizes")
def test_a_file_of_any_size_that_may_not_grow_further_is_one_error(source: Path, tmp_path: Path) -> None:
    lines = run(source, *(f"{tmp_path / 'out'}={size}" for size in SIZES), f"{tmp_path / 'out'}={1 << 20}")
    assert lines == [f"{tmp_path}/out/a.h5: cannot be written: File too large"] * len(SIZES) + ["written"]
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["a.h5"]
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        assert (file["features"][:] == 1).all()


def test_space_that_is_not_there_is_missed_before_anything_is_written(full_disks: list[Path]) -> None:
    begun = []
    with (
        pytest.raises(Exception, match="cannot be written: No space left on device"),
        h5_written_whole(full_disks[-1] / "a.h5", size=1 << 20),
    ):
        begun.append(True)
    assert not begun
    assert not list(full_disks[-1].iterdir())


def test_what_is_put_in_is_read_and_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    values = np.arange(5000, dtype=np.float32).reshape(1000, 5)
    for name, size in (("a.h5", 0), ("b.h5", 1 << 20)):
        with h5_written_whole(tmp_path / name, size=size) as file:
            rows = file.create_dataset("rows", values.shape, np.float32)
            file.create_dataset("packed", data=values, chunks=(7, 5), compression="gzip")
            file.attrs["name"] = "ü"
            for start in range(0, 1000, 130):
                rows[start : start + 130] = values[start : start + 130]
        with h5py.File(tmp_path / name) as file:
            assert np.array_equal(file["rows"][:], values)
            assert np.array_equal(file["packed"][:], values)
            assert file.attrs["name"] == "ü"
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("stop", [RuntimeError("stopped"), KeyboardInterrupt()])
def test_a_writer_that_is_stopped_leaves_nothing(tmp_path: Path, stop: BaseException) -> None:
    def write() -> None:
        with h5_written_whole(tmp_path / "a.h5") as file:
            file["rows"] = np.zeros(100_000)
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert not os.listdir(tmp_path)
