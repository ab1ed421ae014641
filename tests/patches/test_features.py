"""Files of features: rows in the cache's order, ours and other tools' read alike, whole or absent."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.errors import CacheError, OutputError, SpecMismatchError
from wsi_dbps.patches.cache import PatchCache
from wsi_dbps.patches.features import FeatureFile, are_kept, features_written, holds_features

MADE = {"encoder": "e", "encoder_fingerprint": "f", "checkpoint_fingerprint": "", "precision": "float32"}
LAYOUTS = ("TRIDENT", "TRIDENT (1, N, D)", "CLAM", "CLAM, compressed", "STAMP")


def features(num: int = 100, dim: int = 5, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num, dim)).astype(dtype)


def write_layout(path: Path, layout: str, rows: np.ndarray, coords: np.ndarray) -> None:
    """What the named tool's own writer leaves, for tiles of 512 px of a slide of 0.25 µm per pixel."""
    with h5py.File(path, "w") as file:
        if layout.startswith("TRIDENT"):
            given, lead = (rows[None], (1, 1)) if "(1" in layout else (rows, (1,))
            data = file.create_dataset("features", data=given, chunks=(*lead, rows.shape[1]))
            data.attrs.update(name=path.stem, savetodir=".", encoder="uni")
            places = file.create_dataset("coords", data=coords.astype(np.int64), chunks=(1, 2))
            places.attrs.update(patch_size=256, patch_size_level0=512.0, level0_width=20000, level0_height=10000)
        elif layout.startswith("CLAM"):
            packed = {"compression": "gzip"} if "compressed" in layout else {}
            file.create_dataset("features", data=rows, chunks=(32, rows.shape[1]), maxshape=(None, None), **packed)
            file["coords"] = coords.astype(np.int32)
        else:
            file["feats"], file["coords"] = rows, (coords * 0.25).astype(np.float32)
            file.attrs.update(extractor="uni", unit="um", tile_size_um=128.0, tile_size_px=256, feat_type="tile")


def places(num: int) -> np.ndarray:
    return np.stack([np.arange(num) * 12, np.arange(num) % 7 * 512], axis=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(ids=st.lists(st.integers(0, 99), max_size=60))
def test_any_rows_come_in_the_order_asked_for_whatever_the_layout(
    tmp_path_factory: pytest.TempPathFactory, layout: str, ids: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"rows_{LAYOUTS.index(layout)}.h5"
    if not path.exists():
        write_layout(path, layout, features(), places(100))
    assert np.array_equal(FeatureFile(path).patches(ids), features()[ids])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_tools_file_reads_as_it_was_written(tmp_path: Path, layout: str, dtype: type) -> None:
    rows, coords = features(dtype=dtype), places(100)
    write_layout(tmp_path / "A.h5", layout, rows, coords)
    assert holds_features(tmp_path / "A.h5")
    file = FeatureFile(tmp_path / "A.h5", mpp_lv0_um=0.25)
    assert (len(file), file.dim, file.slide_id) == (100, 5, None)
    assert file.encoder == ("" if layout.startswith("CLAM") else "uni")
    assert np.array_equal(file.coords_N2, coords)
    assert file.tile_lv0 == 512 or (np.isnan(file.tile_lv0) and layout.startswith("CLAM"))
    assert file.patches([7, 3]).dtype == np.float32
    assert np.array_equal(file.patches([7, 3]), rows[[7, 3]].astype(np.float32))


def test_what_is_written_is_read_and_tells_its_slide(caches: Path, tmp_path: Path) -> None:
    cache, rows = PatchCache(caches / "slide_05.h5"), features(36)
    with features_written(tmp_path / "out" / "slide_05.h5", cache, 5, MADE) as data:
        data[:20], data[20:] = rows[:20], rows[20:]
    file = FeatureFile(tmp_path / "out" / "slide_05.h5")
    assert np.array_equal(file.patches(range(36)), rows)
    assert np.array_equal(file.coords_N2, cache.coords_N2)
    assert (file.slide_id, file.slide_lv0, file.tile_lv0) == ("slide_05", cache.slide_lv0, cache.tile_lv0)
    assert (file.mpp_lv0_um, file.encoder) == (cache.mpp_lv0_um, "e f")
    assert np.array_equal(file.thumbnail(), cache.thumbnail())
    with h5py.File(file.path) as ours, h5py.File(cache.path) as theirs:
        said, wanted = dict(ours["coords"].attrs), dict(theirs["coords"].attrs)  # those that TRIDENT and CLAM read
    assert set(said) == set(wanted)
    assert all(np.array_equal(said[name], wanted[name]) for name in said)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system counts no bytes read")
@pytest.mark.parametrize(("layout", "most"), [("STAMP", 1.2), ("TRIDENT", 4), ("CLAM", 34)])
def test_only_the_rows_asked_for_are_read(tmp_path: Path, layout: str, most: float) -> None:
    """Contiguous rows alone; of a file in chunks the chunks, and what HDF5 needs to find them."""
    write_layout(tmp_path / "A.h5", layout, features(20_000, 256), places(20_000))
    file = FeatureFile(tmp_path / "A.h5")
    before = bytes_read()
    file.patches(range(0, 20_000, 200))
    assert 100 * 1024 <= bytes_read() - before < most * 100 * 1024


@pytest.mark.parametrize("stop", [RuntimeError("stopped"), KeyboardInterrupt()])
def test_a_writer_that_is_stopped_leaves_nothing(caches: Path, tmp_path: Path, stop: BaseException) -> None:
    cache = PatchCache(caches / "slide_05.h5")

    def write() -> None:
        with features_written(tmp_path / "slide_05.h5", cache, 5, MADE) as data:
            data[:20] = 1
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(caches: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with (
        pytest.raises(OutputError, match=r"out/slide_05.h5: cannot be written"),
        features_written(tmp_path / "out" / "slide_05.h5", PatchCache(caches / "slide_05.h5"), 5, MADE),
    ):
        pass


def test_features_are_kept_if_made_alike_and_refused_if_not(caches: Path, tmp_path: Path) -> None:
    cache, path = PatchCache(caches / "slide_05.h5"), tmp_path / "slide_05.h5"
    assert not are_kept(path, cache, MADE, overwrite=False)
    with features_written(path, cache, 5, MADE):
        pass
    assert are_kept(path, cache, MADE, overwrite=False)
    assert are_kept(path, cache, MADE | {"checkpoint_fingerprint": "another file, the same weights"}, overwrite=False)
    assert not are_kept(path, cache, MADE, overwrite=True)
    other = MADE | {"encoder": "g", "precision": "bfloat16"}
    message = r"slide_05.h5 was made otherwise: encoder is 'e' in it, 'g' asked; precision is .*; pass --overwrite"
    with pytest.raises(SpecMismatchError, match=message):
        are_kept(path, cache, other, overwrite=False)
    assert not are_kept(path, cache, other, overwrite=True)
    with pytest.raises(SpecMismatchError, match=r"slide_05.h5: there already, and no features of ours"):
        are_kept(cache.path, cache, MADE, overwrite=True)


def test_what_is_no_file_of_features_is_told_apart_and_named(caches: Path, tmp_path: Path) -> None:
    assert not holds_features(caches / "slide_05.h5")
    assert not holds_features(tmp_path / "none.h5")
    path = tmp_path / "A.h5"

    def refused(message: str, **arrays: np.ndarray) -> None:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
        with pytest.raises(CacheError, match=message):
            FeatureFile(path)

    refused(r"A.h5: not a readable file of features: .*coords", features=features(4))
    refused(
        r"/features is float32 \(5,\), not floats \(N, D\) or \(1, N, D\)", features=features()[0], coords=places(5)
    )
    refused(r"/feats is int64 \(4, 2\), not floats", feats=places(4), coords=places(4))
    refused(r"A.h5: 4 rows of features and coordinates \(3, 2\)", features=features(4), coords=places(3))
    path.write_bytes(b"damaged")
    with pytest.raises(CacheError, match=r"A.h5: not a readable file of features"):
        FeatureFile(path)
    with features_written(path, PatchCache(caches / "slide_05.h5"), 5, MADE):
        pass
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 9
    with pytest.raises(CacheError, match=r"A.h5: features of version 9, and this wsi-dbps reads 1"):
        FeatureFile(path)


def test_a_row_that_is_not_finite_is_named(tmp_path: Path) -> None:
    rows = features()
    rows[3, 1] = np.nan
    write_layout(tmp_path / "A.h5", "CLAM", rows, places(100))
    file = FeatureFile(tmp_path / "A.h5")
    file.patches([1, 2])
    with pytest.raises(CacheError, match=r"A.h5: the features of patch 3 are not finite"):
        file.patches([9, 3, 1])


def test_what_a_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    write_layout(tmp_path / "A.h5", "STAMP", features(), places(100))
    for ask in (lambda f: f.coords_N2, lambda f: f.tile_lv0):
        with pytest.raises(CacheError, match=r"A.h5: its coordinates are in µm; add an mpp column for its slide"):
            ask(FeatureFile(tmp_path / "A.h5"))
    with h5py.File(tmp_path / "A.h5", "r+") as file:
        del file.attrs["unit"]
    with pytest.raises(CacheError, match=r"A.h5: does not say the unit of its coordinates"):
        _ = FeatureFile(tmp_path / "A.h5").coords_N2
    write_layout(tmp_path / "B.h5", "CLAM", features(), places(100))
    with pytest.raises(CacheError, match=r"B.h5: does not say how large its slide is"):
        _ = FeatureFile(tmp_path / "B.h5").slide_lv0
    with pytest.raises(CacheError, match=r"B.h5: has no thumbnail to draw on"):
        FeatureFile(tmp_path / "B.h5").thumbnail()
    with pytest.raises(CacheError, match=r"B.h5: does not say its slide's mpp"):
        _ = FeatureFile(tmp_path / "B.h5").mpp_lv0_um
