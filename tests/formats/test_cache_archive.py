"""Files of every format version are still read, and the format's page tells the truth."""

import hashlib
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi_dbps.core.geometry import Size
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.spec import REQUIRED_ATTRIBUTES

ARCHIVE = Path(__file__).parents[1] / "archives" / "patch-cache-v1.h5"
PAGE = Path(__file__).parents[2] / "docs" / "formats" / "patch-cache.md"


def test_version_1_is_read() -> None:
    """A slide of 4 x 3 squares of one colour each, made by wsi-dbps 0.1.0; a mask left out the last column."""
    cache = PatchCache(ARCHIVE)
    assert (cache.slide_id, cache.grid.slide_lv0, cache.grid.mpp_lv0_um) == ("v1-slide", Size(128, 96), 0.5)
    assert (cache.grid.size_px, cache.grid.tile_lv0, cache.num_bytes) == (32, 32.0, 5810)
    assert cache.grid.origins_lv0.tolist() == [[x, y] for y in (0, 32, 64) for x in (0, 32, 64)]
    assert cache.tissue_N.tolist() == [1.0] * 9
    assert cache.fingerprint == "b4fc0745eaa1390c"
    assert cache.facts.spec["tiling"]["min_tissue"] == 0.5
    sha256 = "80a7355f2f29b19ae9dada12e4b1d0b437b22da0e7aaac3b40a3f42aa9f3b5d4"
    assert hashlib.sha256(b"".join(cache.jpegs(range(9)))).hexdigest() == sha256
    colours = [(60 + 60 * row, 30 + 20 * column, 120 + 25 * column) for row in range(3) for column in range(3)]
    assert np.abs(cache.patches(range(9)).astype(int) - np.array(colours)[:, None, None]).max() <= 2
    assert cache.thumbnail().shape == (48, 64, 3)
    mask = np.zeros((96, 128), np.bool_)
    mask[:, :96] = True
    np.testing.assert_array_equal(cache.tissue_mask(), mask)


def test_the_archive_is_small() -> None:
    assert ARCHIVE.stat().st_size < 30_000


@pytest.mark.parametrize("i", [0, 4, 8])
def test_the_pages_code_reads_a_patch(i: int) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    names = {"path": ARCHIVE, "i": i}
    exec(code, names)
    cache = PatchCache(ARCHIVE)
    assert (names["x"], names["y"]) == tuple(cache.grid.origins_lv0[i])
    assert names["side"] == cache.grid.tile_lv0
    assert np.abs(np.asarray(names["patch"]).astype(int) - cache.patches([i])[0]).max() <= 2


def test_the_page_names_every_dataset_and_attribute() -> None:
    page = PAGE.read_text(encoding="utf-8")
    documented = set(re.findall(r"`/?([\w/]+)`", page))
    with h5py.File(ARCHIVE) as file:
        datasets: list[str] = []
        file.visititems(lambda name, node: datasets.append(name) if isinstance(node, h5py.Dataset) else None)
        present = {*datasets, *file.attrs, *file["coords"].attrs}
        assert set(file.attrs) == {"format", "format_version", *REQUIRED_ATTRIBUTES}
    assert len(datasets) == 7
    assert present <= documented
