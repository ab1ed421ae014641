import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.patches.spec import CacheSpec
from wsi_dbps.patches.tile import tile_slide
from wsi_dbps.synth.pyramid import write_lossless
from wsi_dbps.tiling.plan import TilingSpec


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
    assert outcome.error is None
    return outcome.path


@pytest.fixture
def wsi_dbps(monkeypatch, capsys):
    """Runs the command line in this process: exit code, what it printed, and what it said on stderr."""

    def run(*arguments: object) -> SimpleNamespace:
        from wsi_dbps_cli.main import run as main

        monkeypatch.setattr(sys, "argv", ["wsi-dbps", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=out, err=err)

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real slides; tests that need it are skipped where it is not there."""
    root = Path(__file__).parents[2]
    path = Path(os.environ.get("WSI_DBPS_DATA", root.parent / "shared" / "data"))
    if not (path / "slides").is_dir():
        pytest.skip(f"no real slides at {path}; set WSI_DBPS_DATA")
    return path
