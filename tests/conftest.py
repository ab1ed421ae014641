"""What many tests need: a small real cohort with caches, the folder of real data, and the command line."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from wsi_dbps_cli.main import run

from wsi_dbps.cohort.cohort import Cohort
from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.patches.spec import CacheSpec
from wsi_dbps.patches.tile import tile_slide
from wsi_dbps.synth.pyramid import write_aperio
from wsi_dbps.tiling.plan import TilingSpec

# The same examples on every machine; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("same", derandomize=True, database=None)
settings.register_profile("search", database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

SMALL = CacheSpec(tiling=TilingSpec(mpp_um=1.0, size_px=32, tissue="none", min_tissue=0.0))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds `slides/` and `bad_inputs/`; skips where it is absent."""
    folder = Path(os.environ.get("WSI_DBPS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; set WSI_DBPS_DATA")
    return folder


def texture(label: int, seed: int, side: int = 192) -> np.ndarray:
    """Noise of the same mean for both classes; class 1 has a coarse corner: told by texture, never by colour."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 200, (side, side, 3), dtype=np.uint8)
    if label:
        coarse = rng.integers(60, 200, (side // 16, side // 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        image[: side // 2, : side // 2] = coarse
    return image


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(cohort.csv, caches) of 20 slides of 36 patches of 32 px; four slides test, four validate."""
    folder = tmp_path_factory.mktemp("small")
    rows = []
    for i in range(20):
        write_aperio(folder / f"slide_{i:02d}.svs", texture(i % 2, i), mpp_um=1.0, tile_px=64, quality=95)
        split = "test" if i < 4 else "val" if i < 8 else "train"
        rows.append((f"slide_{i:02d}", f"case_{i:02d}", f"slide_{i:02d}.svs", ("flat", "coarse")[i % 2], split))
    with open(folder / "cohort.csv", "w", newline="") as file:
        csv.writer(file).writerows([("slide_id", "case_id", "path", "label", "split"), *rows])
    for record in read_manifest(folder / "cohort.csv", need_path=True).records:
        assert tile_slide(record, SMALL, folder / "caches").error is None
    return folder / "cohort.csv", folder / "caches"


@pytest.fixture
def cohort(small_cohort: tuple[Path, Path]) -> Cohort:
    return read_manifest(small_cohort[0])


@pytest.fixture
def caches(small_cohort: tuple[Path, Path]) -> Path:
    return small_cohort[1]


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[Callable[[Sequence[int]], list[Path]]]:
    """Makes file systems of so many bytes, in memory; skips where it may not."""
    mounted: list[Path] = []

    def make(sizes: Sequence[int]) -> list[Path]:
        for size in sizes:
            folder = tmp_path / f"disk_{len(mounted)}"
            folder.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
            if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
                pytest.skip("small file systems can be mounted on Linux by root only")
            mounted.append(folder)
        return mounted

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # a writer that failed may hold a file


@pytest.fixture
def wsi_dbps(monkeypatch, capsys):
    """The command line, called as a shell calls it."""

    def call(*arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        monkeypatch.setattr(sys, "argv", ["wsi-dbps", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call
