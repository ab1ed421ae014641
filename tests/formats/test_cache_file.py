"""A cache comes back as it was written, from any number of threads, and says what is wrong with it otherwise."""

import itertools
import json
import tempfile
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.core.errors import CacheError
from wsi_dbps.core.files import claimed, put_in_place
from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.core.settings import to_dict
from wsi_dbps.formats.cache_writer import CacheHead, CacheWriter, PixelSource, Provenance, encode_jpeg
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.spec import CacheSpec, TilingSpec
from wsi_dbps.tiling.plan import TilePlan

SOURCE = Provenance("é 1", "0123456789abcdef", "aperio", "openslide", "file", "")


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    x, y = np.arange(width), np.arange(height)[:, None]
    return np.stack([128 + 100 * np.sin(x / 11 + y / 13 + phase) for phase in phases], axis=-1).astype(np.uint8)


def write(
    path: Path, num_patches: int, size_px: int = 32, seed: int = 0, jpegs=None, **changes
) -> tuple[TilePlan, np.ndarray]:
    random = np.random.default_rng(seed)
    patches = np.stack([smooth(seed + i, size_px, size_px) for i in range(num_patches)] or [np.zeros((0, 0, 3))])
    spec = CacheSpec(tiling=TilingSpec(mpp_um=1.0, size_px=size_px), quality=90)
    plan = TilePlan(
        spec=spec.tiling,
        grid=TileGrid(
            random.integers(0, 80_000, (num_patches, 2)), size_px / 0.2499, Size(100_000, 80_000), 0.2499, size_px, 1.0
        ),
        tissue_N=random.random(num_patches, np.float32),
    )
    jpegs = jpegs or [encode_jpeg(patch, 90) for patch in patches[:num_patches]]
    head = CacheHead(
        grid=plan.grid,
        tissue_N=plan.tissue_N,
        provenance=SOURCE,
        spec=to_dict(spec),
        pixels=PixelSource("reader", 0),
        thumbnail=encode_jpeg(smooth(seed, 60, 75), 90),
        mask_HW=random.random((30, 40)) < 0.5,
    )
    with claimed(path) as partial:
        writer = CacheWriter(partial, head)
        for jpeg in jpegs:
            writer.add(jpeg, zlib.crc32(jpeg))
        writer.finish(replace(head, **changes))
        put_in_place(partial, path)
    return plan, patches


@settings(deadline=None, max_examples=25)
@given(num_patches=st.integers(0, 12), size_px=st.sampled_from([1, 7, 32, 64]), seed=st.integers(0, 99), data=st.data())
def test_what_is_written_is_read(num_patches: int, size_px: int, seed: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        plan, patches = write(path, num_patches, size_px, seed)
        cache = PatchCache(path)
        assert len(cache) == num_patches
        np.testing.assert_array_equal(cache.grid.origins_lv0, plan.grid.origins_lv0)
        np.testing.assert_array_equal(cache.tissue_N, plan.tissue_N)
        assert (cache.slide_id, cache.grid.slide_lv0, cache.grid.size_px) == ("é 1", plan.grid.slide_lv0, size_px)
        assert (cache.grid.mpp_lv0_um, cache.grid.tile_lv0) == (0.2499, plan.grid.tile_lv0)
        ids = data.draw(st.lists(st.integers(0, num_patches - 1), max_size=20) if num_patches else st.just([]))
        found = cache.patches(ids)
        assert found.shape == (len(ids), size_px, size_px, 3)
        if size_px >= 32:  # smaller ones are all edge
            assert all(np.abs(a.astype(int) - patches[i]).mean() <= 4 for i, a in zip(ids, found, strict=True))
        for i, jpeg in zip(ids, cache.jpegs(ids), strict=True):
            np.testing.assert_array_equal(imagecodecs.jpeg8_decode(jpeg), found[ids.index(i)])
        assert np.abs(cache.thumbnail().astype(int) - smooth(seed, 60, 75)).mean() <= 4
        assert cache.tissue_mask().shape == (30, 40)
        assert cache.num_bytes == sum(map(len, cache.jpegs(range(num_patches))))


def test_every_attribute_has_the_value_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write(path, 3)
    with h5py.File(path) as file:
        attrs = {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}
    facts = PatchCache(path).facts
    assert attrs.pop("slide_size").tolist() == [100_000, 80_000]
    spec = json.loads(attrs.pop("spec"))
    assert spec["tiling"] == {
        "mpp_um": 1.0,
        "size_px": 32,
        "overlap_px": 0,
        "tissue": "stain",
        "drop_pen": True,
        "min_tissue": 0.25,
    }
    assert len(attrs.pop("fingerprint")) == len(attrs.pop("spec_fingerprint")) == 16
    assert attrs.pop("wsi_dbps_version")
    assert attrs == {
        "format": "wsi-dbps patch cache",
        "format_version": 1,
        "slide_id": "é 1",
        "slide_fingerprint": "0123456789abcdef",
        "vendor": "aperio",
        "reader": "openslide",
        "mpp_level0": 0.2499,
        "mpp_patch": 1.0,
        "mpp_source": "file",
        "mask_fingerprint": "",
        "patch_size_px": 32,
        "patch_size_level0": 32 / 0.2499,
        "jpeg_origin": "encoded",
        "jpeg_quality": 90,
        "pixel_path": "reader",
        "read_level": 0,
        "read_scale": 1,
        "icc_profile": "",
        "icc_applied": False,
    }
    of_grid = {"format", "mpp_level0", "mpp_patch", "patch_size_px", "patch_size_level0", "read_scale"}
    assert {name: getattr(facts, name) for name in attrs.keys() - of_grid} == {
        name: value for name, value in attrs.items() if name not in of_grid
    }
    assert facts.spec == spec


def test_trident_finds_its_attributes(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", 3)
    with h5py.File(tmp_path / "a.h5") as file:
        assert dict(file["coords"].attrs) == {
            "patch_size": 32,
            "patch_size_level0": 128,
            "level0_magnification": 40,
            "target_magnification": 40 * 0.2499,  # of which TRIDENT makes a tile of 32 / 0.2499 = 128 px
            "overlap": 0,
            "level0_width": 100_000,
            "level0_height": 80_000,
            "name": "é 1",
            "savetodir": ".",
        }


def test_a_fingerprint_tells_slides_settings_and_masks_apart(tmp_path: Path) -> None:
    found = {}
    spec = to_dict(CacheSpec(tiling=TilingSpec(mpp_um=1.0, size_px=32), quality=90))
    for name, changes in {
        "same": {},
        "again": {"dropped_N2": np.array([[1, 2]])},
        "quality": {"spec": spec | {"quality": 80}},
        "slide": {"provenance": Provenance("é 1", "1" * 16, "aperio", "openslide", "file", "")},
        "mask": {"provenance": Provenance("é 1", "0123456789abcdef", "aperio", "openslide", "file", "2" * 16)},
        "reader": {"provenance": Provenance("é 1", "0123456789abcdef", "aperio", "tiffslide", "file", "")},
    }.items():
        write(tmp_path / "a.h5", 2, **changes)
        found[name] = PatchCache(tmp_path / "a.h5").fingerprint
    assert found.pop("again") == found["same"]
    assert len(set(found.values())) == 5


@pytest.mark.parametrize("quality", [1, 50, 90, 100])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (17, 130, 99)])
def test_saturated_colours_keep_their_channels(colour: tuple[int, int, int], quality: int) -> None:
    patch = np.full((32, 32, 3), colour, np.uint8)
    found = imagecodecs.jpeg8_decode(encode_jpeg(patch, quality))
    assert np.abs(found.astype(int) - patch).max() <= (2 if quality >= 50 else 40)


def test_a_jpeg_is_baseline_with_colour_at_half_resolution(tmp_path: Path) -> None:
    jpeg = encode_jpeg(smooth(0, 32, 32), 90)
    frame = jpeg.index(b"\xff\xc0")  # SOF0: baseline
    components = jpeg[frame + 10 : frame + 19]
    assert [components[i + 1] for i in (0, 3, 6)] == [0x22, 0x11, 0x11]
    assert b"JFIF" in jpeg[:20]


def test_the_patches_lie_where_the_dataset_says(tmp_path: Path) -> None:
    """Contiguous and unfiltered: a memory map over the file sees every JPEG."""
    write(tmp_path / "a.h5", 5)
    cache = PatchCache(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        data, offsets, crc32 = file["patches/data"], file["patches/offsets"][:], file["patches/crc32"][:]
        assert (data.chunks, data.dtype, offsets.dtype) == (None, np.uint8, np.uint64)
        blob, start = data[:].tobytes(), data.id.get_offset()
    assert (tmp_path / "a.h5").read_bytes()[start : start + len(blob)] == blob
    jpegs = [blob[a:b] for a, b in itertools.pairwise(offsets)]
    assert jpegs == cache.jpegs(range(5))
    assert crc32.tolist() == [zlib.crc32(jpeg) for jpeg in jpegs]


def test_a_cache_without_patches_reads_empty(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", 0)
    cache = PatchCache(tmp_path / "a.h5")
    assert (len(cache), cache.num_bytes, cache.jpegs([])) == (0, 0, [])
    assert cache.grid.origins_lv0.shape == (0, 2)
    assert cache.patches([]).shape == (0, 32, 32, 3)
    assert cache.thumbnail().shape == (60, 75, 3)


def test_many_threads_read_one_cache_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", 40, 64)
    cache = PatchCache(tmp_path / "a.h5")
    expected = cache.patches(range(40))
    random = np.random.default_rng(0)
    wanted = [random.integers(0, 40, 8).tolist() for _ in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for ids, found in zip(wanted, pool.map(cache.patches, wanted), strict=True):
            np.testing.assert_array_equal(found, expected[ids])
        thumbnails = list(pool.map(lambda _: cache.thumbnail(), range(16)))
    assert all((thumbnail == thumbnails[0]).all() for thumbnail in thumbnails)


def test_a_cache_goes_to_another_process_by_pickle(tmp_path: Path) -> None:
    import pickle

    write(tmp_path / "a.h5", 3)
    cache = PatchCache(tmp_path / "a.h5")
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.patches([2, 0]), cache.patches([2, 0]))


# What is wrong with a cache


@pytest.fixture
def cache_path(tmp_path: Path) -> Path:
    write(tmp_path / "a.h5", 5)
    return tmp_path / "a.h5"


def refusal(path: Path) -> str:
    with pytest.raises(CacheError) as caught:
        PatchCache(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def test_a_missing_cache_says_how_to_make_it(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.h5") == "no such cache; run `wsi-dbps tile` first"


def test_a_file_that_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("hello")
    said = refusal(tmp_path / "a.h5")
    assert said.startswith("not a readable patch cache: Unable to synchronously open file")
    assert said.endswith("; delete it and tile again")


def test_an_hdf5_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.zeros((3, 2), np.int64)
    said = "an HDF5 file without a format attribute, not a patch cache; name another file or --out folder"
    assert refusal(tmp_path / "a.h5") == said
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["format"] = "wsi-dbps attention"
    said = "a wsi-dbps attention, not a patch cache; name another file or --out folder"
    assert refusal(tmp_path / "a.h5") == said


def test_a_cache_of_another_version_is_refused(cache_path: Path) -> None:
    with h5py.File(cache_path, "a") as file:
        file.attrs["format_version"] = 2
    assert refusal(cache_path) == (
        "patch cache of format version 2, and this wsi-dbps reads 1; use the wsi-dbps that wrote it, or tile again"
    )


@settings(deadline=None, max_examples=60)
@given(share=st.floats(0, 0.9999))
def test_a_cache_cut_short_anywhere_is_refused(tmp_path_factory, share: float) -> None:
    folder = tmp_path_factory.getbasetemp() / "cut"
    path, cut = folder / "a.h5", folder / "cut.h5"
    if not path.exists():
        write(path, 5)
    whole = path.read_bytes()
    cut.write_bytes(whole[: int(share * len(whole))])
    assert refusal(cut).endswith("; delete it and tile again")


@settings(deadline=None, max_examples=150)
@given(place=st.floats(0, 1), value=st.integers(0, 255))
def test_a_damaged_cache_is_read_or_refused_in_one_line(tmp_path_factory, place: float, value: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "damage"
    path, damaged = folder / "a.h5", folder / "damaged.h5"
    if not path.exists():
        write(path, 5)
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] = value
    damaged.write_bytes(content)
    said = ""
    try:
        cache = PatchCache(damaged)
        cache.thumbnail()
        cache.tissue_mask()
        found = cache.patches(range(len(cache)))
        assert found.shape[1:] == (cache.grid.size_px, cache.grid.size_px, 3)
    except CacheError as error:
        said = str(error)
    assert "\n" not in said
    assert not said or said.startswith(f"{damaged}: ")


@pytest.mark.parametrize("place", [0.02, 0.5, 0.95])
def test_one_wrong_byte_in_a_patch_is_noticed_though_a_decoder_would_make_a_picture_of_it(
    cache_path: Path, place: float
) -> None:
    cache = PatchCache(cache_path)
    with h5py.File(cache_path) as file:
        data, offsets = file["patches/data"].id.get_offset(), file["patches/offsets"][:]
    content = bytearray(cache_path.read_bytes())
    content[int(data + offsets[3] + place * int(offsets[4] - offsets[3]))] ^= 0x10
    cache_path.write_bytes(content)
    assert cache.patches([0, 1, 2, 4]).shape[0] == 4
    with pytest.raises(CacheError) as caught:
        cache.patches([0, 3])
    assert str(caught.value) == (
        f"{cache_path}: patch 3 is damaged: not the bytes that were written; delete it and tile again"
    )


def test_without_checksums_the_decoder_says_what_it_notices(cache_path: Path) -> None:
    cache = PatchCache(cache_path)
    with h5py.File(cache_path, "a") as file:
        file["patches/data"][int(file["patches/offsets"][2]) : int(file["patches/offsets"][3])] = 0
        del file["patches/crc32"]
        file["patches/data"][int(file["patches/offsets"][0]) : int(file["patches/offsets"][1])] = 0
    assert len(cache) == 5
    cache = PatchCache(cache_path)
    assert cache.patches([1, 3, 4]).shape[0] == 3
    with pytest.raises(CacheError, match=r"a.h5: patch 2 is damaged: tjDecompressHeader3.*; delete"):
        cache.patches([2])


def test_a_patch_of_another_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", 1, jpegs=[encode_jpeg(smooth(0, 16, 32), 90)])
    with pytest.raises(CacheError, match=r"patch 0 has shape \(16, 32, 3\), not \(32, 32, 3\); delete it"):
        PatchCache(tmp_path / "a.h5").patches([0])


def test_patches_in_chunks_are_refused_rather_than_misread(cache_path: Path) -> None:
    with h5py.File(cache_path, "a") as file:
        blob = file["patches/data"][:]
        del file["patches/data"]
        file.create_dataset("patches/data", data=blob, chunks=(100,))
    assert refusal(cache_path) == "/patches/data is not one contiguous block; delete it and tile again"


@pytest.mark.parametrize("damage", ["fewer offsets", "falling offsets", "wrong end", "fewer coords", "flat coords"])
def test_parts_that_do_not_fit_each_other_are_refused(cache_path: Path, damage: str) -> None:
    with h5py.File(cache_path, "a") as file:
        offsets, coords = file["patches/offsets"][:], file["coords"][:]
        del file["patches/offsets"], file["coords"]
        if damage == "fewer offsets":
            offsets = offsets[:-1]
        elif damage == "falling offsets":
            offsets[[1, 2]] = offsets[[2, 1]]
        elif damage == "wrong end":
            offsets[-1] += 1
        coords = {"fewer coords": coords[:-1], "flat coords": coords.ravel()}.get(damage, coords)
        file["patches/offsets"], file["coords"] = offsets, coords
    said = "offsets, coordinates and patches do not fit each other; delete it and tile again"
    assert refusal(cache_path) == said


def test_missing_parts_are_named(cache_path: Path) -> None:
    with h5py.File(cache_path, "a") as file:
        del file.attrs["vendor"], file.attrs["spec"], file["thumbnail"]
    assert refusal(cache_path) == "attributes vendor, spec missing; delete it and tile again"
    write(cache_path, 5)
    with h5py.File(cache_path, "a") as file:
        del file["thumbnail"]
    with pytest.raises(CacheError, match=r"a.h5: /thumbnail cannot be read: .*; delete it and tile again$"):
        PatchCache(cache_path).thumbnail()
    with h5py.File(cache_path, "a") as file:
        del file["patches"]
    assert refusal(cache_path) == "patches/offsets, patches/data missing; delete it and tile again"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mpp_level0", 0.0),
        ("mpp_level0", np.nan),
        ("mpp_level0", np.inf),
        ("mpp_patch", "x"),
        ("patch_size_px", -1),
        ("patch_size_px", 32.5),
        ("patch_size_px", 10**9),
        ("slide_size", 5),
    ],
)
def test_attributes_that_are_no_sizes_are_named(cache_path: Path, name: str, value: object) -> None:
    with h5py.File(cache_path, "a") as file:
        file.attrs[name] = value
    assert refusal(cache_path) == f"{name} is {value!r}; delete it and tile again"


def test_coordinates_that_are_not_whole_are_named(cache_path: Path) -> None:
    with h5py.File(cache_path, "a") as file:
        rows = len(file["coords"])
        del file["coords"]
        file["coords"] = np.full((rows, 2), np.nan)
    assert refusal(cache_path) == "/coords holds float64, not whole numbers; delete it and tile again"


def replaced(path: Path, name: str, **new) -> None:
    """Give a dataset other content."""
    with h5py.File(path, "a") as file:
        del file[name]
        file.create_dataset(name, **new)


NEVER = "numbers, and the file does not hold as many; delete it and tile again"
MISFIT = "offsets, coordinates and patches do not fit each other; delete it and tile again"


@pytest.mark.parametrize(
    ("name", "new", "said"),
    [
        ("patches/crc32", {"data": np.zeros(4, np.uint32)}, MISFIT),
        ("patches/crc32", {"data": np.zeros((5, 1), np.uint32)}, MISFIT),
        ("patches/crc32", {"shape": (5,), "dtype": np.uint32}, f"/patches/crc32 claims (5,) {NEVER}"),
        ("patches/offsets", {"shape": (10**10 + 1,), "dtype": np.uint64, "chunks": (1024,)}, MISFIT),
        ("patches/offsets", {"shape": (6,), "dtype": np.uint64}, f"/patches/offsets claims (6,) {NEVER}"),
        (
            "patches/offsets",
            {"data": np.arange(6.0)},
            "/patches/offsets holds float64, not whole numbers; delete it and tile again",
        ),
        ("patches/offsets", {"data": np.array([0, 2**63, 1, 2, 3, 4], np.uint64)}, MISFIT),
        (
            "patches/data",
            {"data": np.zeros(10, np.int64)},
            "/patches/data holds int64 (10,), not bytes; delete it and tile again",
        ),
        (
            "coords",
            {"data": np.array([[b"1", b"2"]] * 5)},
            "/coords holds |S1, not whole numbers; delete it and tile again",
        ),
        ("coords", {"shape": (5, 2), "dtype": np.int64}, f"/coords claims (5, 2) {NEVER}"),
        ("coords", {"shape": (5, 2), "dtype": np.int64, "chunks": (2, 2)}, f"/coords claims (5, 2) {NEVER}"),
        (
            "coords",
            {"shape": (5, 2), "dtype": np.uint8, "external": [("/etc/hostname", 0, h5py.h5f.UNLIMITED)]},
            "/coords is kept in other files; copy it into this one; delete it and tile again",
        ),
        (
            "coords",
            {"data": np.array([[0, 0], [5, 80_000], [0, 0], [0, 0], [0, 0]])},
            "patch 1 lies at (5, 80000), off the slide of 100000 x 80000; delete it and tile again",
        ),
        (
            "coords",
            {"data": np.full((5, 2), 2**63, np.uint64)},
            "patch 0 lies at (-9223372036854775808, -9223372036854775808), off the slide of 100000 x 80000; "
            "delete it and tile again",
        ),
        (
            "tissue",
            {"data": np.full(5, np.nan, np.float32)},
            "/tissue has values outside 0 .. 1; delete it and tile again",
        ),
        ("tissue", {"data": np.array([b"x"] * 5)}, "/tissue holds |S1, not numbers; delete it and tile again"),
    ],
)
def test_a_part_that_cannot_be_is_refused_before_a_patch_is_read(
    cache_path: Path, name: str, new: dict, said: str
) -> None:
    replaced(cache_path, name, **new)
    assert refusal(cache_path) == said


def test_what_a_cache_claims_to_hold_takes_no_memory(cache_path: Path) -> None:
    """Ten thousand million patches, as HDF5 declares them in a few hundred bytes, would take 160 GB."""
    for name, shape, dtype in (
        ("coords", (10**10, 2), np.int64),
        ("tissue", (10**10,), np.float32),
        ("patches/offsets", (10**10 + 1,), np.uint64),
        ("patches/crc32", (10**10,), np.uint32),
    ):
        replaced(cache_path, name, shape=shape, dtype=dtype, chunks=tuple(min(side, 512) for side in shape))
    num_bytes = bytes_of_patches(cache_path)
    tracemalloc.start()
    try:
        assert refusal(cache_path) == f"{10**10} patches in {num_bytes} bytes cannot be; delete it and tile again"
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def bytes_of_patches(path: Path) -> int:
    with h5py.File(path) as file:
        return file["patches/data"].size


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("thumbnail", f"/thumbnail claims {10**10} values, at most {2**28} can be; delete it and tile again"),
        ("tissue_mask", f"/tissue_mask claims {10**10} values, at most {2**28} can be; delete it and tile again"),
        ("dropped", f"/dropped claims {2 * 10**10} values, at most {2**28} can be; delete it and tile again"),
        ("qc/pen", MISFIT),
    ],
)
def test_other_parts_that_claim_too_much_are_refused_when_they_are_asked_for(
    cache_path: Path, name: str, said: str
) -> None:
    shape = {"tissue_mask": (10**5, 10**5), "dropped": (10**10, 2)}.get(name, (10**10,))
    with h5py.File(cache_path, "a") as file:
        if name in file:
            del file[name]
        kind = np.float32 if name == "qc/pen" else np.uint8
        file.create_dataset(name, shape, kind, chunks=tuple(min(side, 512) for side in shape))
    cache = PatchCache(cache_path)
    read = {"thumbnail": cache.thumbnail, "tissue_mask": cache.tissue_mask, "dropped": cache.dropped}
    with pytest.raises(CacheError) as caught:
        read.get(name, cache.quality)()
    assert str(caught.value) == f"{cache_path}: {said}"


def test_a_thumbnail_that_says_it_is_huge_is_refused(cache_path: Path) -> None:
    with h5py.File(cache_path, "a") as file:
        jpeg = bytearray(file["thumbnail"][:].tobytes())
        frame = jpeg.index(b"\xff\xc0")
        jpeg[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"  # 65500 x 65500
        file["thumbnail"][:] = np.frombuffer(jpeg, np.uint8)
    with pytest.raises(
        CacheError, match=r"a.h5: the thumbnail is damaged: 65500 x 65500 px, at most 268435456 px can be"
    ):
        PatchCache(cache_path).thumbnail()


def test_a_tile_side_that_contradicts_the_resolutions_is_refused(cache_path: Path) -> None:
    with h5py.File(cache_path, "a") as file:
        file.attrs["patch_size_level0"] = 64.0
    assert refusal(cache_path) == (
        "patch_size_level0 is 64, and by patch_size_px, mpp_patch and mpp_level0 it would be 128.051; "
        "delete it and tile again"
    )


def test_a_spec_that_is_no_settings_is_refused(cache_path: Path) -> None:
    with h5py.File(cache_path, "a") as file:
        file.attrs["spec"] = "[1]"
    assert refusal(cache_path) == "spec is '[1]', not settings; delete it and tile again"


def test_a_path_may_be_text(cache_path: Path) -> None:
    assert PatchCache(str(cache_path)).jpegs([0]) == PatchCache(cache_path).jpegs([0])


def test_a_cache_that_vanishes_is_named(cache_path: Path) -> None:
    cache = PatchCache(cache_path)
    cache_path.unlink()
    for read in (lambda: cache.patches([0]), lambda: cache.jpegs([0])):
        with pytest.raises(CacheError, match=f"^{cache_path}: cannot be read: No such file or directory$"):
            read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": 0}, "quality must lie in 1 .. 100, found 0"),
        ({"thumbnail_px": 15}, "thumbnail_px must lie in 16 .. 65500, found 15"),
        ({"tiling": TilingSpec(size_px=65_501)}, "a patch is a JPEG of at most 65500 px, found size_px 65501"),
    ],
)
def test_a_spec_out_of_range_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        CacheSpec(**changes)
