"""Files of features: rows in the cache's order, ours and other tools' read alike, whole or absent."""

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.core.errors import CacheError, OutputError, SpecMismatchError
from wsi_dbps.core.geometry import Size
from wsi_dbps.formats.features import FeatureFile, are_kept, features_written, holds_features, open_bag
from wsi_dbps.formats.patch_cache import PatchCache

MADE = {"encoder": "e", "encoder_fingerprint": "f", "checkpoint_fingerprint": "", "precision": "float32", "batch": 9}
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
    assert np.array_equal(file.grid.origins_lv0, coords)
    assert file.grid.tile_lv0 == 512 or (np.isnan(file.grid.tile_lv0) and layout.startswith("CLAM"))
    assert file.patches([7, 3]).dtype == np.float32
    assert np.array_equal(file.patches([7, 3]), rows[[7, 3]].astype(np.float32))


def test_what_is_written_is_read_and_tells_its_slide(caches: Path, tmp_path: Path) -> None:
    cache, rows = PatchCache(caches / "slide_05.h5"), features(36)
    with features_written(tmp_path / "out" / "slide_05.h5", cache, 5, MADE) as data:
        data[:20], data[20:] = rows[:20], rows[20:]
    file = FeatureFile(tmp_path / "out" / "slide_05.h5")
    assert np.array_equal(file.patches(range(36)), rows)
    assert np.array_equal(file.grid.origins_lv0, cache.grid.origins_lv0)
    assert (file.slide_id, file.grid.slide_lv0, file.grid.tile_lv0) == (
        "slide_05",
        cache.grid.slide_lv0,
        cache.grid.tile_lv0,
    )
    assert (file.grid.mpp_lv0_um, file.encoder) == (cache.grid.mpp_lv0_um, "e f")
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
    other = MADE | {"encoder": "g", "precision": "bfloat16", "batch": 8}
    message = (
        r"slide_05.h5 was made otherwise: encoder is 'e' in it, 'g' asked; precision .*; batch is 9 in it, 8 asked; "
    )
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
    path.unlink()
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


def broken(path: Path, layout: str, change: Callable[[h5py.File], None]) -> str:
    """What is said of a file of features after a change to it; it must be one short line that names the file."""
    write_layout(path, layout, features(), places(100))
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(CacheError) as refused:
        FeatureFile(path)
    said = str(refused.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said


def replaced(name: str, data: object = None, **given: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=data, **given)

    return change


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file["coords"].attrs.__setitem__(name, value)


def huge(num: int, **given: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        for name, width, dtype in (("features", 1024, "f4"), ("coords", 2, "i8")):
            del file[name]
            file.create_dataset(name, (num, width), dtype, **given)

    return change


WRONG_COORDS = places(100).astype(np.float64)
WRONG_COORDS[7, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (huge(10**10, chunks=(1, 2)), "claims 10000000000 rows of 1024 numbers"),
        (huge(10**10), "claims 10000000000 rows of 1024 numbers"),
        (huge(10**7), r"/features claims \(10000000, 1024\) numbers, and the file does not hold as many"),
        (huge(10**7, chunks=(1000, 2)), r"/features claims \(10000000, 1024\) numbers, and the file does not hold"),
        (
            replaced("features", shape=(100, 5), dtype="f4"),
            r"/features claims \(100, 5\) numbers, and the file does not",
        ),
        (replaced("coords", shape=(100, 2), dtype="i8"), r"/coords claims \(100, 2\) numbers, and the file does not"),
        (replaced("features", shape=(100, 2**21), dtype="f4", chunks=(1, 2)), "claims 100 rows of 2097152 numbers"),
        (replaced("features", [[b"a"] * 5] * 100), r"/features is text \(100, 5\), not floats"),
        (replaced("coords", [[b"1", b"2"]] * 100), "/coords holds text, not numbers"),
        (replaced("coords", WRONG_COORDS), r"the coordinates of patch 7 are \[84.0, nan\], no place on a slide"),
        (replaced("coords", np.full((100, 2), -np.inf)), "the coordinates of patch 0 are .*, no place on a slide"),
        (replaced("coords", places(100) - 2**40), "the coordinates of patch 0 are .*, no place on a slide"),
        (replaced("coords", places(99)), r"100 rows of features and coordinates \(99, 2\)"),
        (replaced("coords", places(100).ravel()), r"100 rows of features and coordinates \(200,\)"),
        (replaced("coords", np.empty((0, 2), np.int64)), r"100 rows of features and coordinates \(0, 2\)"),
        (attribute("patch_size_level0", "large"), "patch_size_level0 is 'large', not a positive number"),
        (attribute("patch_size_level0", np.nan), "patch_size_level0 is .*nan.*, not a positive number"),
        (attribute("patch_size_level0", 0), "patch_size_level0 is .*0.*, not a positive number"),
        (attribute("patch_size_level0", [512, 512]), "patch_size_level0 is .*, not a positive number"),
        (attribute("slide_size", [1, 2, 3]), "slide_size is .*, not width and height"),
        (attribute("level0_width", -1), "level0_width is -1, not a positive number"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_in_one_line(tmp_path: Path, change, message: str) -> None:
    assert re.search(message, broken(tmp_path / "A.h5", "TRIDENT", change))


def test_a_tile_side_that_the_resolutions_contradict_is_refused(caches: Path, tmp_path: Path) -> None:
    def resolutions(file: h5py.File) -> None:
        file["coords"].attrs.update(level0_magnification=40, target_magnification=10.0)

    said = broken(tmp_path / "A.h5", "TRIDENT", resolutions)
    assert "patch_size_level0 is 512, but patch_size x level0_magnification / target_magnification = 1024" in said
    with features_written(tmp_path / "slide_05.h5", PatchCache(caches / "slide_05.h5"), 5, MADE) as rows:
        rows[:] = 1
    FeatureFile(tmp_path / "slide_05.h5")
    with h5py.File(tmp_path / "slide_05.h5", "r+") as file:
        file.attrs["patch_size_level0"] = 64.0
    with pytest.raises(CacheError, match=r"patch_size_level0 is 64, but patch_size_px x mpp_patch / mpp_level0 = 32"):
        FeatureFile(tmp_path / "slide_05.h5")


def test_a_claim_of_many_rows_takes_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        broken(tmp_path / "A.h5", "TRIDENT", huge(10**10))
        broken(tmp_path / "A.h5", "TRIDENT", huge(10**7, chunks=(1000, 2), compression="gzip"))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (1, 0), (1, 0, 5)])
@pytest.mark.parametrize("coords", [(0,), (0, 2)])
def test_an_empty_slide_of_another_tool_has_no_patches(tmp_path: Path, shape, coords) -> None:
    with h5py.File(tmp_path / "A.h5", "w") as file:
        file["features"], file["coords"] = np.empty(shape), np.empty(coords)
    file = FeatureFile(tmp_path / "A.h5")
    assert (len(file), file.dim, file.grid.origins_lv0.shape) == (0, 5 * (5 in shape), (0, 2))
    assert file.patches([]).shape == (0, file.dim)


def test_features_of_another_slide_than_the_manifest_names_are_refused(small_cohort, tmp_path: Path) -> None:
    slide = small_cohort[0].parent / "slide_05.svs"
    write_layout(tmp_path / "A.h5", "CLAM", features(), places(100))
    file = FeatureFile(tmp_path / "A.h5", slide=slide)
    assert (file.grid.slide_lv0, file.grid.mpp_lv0_um, file.thumbnail().shape) == (Size(192, 192), 1.0, (192, 192, 3))
    assert file.step_lv0() == 12  # between two columns of `places`
    write_layout(tmp_path / "B.h5", "TRIDENT", features(), places(100))
    with pytest.raises(CacheError, match=r"B.h5: features of a slide of 20000 x 10000 px, and .*svs has 192 x 192"):
        FeatureFile(tmp_path / "B.h5", slide=slide).thumbnail()
    write_layout(tmp_path / "C.h5", "STAMP", features(), places(100))
    file = FeatureFile(tmp_path / "C.h5", slide=slide)  # its mpp places what is in µm
    assert file.grid.origins_lv0[1].tolist() == [3, 128]
    assert file.grid.tile_lv0 == 128


def test_the_folder_of_a_tridents_job_is_understood(tmp_path: Path) -> None:
    job = tmp_path / "job"
    patches = job / "20x_256px_0px_overlap" / "patches"
    patches.mkdir(parents=True)
    with pytest.raises(CacheError, match=r"a TRIDENT job with coordinates and no features; .* --coords .*/job"):
        open_bag(job, "A")
    write = lambda encoder: write_layout(patches.parent / encoder / "A.h5", "TRIDENT", features(), places(100))  # noqa: E731
    (patches.parent / "features_uni").mkdir()
    write("features_uni")
    for folder in (job, patches.parent, patches.parent / "features_uni"):
        assert open_bag(folder, "A").path == patches.parent / "features_uni" / "A.h5"
    with pytest.raises(CacheError, match=r"features_uni/B.h5: no such cache"):
        open_bag(job, "B")
    (patches.parent / "features_virchow").mkdir()
    write("features_virchow")
    with pytest.raises(CacheError, match=r"job: a TRIDENT job with 2 folders of features; give --caches one: .*uni, "):
        open_bag(job, "A")


def test_layouts_that_are_not_read_are_named_with_what_to_do(tmp_path: Path) -> None:
    embeddings = tmp_path / "tile_embeddings"
    embeddings.mkdir()
    (embeddings / "A.pt").write_bytes(b"")
    (embeddings / "A.meta.json").write_text("{}")
    for folder in (tmp_path, embeddings):
        with pytest.raises(CacheError, match=r"tile embeddings of slide2vec, a layout that is not read; .* --coords"):
            open_bag(folder, "A")
    (tmp_path / "pt_files").mkdir()
    (tmp_path / "pt_files" / "B.pt").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "pt_files"):
        with pytest.raises(CacheError, match=r"B.pt: features without coordinates, .* CLAM's h5_files"):
            open_bag(folder, "B")


def test_what_a_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    write_layout(tmp_path / "A.h5", "STAMP", features(), places(100))
    with pytest.raises(CacheError, match=r"A.h5: its coordinates are in µm; add an mpp column for its slide"):
        _ = FeatureFile(tmp_path / "A.h5").grid
    with h5py.File(tmp_path / "A.h5", "r+") as file:
        del file.attrs["unit"]
    with pytest.raises(CacheError, match=r"A.h5: does not say the unit of its coordinates"):
        _ = FeatureFile(tmp_path / "A.h5").grid.origins_lv0
    write_layout(tmp_path / "B.h5", "CLAM", features(), places(100))
    with pytest.raises(CacheError, match=r"B.h5: does not say how large its slide is"):
        _ = FeatureFile(tmp_path / "B.h5").grid.slide_lv0
    with pytest.raises(CacheError, match=r"B.h5: has no thumbnail to draw on"):
        FeatureFile(tmp_path / "B.h5").thumbnail()
    with pytest.raises(CacheError, match=r"B.h5: does not say its slide's mpp"):
        _ = FeatureFile(tmp_path / "B.h5").grid.mpp_lv0_um
