"""Tiles that TRIDENT, CLAM, hs2p or an earlier run chose are cut as they are; TRIDENT and CLAM open our caches."""

import json
import re
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.errors import SlideError
from wsi_dbps.core.geometry import Size, TileGrid, pyramid_levels
from wsi_dbps.core.settings import build
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.spec import CacheSpec, TilingSpec
from wsi_dbps.slides.base import SlideInfo
from wsi_dbps.slides.jpeg_tiles import jpeg_levels
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.readers.memory import MemoryReader
from wsi_dbps.slides.source import ByteRanges
from wsi_dbps.synth.pyramid import write_aperio
from wsi_dbps.tiling.given_coords import GivenCoords, find_coords, read_coords
from wsi_dbps.tiling.outcomes import Kept, Tiled
from wsi_dbps.tiling.pixels import patch_pixels
from wsi_dbps.tiling.plan import TilePlan
from wsi_dbps.tiling.slide_plan import plan_slide
from wsi_dbps.tiling.tile_slide import tile_slide

SLIDE = Size(720, 528)
INFO = SlideInfo(pyramid_levels([SLIDE, Size(180, 132)]), 0.25, "aperio", "openslide", "0" * 16)
TILE = 64
ON_GRID = [(640, 0), (0, 64), (64, 64), (0, 0), (320, 448)]
"""Cells of the scanner's grid, in an order of no tool's."""


def write_trident(
    job: Path, coords: object, *, size_px: int = TILE, tile_lv0: float = TILE, name: str = "a", **changes: object
) -> Path:
    path = job / f"20x_{size_px}px_0px_overlap" / "patches" / f"{name}_patches.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    attributes = {
        "patch_size": size_px,
        "patch_size_level0": float(tile_lv0),
        "level0_magnification": 40,
        "target_magnification": 40 * size_px / tile_lv0,
        "overlap": 0,
        "name": name,
        "savetodir": str(job),
        "level0_width": SLIDE.width,
        "level0_height": SLIDE.height,
    } | changes
    with h5py.File(path, "w") as file:
        values = np.asarray(coords, None if len(np.shape(coords)) == 2 else np.float64)
        chunks = (1, *values.shape[1:])
        dataset = file.create_dataset("coords", data=values, chunks=chunks, maxshape=(None, *values.shape[1:]))
        dataset.attrs.update({key: value for key, value in attributes.items() if value is not None})
    return path


def write_clam(out: Path, coords: object, *, size_px: int = TILE, level: int = 0, name: str = "a", **changes) -> Path:
    path = out / "patches" / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = INFO.levels[level].size
    attributes = {
        "patch_size": size_px,
        "patch_level": level,
        "downsample": np.array([SLIDE.width / stored.width, SLIDE.height / stored.height]),
        "downsampled_level_dim": np.array([stored.width, stored.height]),
        "level_dim": np.array([stored.width, stored.height]),
        "name": name,
        "save_path": str(out / "patches"),
    } | changes
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("coords", data=np.asarray(coords), chunks=(32, 2), maxshape=(None, 2))
        dataset.attrs.update({key: value for key, value in attributes.items() if value is not None})
    return path


def write_hs2p(
    out: Path, coords: object, *, size_px: int = TILE, tile_lv0: int = TILE, name: str = "a", tissue=None, **changes
) -> Path:
    path = out / "tiles" / f"{name}.coordinates.meta.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    xy = np.asarray(coords, np.int64).reshape(-1, 2)
    tiling = {
        "requested_tile_size_px": size_px,
        "requested_spacing_um": 0.25 * tile_lv0 / size_px,
        "read_level": 0,
        "read_tile_size_px": tile_lv0,
        "read_spacing_um": 0.25,
        "tile_size_lv0": tile_lv0,
        "tolerance": 0.05,
        "step_px_lv0": tile_lv0,
        "overlap": 0.0,
        "min_tissue_fraction": 0.01,
        "is_within_tolerance": True,
        "n_tiles": len(xy),
    } | changes
    slide = {"base_spacing_um": 0.25, "dimensions": [SLIDE.width, SLIDE.height], "level_downsamples": [1.0, 4.0]}
    artifact = {"annotation": None, "coordinate_space": "level0_px", "tile_order": "x_then_y"}
    provenance = {"sample_id": name, "image_path": "/slides/a.svs", "backend": "openslide"}
    meta = {"provenance": provenance, "slide": slide, "tiling": tiling, "artifact": artifact}
    path.write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n")
    if len(xy):
        np.savez_compressed(
            path.with_name(f"{name}.coordinates.npz"),
            tile_index=np.arange(len(xy), dtype=np.int32),
            x=xy[:, 0],
            y=xy[:, 1],
            tissue_fractions=np.ones(len(xy), np.float32) if tissue is None else np.asarray(tissue),
        )
    return path


WRITERS = [write_trident, write_clam, write_hs2p]
layouts = pytest.mark.parametrize("write", WRITERS, ids=["trident", "clam", "hs2p"])


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> SlideRecord:
    """720 x 528 px at 0.25 µm/px in JPEG tiles of 64 px, and a level 4 times smaller."""
    x, y = np.arange(SLIDE.width), np.arange(SLIDE.height)[:, None]
    image = np.stack([110 + 80 * np.sin(x / a + y / b) for a, b in ((17, 23), (29, 15), (31, 21))], axis=-1)
    path = tmp_path_factory.mktemp("slide") / "a.svs"
    write_aperio(path, image.astype(np.uint8), mpp_um=0.25, tile_px=TILE, downsamples=(1, 4))
    return SlideRecord("a", "a", path)


def tile(record: SlideRecord, out: Path, coords: Path | None = None, **settings) -> tuple[Tiled | Kept, PatchCache]:
    spec = build(CacheSpec, {"thumbnail_px": 200} | settings, "test")
    outcome = tile_slide(replace(record, coords=coords), spec, out)
    assert isinstance(outcome, Tiled | Kept), outcome
    return outcome, PatchCache(outcome.path)


def jpegs(cache: PatchCache) -> list[bytes]:
    return cache.jpegs(range(len(cache)))


@pytest.mark.parametrize(
    ("codec", "tiling"),
    [
        ("copy", {"mpp_um": 0.25, "size_px": TILE}),
        ("copy", {"mpp_um": 0.99, "size_px": TILE}),
        ("auto", {"mpp_um": 0.37, "size_px": 50}),
        ("jpeg", {"mpp_um": 0.5, "size_px": 48, "overlap_px": 8}),
        ("reader", {"mpp_um": 1.3, "size_px": 31}),
    ],
)
def test_our_own_cache_gives_the_same_patches_again(record: SlideRecord, tmp_path: Path, codec, tiling) -> None:
    Image.fromarray(np.arange(720 * 528).reshape(528, 720) % 720 < 470).save(tmp_path / "mask.png")
    masked = replace(record, mask=tmp_path / "mask.png")
    first_outcome, first = tile(masked, tmp_path / "first", codec=codec, tiling={"min_tissue": 0.1} | tiling)
    outcome, again = tile(record, tmp_path / "again", tmp_path / "first", codec=codec)
    assert len(np.unique(first.tissue_N)) > 1
    assert jpegs(again) == jpegs(first)
    np.testing.assert_array_equal(again.grid.origins_lv0, first.grid.origins_lv0)
    np.testing.assert_array_equal(again.tissue_N, first.tissue_N)
    assert (outcome.pixel_path, outcome.level) == (first_outcome.pixel_path, first_outcome.level)
    assert (again.grid.size_px, again.grid.tile_lv0) == (first.grid.size_px, pytest.approx(first.grid.tile_lv0))
    assert again.grid.mpp_um == pytest.approx(first.grid.mpp_um)
    assert again.facts.spec["tiling"]["mpp_um"] == pytest.approx(first.grid.mpp_um)
    assert again.facts.spec["tiling"]["overlap_px"] == tiling.get("overlap_px", 0)


places = st.tuples(st.integers(0, SLIDE.width - 1), st.integers(0, SLIDE.height - 1))


@settings(deadline=None, max_examples=20)
@given(coords=st.lists(places, min_size=1, max_size=30))
def test_tiles_and_their_order_are_those_of_the_file_in_every_layout(coords: list[tuple[int, int]]) -> None:
    found: list[GivenCoords] = []
    for write in WRITERS:
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), np.array(coords))
            assert find_coords(Path(folder), "a") == path
            found.append(read_coords(path, INFO))
    for tiles in found:
        assert tiles.origins_lv0.tolist() == [list(place) for place in coords]
        assert (tiles.tile_lv0, tiles.size_px, tiles.overlap_px) == (TILE, TILE, 0)
        assert (tiles.tissue_N == 1).all()
    assert len({tiles.fingerprint for tiles in found}) == 1
    assert re.fullmatch("coords:[0-9a-f]{16}", found[0].fingerprint)
    other = replace(found[0], origins_lv0=found[0].origins_lv0 + 1)
    assert other.fingerprint != found[0].fingerprint


@layouts
def test_given_tiles_on_the_scanners_grid_are_copied(record: SlideRecord, tmp_path: Path, write: Callable) -> None:
    write(tmp_path / "theirs", ON_GRID)
    outcome, cache = tile(record, tmp_path / "out", tmp_path / "theirs", codec="copy")
    assert (outcome.pixel_path, cache.facts.jpeg_origin, outcome.notes) == ("copy", "scanner", ())
    assert cache.grid.origins_lv0.tolist() == [list(place) for place in ON_GRID]
    assert (cache.grid.size_px, cache.grid.tile_lv0, cache.grid.mpp_um) == (TILE, TILE, 0.25)
    _, whole = tile(
        record, tmp_path / "whole", codec="copy", tiling={"mpp_um": 0.25, "size_px": TILE, "tissue": "none"}
    )
    theirs = dict(zip(map(tuple, whole.grid.origins_lv0.tolist()), jpegs(whole), strict=True))
    assert jpegs(cache) == [theirs[place] for place in ON_GRID]


def test_clams_patch_size_counts_pixels_of_its_level(record: SlideRecord, tmp_path: Path) -> None:
    write_clam(tmp_path, [(256, 0), (5, 200)], size_px=32, level=1)
    _, cache = tile(record, tmp_path / "out", tmp_path, quality=100)
    assert (cache.grid.size_px, cache.grid.tile_lv0, cache.grid.mpp_um) == (32, 128, 1.0)
    asked = {"mpp_um": 1.0, "size_px": 32, "overlap_px": 0, "tissue": "none", "drop_pen": False, "min_tissue": 0.0}
    assert cache.facts.spec["tiling"] == asked
    with openslide.OpenSlide(record.path) as slide:
        expected = np.asarray(slide.read_region((256, 0), 1, (32, 32)).convert("RGB"))
    assert np.abs(cache.patches([0])[0].astype(int) - expected).mean() < 2


def test_hs2ps_shares_of_tissue_are_kept_and_the_mask_is_where_its_tiles_lie(record, tmp_path: Path) -> None:
    write_hs2p(tmp_path, [(0, 0), (360, 264)], size_px=90, tile_lv0=180, tissue=[0.25, 1.0], overlap=0.1)
    _, cache = tile(record, tmp_path / "out", tmp_path)
    assert cache.tissue_N.tolist() == [0.25, 1.0]
    assert cache.facts.spec["tiling"]["overlap_px"] == 9
    mask_HW = cache.tissue_mask()
    height, width = mask_HW.shape
    assert mask_HW[: height // 4, : width // 4].all()
    assert mask_HW[height // 2 : height // 2 + height // 4, width // 2 : width // 2 + width // 4].all()
    assert mask_HW.mean() == pytest.approx(2 * 180**2 / (720 * 528), abs=0.03)


@settings(deadline=None, max_examples=60)
@given(place=places, size_px=st.integers(1, 300), shrink=st.sampled_from([1, 2, 3, 3.7]))
def test_a_patch_is_white_beyond_the_slides_edge_and_its_pixels_within(place, size_px: int, shrink: float) -> None:
    grey = np.full((SLIDE.height, SLIDE.width, 3), 100, np.uint8)
    image = np.random.default_rng(0).integers(0, 255, grey.shape, np.uint8) if shrink == 1 else grey
    spec, tile_lv0 = TilingSpec(size_px=size_px), size_px * shrink
    plan = TilePlan(spec, TileGrid(np.array([place]), tile_lv0, SLIDE, 0.25), np.ones(1, np.float32))
    patch = patch_pixels(MemoryReader([image], mpp_um=0.25), 0, plan, 0)
    x, y = place
    width, height = (
        int(min(size_px, (side - at) / shrink + 1e-6)) for side, at in ((SLIDE.width, x), (SLIDE.height, y))
    )
    expected = np.full((size_px, size_px, 3), 255, np.uint8)
    expected[:height, :width] = image[y : y + height, x : x + width] if shrink == 1 else 100
    np.testing.assert_array_equal(patch, expected)
    assert plan.past_edge.tolist() == [x + tile_lv0 > SLIDE.width or y + tile_lv0 > SLIDE.height]


@pytest.mark.parametrize("codec", ["copy", "jpeg", "reader"])
def test_tiles_past_the_edge_are_told_and_only_they_are_not_copied(record, tmp_path: Path, codec: str) -> None:
    write_trident(tmp_path, [(704, 512), (0, 0), (704, 0), (320, 512)])
    outcome, cache = tile(record, tmp_path / "out", tmp_path, codec=codec)
    said = "3 of 4 given tiles reach past the slide's edge; their patches are white there"
    assert outcome.notes == (said,)
    corner, first, right, bottom = cache.patches(range(4))
    assert corner[32:, 32:].min() > 250
    assert right[:, 32:].min() > 250
    assert bottom[32:].min() > 250
    assert max(patch[:14, :14].max() for patch in (corner, first, right, bottom)) < 230
    with open_slide(record.path) as slide:
        level = jpeg_levels(record.path, slide.info)[0]
    with ByteRanges(level.path) as file:
        stored = list(level.jpegs(file, np.array([[0, 0]])))
    assert (jpegs(cache)[1:2] == stored) == (codec == "copy")


@pytest.mark.parametrize("coords", [[(1, 0), (64, 64)], [(0, 0), (64, 32)]])
def test_given_tiles_off_the_scanners_grid_are_decoded_and_copy_refuses_them(record, tmp_path: Path, coords) -> None:
    write_trident(tmp_path, coords)
    outcome, cache = tile(record, tmp_path / "out", tmp_path)
    assert (outcome.pixel_path, cache.facts.jpeg_origin) == ("tiles", "encoded")
    failed = tile_slide(replace(record, coords=tmp_path), CacheSpec(codec="copy"), tmp_path / "refused")
    why = "the given tiles are not the scanner's"
    assert failed.error == f"a: {record.path}: the scanner's tiles cannot be copied: {why}; tile with --codec auto"


def test_a_tile_a_little_larger_than_the_scanners_is_not_taken_for_it(record: SlideRecord, tmp_path: Path) -> None:
    write_trident(tmp_path, [(0, 0)], tile_lv0=65)
    outcome, cache = tile(record, tmp_path / "out", tmp_path)
    assert (outcome.pixel_path, cache.grid.tile_lv0) == ("tiles", 65)


def test_a_cache_of_other_coordinates_is_refused_and_of_the_same_kept(record: SlideRecord, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    write_trident(one, ON_GRID)
    write_clam(same, ON_GRID)
    path = write_trident(other, ON_GRID[::-1])
    _, cache = tile(record, out, one)
    assert cache.facts.mask_fingerprint.startswith("coords:")
    kept, _ = tile(record, out, same)
    assert isinstance(kept, Kept)
    failed = tile_slide(replace(record, coords=other), CacheSpec(thumbnail_px=200), out)
    otherwise = f"a: {out}/a.h5 was made otherwise: "
    repair = "; pass --overwrite, or another --out folder"
    assert failed.error == f"{otherwise}its tiles are not those of {path}{repair}"
    failed = tile_slide(record, CacheSpec(thumbnail_px=200), out)
    assert failed.error.startswith(f"{otherwise}mpp_um is 0.25 in it, 0.5 asked; ")
    assert failed.error.endswith(f"; the manifest's mask or tissue was another one than none{repair}")


def test_given_tiles_outdo_the_manifests_mask_and_tissue(record: SlideRecord, tmp_path: Path) -> None:
    write_trident(tmp_path, ON_GRID)
    masked = replace(record, mask=tmp_path / "gone.png", extra={"tissue": "hsv"})
    assert jpegs(tile(masked, tmp_path / "b", tmp_path)[1]) == jpegs(tile(record, tmp_path / "c", tmp_path)[1])


def test_a_slide_without_tiles_gives_an_empty_cache(record: SlideRecord, tmp_path: Path) -> None:
    write_trident(tmp_path / "trident", np.empty((0, 2), np.int64))
    write_trident(tmp_path / "older", [])
    write_hs2p(tmp_path / "hs2p", [])
    for name in ("trident", "older", "hs2p"):
        outcome, cache = tile(record, tmp_path / "out" / name, tmp_path / name)
        assert len(cache) == 0
        assert outcome.notes == ("no tissue found; no patches",)


# ---- our caches in the peers' hands


@pytest.mark.parametrize(
    ("mpp_um", "size_px", "codec", "level"),
    [(0.25, TILE, "auto", 0), (1.0, TILE, "auto", 1), (0.25, 50, "jpeg", 0), (1.0, 24, "reader", 1)],
)
def test_clam_cuts_the_same_patches_from_our_coords(record, tmp_path: Path, mpp_um, size_px, codec, level) -> None:
    tiling = {"mpp_um": mpp_um, "size_px": size_px, "tissue": "none"}
    _, cache = tile(record, tmp_path, codec=codec, tiling=tiling, quality=100)
    with h5py.File(cache.path) as file, openslide.OpenSlide(record.path) as slide:
        attrs, coords = dict(file["coords"].attrs), file["coords"][:]
        assert attrs["patch_level"] == level
        assert attrs["downsample"].tolist() == [4.0**level] * 2
        assert attrs["level_dim"].tolist() == list(slide.level_dimensions[level])
        assert attrs["downsampled_level_dim"].tolist() == list(slide.level_dimensions[level])
        assert (attrs["name"], attrs["save_path"]) == ("a", ".")
        side = int(attrs["patch_size"])
        for i in range(0, len(coords), 5):
            theirs = slide.read_region(tuple(coords[i]), attrs["patch_level"], (side, side)).convert("RGB")
            assert np.abs(cache.patches([i])[0].astype(int) - np.asarray(theirs)).mean() < 4
    with open_slide(record.path) as slide:
        assert read_coords(cache.path, slide.info).tile_lv0 == size_px * 4**level


@pytest.mark.parametrize("tiling", [{"mpp_um": 0.5, "size_px": 64}, {"mpp_um": 0.255, "size_px": 48}])
def test_clams_attributes_are_left_out_where_it_would_cut_other_tiles(record, tmp_path: Path, tiling) -> None:
    _, cache = tile(record, tmp_path, tiling=tiling)
    with h5py.File(cache.path) as file:
        assert not {"patch_level", "downsample", "level_dim", "save_path"} & set(file["coords"].attrs)


@pytest.mark.parametrize(("mpp_um", "mpp_lv0_um"), [(0.5, None), (0.5, 0.2525), (0.3, 0.263), (2.0, 0.23)])
def test_trident_computes_our_tiles_side(record: SlideRecord, tmp_path: Path, mpp_um, mpp_lv0_um) -> None:
    tiling = {"mpp_um": mpp_um, "size_px": TILE, "tissue": "none"}
    _, cache = tile(replace(record, mpp_um=mpp_lv0_um), tmp_path, tiling=tiling)
    with h5py.File(cache.path) as file:
        attrs = dict(file["coords"].attrs)
    theirs = (10 / attrs["target_magnification"]) / (10 / attrs["level0_magnification"]) * attrs["patch_size"]
    assert theirs == pytest.approx(cache.grid.tile_lv0)
    assert round(theirs) == attrs["patch_size_level0"]


def test_a_slide_gives_the_same_bytes_in_any_folder(record: SlideRecord, tmp_path: Path) -> None:
    write_trident(tmp_path, ON_GRID)
    made = [tile(record, tmp_path / name, tmp_path)[0].path.read_bytes() for name in ("one", "two")]
    assert made[0] == made[1]


# ---- the command


@pytest.fixture
def cohort(record: SlideRecord, tmp_path: Path) -> Path:
    path = tmp_path / "cohort.csv"
    path.write_text(f"slide_id,path\na,{record.path}\nb,{record.path}\n")
    return path


@pytest.mark.parametrize("place", ["", "20x_64px_0px_overlap", "20x_64px_0px_overlap/patches"])
def test_a_trident_job_or_a_folder_in_it_may_be_named(wsi_dbps, cohort: Path, tmp_path: Path, place: str) -> None:
    job, out = tmp_path / "job", tmp_path / "out"
    write_trident(job, ON_GRID)
    write_trident(job, ON_GRID[:2], name="b")
    done = wsi_dbps("tile", cohort, "--out", out, "--coords", job / place, "--workers", 1)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("2 slides tiled (7 patches, ")
    again = wsi_dbps("tile", cohort, "--out", out, "--coords", job / place, "--workers", 1)
    assert "2 kept as they were, 0 failed" in again.out
    dry = wsi_dbps("tile", cohort, "--out", out, "--coords", job / place, "--dry-run")
    assert "2 slides, 0 would fail; 7 tiles" in dry.out


@pytest.mark.parametrize(("write", "inner"), [(write_clam, "patches"), (write_hs2p, "tiles")])
def test_clams_and_hs2ps_output_or_the_folder_in_it_may_be_named(wsi_dbps, cohort, tmp_path, write, inner) -> None:
    write(tmp_path / "theirs", ON_GRID)
    write(tmp_path / "theirs", ON_GRID, name="b")
    for i, place in enumerate((tmp_path / "theirs", tmp_path / "theirs" / inner)):
        done = wsi_dbps("tile", cohort, "--out", tmp_path / str(i), "--coords", place, "--workers", 1)
        assert (done.code, done.err) == (0, "")


def test_a_slide_without_a_file_or_with_two_fails_and_the_rest_go_on(wsi_dbps, cohort: Path, record, tmp_path) -> None:
    job, out = tmp_path / "job", tmp_path / "out"
    path = write_trident(job, ON_GRID)
    done = wsi_dbps("tile", cohort, "--out", out, "--coords", job, "--workers", 1)
    assert done.code == 1
    assert done.err == (
        f"b: {record.path}: coordinates {job}: no b_patches.h5, b.h5 or b.coordinates.meta.json there or in patches, "
        "tiles, *_overlap/patches; files are known by slide_id: name them so, or leave the slide out\n"
    )
    assert "1 slides tiled (5 patches, " in done.out
    twice = write_clam(job, ON_GRID)
    done = wsi_dbps("tile", cohort, "--out", out, "--coords", job, "--workers", 1)
    assert f"a: {record.path}: 2 files of coordinates: {twice}, {path}; give --coords a narrower one\n" in done.err


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("--mpp", 0.5), "--mpp"),
        (("--mag", 20), "--mag"),
        (("--size", 256), "--size"),
        (("--overlap", 0), "--overlap"),
        (("--tissue", "otsu"), "--tissue"),
        (("--keep-pen",), "--drop-pen/--keep-pen"),
        (("--min-tissue", 0.25), "--min-tissue"),
    ],
)
def test_settings_that_the_coordinates_decide_are_refused_even_at_their_default(
    wsi_dbps, cohort: Path, tmp_path: Path, arguments, flag: str
) -> None:
    done = wsi_dbps("tile", cohort, "--out", tmp_path / "out", "--coords", tmp_path, *arguments)
    assert done.code == 2
    said = f"--coords {tmp_path}: which tiles, and how large, its files say; leave out {flag}"
    assert done.err == f"wsi-dbps: {said}\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_ends_with_2(wsi_dbps, cohort: Path, tmp_path: Path) -> None:
    done = wsi_dbps("tile", cohort, "--out", tmp_path / "out", "--coords", tmp_path / "gone")
    assert done.code == 2
    said = f"--coords {tmp_path}/gone: no such folder; name the one that the tool wrote its coordinates to"
    assert done.err == f"wsi-dbps: {said}\n"


# ---- files that cannot be used

AGAIN = "; make the coordinates anew, or tile without --coords"


@pytest.mark.parametrize(
    ("write", "changes", "said"),
    [
        (
            write_trident,
            {"coords": [(0, 0, 0)]},
            "cannot be used: coordinates are int64 (1, 3), not whole numbers (N, 2)",
        ),
        (
            write_clam,
            {"coords": [(0.5, 1.0)]},
            "cannot be used: coordinates are float64 (1, 2), not whole numbers (N, 2)",
        ),
        (write_trident, {"patch_size": None}, "not in it: patch_size"),
        (write_trident, {"patch_size": "None"}, "cannot be used: "),
        (
            write_trident,
            {"patch_size": 64.5},
            "cannot be used: patches of 64.5 px; a side is a whole number from 1 to ",
        ),
        (
            write_trident,
            {"patch_size_level0": None},
            "not in it: patch_size_level0 (TRIDENT) or patch_level (CLAM) on /c",
        ),
        (write_trident, {"patch_size_level0": np.nan}, "cannot be used: nan px of level 0 for patches of 64 px"),
        (
            write_trident,
            {"patch_size_level0": 32},
            "cannot be used: 32 px of level 0 for patches of 64 px: they would ",
        ),
        (write_trident, {"overlap": 64}, "cannot be used: an overlap of 64 px between patches of 64 px"),
        (write_hs2p, {"n_tiles": 4}, "cannot be used: n_tiles is 4, and the .npz beside has 5"),
        (
            write_hs2p,
            {"tissue": [1, 1, 1, 1, np.nan]},
            "cannot be used: its shares of tissue are not one number from 0 ",
        ),
    ],
)
def test_a_file_without_usable_tiles_says_why_and_what_to_do(tmp_path: Path, write: Callable, changes, said) -> None:
    path = write(tmp_path, **{"coords": ON_GRID} | changes)
    with pytest.raises(SlideError) as caught:
        read_coords(path, INFO)
    assert str(caught.value).startswith(f"coordinates {path}: {said}")
    assert str(caught.value).endswith(AGAIN)
    assert "\n" not in str(caught.value)


OUTSIDE = "tiles begin outside the slide (720 x 528 px), the first at"
ANOTHER = "they are of another slide, or"


@pytest.mark.parametrize(
    ("write", "changes", "said"),
    [
        (write_trident, {"coords": [(0, 0), (720, 0)]}, f"1 of 2 {OUTSIDE} (720, 0): {ANOTHER} not in level-0 pixels"),
        (write_clam, {"coords": [(-1, 0)]}, f"1 of 1 {OUTSIDE} (-1, 0): {ANOTHER} not in level-0 pixels"),
        (write_trident, {"level0_width": 700}, "of a slide of 700 x 528 px, and this one has 720 x 528"),
        (write_clam, {"patch_level": 2}, "patch_level is 2, and the slide has 2 levels"),
        (
            write_clam,
            {"level_dim": [360, 264]},
            f"level 0 has 360 x 264 px in it, and 720 x 528 in the slide: {ANOTHER} were made through another reader",
        ),
    ],
)
def test_tiles_of_another_slide_are_refused(tmp_path: Path, write: Callable, changes, said: str) -> None:
    path = write(tmp_path, **{"coords": ON_GRID} | changes)
    with pytest.raises(SlideError, match=f"^{re.escape(f'coordinates {path}: {said}')}$"):
        read_coords(path, INFO)


def test_a_damaged_file_says_so(tmp_path: Path, record: SlideRecord) -> None:
    for path in (write_trident(tmp_path / "t", ON_GRID), write_hs2p(tmp_path / "h", ON_GRID)):
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(SlideError, match=rf"^coordinates {re.escape(str(path))}: cannot be used: .*{AGAIN}$"):
            read_coords(path, INFO)
    path = write_hs2p(tmp_path / "n", ON_GRID)
    (path.parent / "a.coordinates.npz").unlink()
    with pytest.raises(SlideError, match=rf"cannot be used: .*No such file.*{AGAIN}$"):
        read_coords(path, INFO)
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"artifact": {"coordinate_space": "um"}}))
    with pytest.raises(SlideError, match=r"cannot be used: coordinate_space is 'um', not 'level0_px'; "):
        read_coords(path, INFO)
    path.write_text(json.dumps({}))
    with pytest.raises(SlideError, match=rf"^coordinates {re.escape(str(path))}: not in it: tiling{AGAIN}$"):
        read_coords(path, INFO)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.zeros(3)
    with pytest.raises(SlideError, match=rf"a.h5: not in it: /coords{AGAIN}$"):
        plan_slide(replace(record, coords=tmp_path), CacheSpec())


@pytest.mark.parametrize("num", [10**7, 10**10])
@pytest.mark.parametrize("chunks", [None, (1000, 2)])
def test_tiles_that_a_file_claims_and_does_not_hold_take_no_memory(tmp_path: Path, num: int, chunks) -> None:
    path = write_trident(tmp_path / "job", ON_GRID)
    with h5py.File(path, "a") as file:
        attributes = dict(file["coords"].attrs)
        del file["coords"]
        file.create_dataset("coords", (num, 2), np.int64, chunks=chunks).attrs.update(attributes)
    tracemalloc.start()
    try:
        said = r"cannot be used: /coords claims .* and (the file does not hold as many|up to 50000000 are read)"
        with pytest.raises(SlideError, match=said):
            read_coords(path, INFO)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_archive_that_unpacks_to_more_tiles_than_a_slide_has_is_refused(tmp_path: Path) -> None:
    path = write_hs2p(tmp_path, ON_GRID)
    packed = zipfile.ZipFile(path.parent / "a.coordinates.npz", "w", zipfile.ZIP_DEFLATED)
    with packed as archive, archive.open("x.npy", "w", force_zip64=True) as member:
        for _ in range(500):
            member.write(bytes(1_000_000))
    with pytest.raises(SlideError, match=r"the .npz beside unpacks to 500000000 bytes: more than 50000000 tiles"):
        read_coords(path, INFO)


def test_text_and_nan_are_no_coordinates(tmp_path: Path) -> None:
    for values, said in (
        ([[b"1", b"2"]], "coordinates are .*, not whole numbers"),
        ([[0.0, np.nan]], "coordinates are float64 .*, not whole numbers"),
    ):
        path = write_trident(tmp_path / "job", ON_GRID)
        with h5py.File(path, "a") as file:
            attributes = dict(file["coords"].attrs)
            del file["coords"]
            file["coords"] = values
            file["coords"].attrs.update(attributes)
        with pytest.raises(SlideError, match=said):
            read_coords(path, INFO)
