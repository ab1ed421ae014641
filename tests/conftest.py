"""What many tests need: a small real cohort with caches, the folder of real data, and the command line."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from lossless import write_lossless
from wsi_dbps_cli.main import run

from wsi_dbps.cohort.cohort import Cohort, SlideRecord
from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.formats.predictions import Prediction, Predictions
from wsi_dbps.formats.spec import CacheSpec, TilingSpec
from wsi_dbps.metrics.pooling import pool_cases
from wsi_dbps.synth.pyramid import write_aperio
from wsi_dbps.tiling.outcomes import Tiled
from wsi_dbps.tiling.tile_slide import tile_slide

# The same examples on every machine, however slow it is; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.register_profile("search", database=None, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU here")


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
        assert isinstance(tile_slide(record, SMALL, folder / "caches"), Tiled)
    return folder / "cohort.csv", folder / "caches"


@pytest.fixture
def cohort(small_cohort: tuple[Path, Path]) -> Cohort:
    return read_manifest(small_cohort[0])


@pytest.fixture
def caches(small_cohort: tuple[Path, Path]) -> Path:
    return small_cohort[1]


def picture(width: int = 700, height: int = 500) -> np.ndarray:
    """Glass with a stained, textured rectangle from (100, 60) to (560, 420)."""
    random = np.random.default_rng(7)
    image = np.full((height, width, 3), 242, np.uint8)
    x, y = np.arange(100, 560), np.arange(60, 420)[:, None]
    wave = 30 * np.sin(x / 19 + y / 31)[..., None]
    image[60:420, 100:560] = (190, 110, 165) + wave * (1, 0.6, 0.2) + random.normal(0, 4, (*wave.shape[:2], 3))
    return image


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real slide file of 700 x 500 px at 0.5 µm/px."""
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    write_lossless(path, picture(), mpp_um=0.5, tile_px=64, downsamples=(1, 4))
    return path


@pytest.fixture(scope="session")
def blank_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real slide file with nothing on it."""
    path = tmp_path_factory.mktemp("slide") / "blank.tif"
    write_lossless(path, np.full((300, 400, 3), 243, np.uint8), mpp_um=0.5, tile_px=64)
    return path


@pytest.fixture(scope="session")
def make_spec():
    """A spec of small patches; what is given overrides the tiling or the rest."""

    def make(**settings) -> CacheSpec:
        rest = {name: settings.pop(name) for name in ("quality", "reader", "thumbnail_px") if name in settings}
        tiling = TilingSpec(**{"mpp_um": 0.5, "size_px": 64, "min_tissue": 0.5} | settings)
        return CacheSpec(**{"tiling": tiling, "thumbnail_px": 350} | rest)

    return make


@pytest.fixture
def record(slide_path: Path) -> SlideRecord:
    return SlideRecord("a", "p1", slide_path)


@pytest.fixture(scope="session")
def cache_file(slide_path: Path, make_spec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slide's cache; read only."""
    outcome = tile_slide(SlideRecord("a", "p1", slide_path), make_spec(), tmp_path_factory.mktemp("caches"))
    assert isinstance(outcome, Tiled)
    return outcome.path


@pytest.fixture(scope="session")
def quick_settings():
    """Settings, by table, of a run that takes a second on the small cohort."""
    return {
        "encoder": {"name": "small_gn", "dim": 16},
        "selection": {"num_salient": 3, "num_subsalient": 6, "num_kept": 12, "chunk_size": 16},
        "aggregator": {"num_heads": 2},
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 1, "batch_slides": 4, "device": "cpu", "decode_threads": 1},
    }


@pytest.fixture(scope="session")
def trained(small_cohort, quick_settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(cohort.csv, caches, run) of the small cohort; the run is of one epoch, and read only."""
    from wsi_dbps.workflows.train import train

    run = tmp_path_factory.mktemp("trained") / "run"
    train(*small_cohort, run, quick_settings)
    return *small_cohort, run


@pytest.fixture
def make_predictions():
    """Cases of one or two slides with random labels, the scores as far above chance as `skill`."""

    def make(num_cases=40, classes=("normal", "tumor"), skill=1.5, seed=0, num_unlabelled=0, splits=("test",)):
        random = np.random.default_rng(seed)
        rows = []
        for case in range(num_cases):
            label = case % len(classes)
            for slide in range(1 + case % 3 // 2):
                logits = random.normal(size=len(classes)) + skill * np.eye(len(classes))[label]
                probabilities = np.exp(logits) / np.exp(logits).sum()
                known = classes[label] if case >= num_unlabelled else None
                split = splits[case % len(splits)]
                name = f"case-{case:03d}"
                rows.append(
                    Prediction(f"{name}-{slide}", name, split, known, 100 + case, tuple(probabilities.tolist()))
                )
        return Predictions(tuple(classes), tuple(rows), pool_cases(rows, classes))

    return make


@pytest.fixture
def scored():
    """Predictions of one slide per case from (label, probability of tumor)."""

    def make(*pairs, classes=("normal", "tumor")):
        rows = tuple(Prediction(f"s{i}", f"c{i}", "test", label, 10, (1 - p, p)) for i, (label, p) in enumerate(pairs))
        return Predictions(classes, rows, pool_cases(rows, classes))

    return make


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


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def wsi_dbps(monkeypatch, capsys):
    """The command line, called in this process as a shell calls it."""

    def call(*arguments: object) -> Ended:
        """Exit code, standard output and standard error."""
        monkeypatch.setattr(sys, "argv", ["wsi-dbps", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return call
