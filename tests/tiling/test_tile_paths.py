"""Patches come by copying, from decoded tiles, or through the reader; a cache says which, and the pixels agree."""

import csv
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.geometry import Region, Size
from wsi_dbps.core.settings import build
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.spec import CacheSpec
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.sampling import read_box
from wsi_dbps.synth.pyramid import write_aperio
from wsi_dbps.tiling.outcomes import Tiled
from wsi_dbps.tiling.tile_slide import tile_slide

TILE = 64


def picture(width: int = 720, height: int = 528) -> np.ndarray:
    x, y = np.arange(width), np.arange(height)[:, None]
    waves = [120 + 80 * np.sin(x / a + y / b) for a, b in ((17, 23), (29, 15), (31, 21))]
    return np.clip(np.stack(waves, axis=-1) + np.random.default_rng(0).normal(0, 4, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


@pytest.fixture(scope="module", params=[False, True], ids=["ycbcr", "rgb"])
def record(request, tmp_path_factory: pytest.TempPathFactory) -> SlideRecord:
    path = tmp_path_factory.mktemp("slide") / "a.svs"
    write_aperio(path, picture(), mpp_um=0.2525, tile_px=TILE, jpeg_rgb=request.param, downsamples=(1, 4))
    return SlideRecord("a", "a", path)


def tile(record: SlideRecord, out: Path, threads: int = 1, **settings) -> tuple[Tiled, PatchCache]:
    tiling = {"mpp_um": 0.25, "size_px": TILE, "tissue": "none", "min_tissue": 0.0} | settings.pop("tiling", {})
    spec = build(CacheSpec, {"tiling": tiling, "thumbnail_px": 200} | settings, "test")
    outcome = tile_slide(record, spec, out, threads=threads)
    assert isinstance(outcome, Tiled), outcome
    return outcome, PatchCache(outcome.path)


@pytest.mark.parametrize("level", [0, 1])
def test_copied_patches_are_what_openslide_shows_to_the_last_bit(record: SlideRecord, tmp_path: Path, level) -> None:
    outcome, cache = tile(record, tmp_path, tiling={"mpp_um": 0.25 * 4**level})
    assert (outcome.pixel_path, outcome.level, cache.facts.jpeg_origin) == ("copy", level, "scanner")
    assert cache.grid.mpp_um == outcome.mpp_um == 0.2525 * 4**level
    assert cache.grid.tile_lv0 == TILE * 4**level
    with open_slide(record.path, "openslide") as slide:
        size = slide.info.levels[level].size
        assert len(cache) == (size.width // TILE) * (size.height // TILE)
        for (x, y), patch in zip(cache.grid.origins_lv0 // 4**level, cache.patches(range(len(cache))), strict=True):
            np.testing.assert_array_equal(patch, slide.read(Region(level, int(x), int(y), TILE, TILE)))


def test_pillow_shows_a_copied_patch_right(record: SlideRecord, tmp_path: Path) -> None:
    _, cache = tile(record, tmp_path)
    (tmp_path / "p.jpg").write_bytes(cache.jpegs([5])[0])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p.jpg").convert("RGB")), cache.patches([5])[0])


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"codec": "jpeg"}, "tiles"),
        ({"codec": "reader"}, "reader"),
        ({"tiling": {"overlap_px": 8}}, "tiles"),
        ({"tiling": {"size_px": 48}}, "tiles"),
        ({"tiling": {"mpp_um": 0.505}}, "tiles"),
        ({"tiling": {"mpp_um": 0.8}}, "tiles"),
        ({"native_tolerance": 0.001}, "tiles"),
    ],
)
def test_what_is_not_copied_is_within_a_stated_error_of_level_0(record, tmp_path: Path, changes, path) -> None:
    outcome, cache = tile(record, tmp_path, quality=100, **changes)
    assert (outcome.pixel_path, cache.facts.jpeg_origin) == (path, "encoded")
    with open_slide(record.path) as slide:
        for (x, y), patch in list(zip(cache.grid.origins_lv0.tolist(), cache.patches(range(len(cache))), strict=True))[
            ::7
        ]:
            box = (x, y, x + cache.grid.tile_lv0, y + cache.grid.tile_lv0)
            expected = read_box(slide, 0, box, Size(cache.grid.size_px, cache.grid.size_px))
            assert np.abs(patch.astype(int) - expected).mean() < 5


def test_threads_change_nothing(record: SlideRecord, tmp_path: Path) -> None:
    made = [tile(record, tmp_path / str(n), n, codec="jpeg", tiling={"overlap_px": 8})[1] for n in (1, 4)]
    alone, many = (cache.jpegs(range(len(cache))) for cache in made)
    assert alone == many


def test_copy_is_obeyed_or_refused_with_the_reason(record: SlideRecord, tmp_path: Path) -> None:
    tile(record, tmp_path / "done", codec="copy")
    for tiling, why in (
        ({"size_px": 48}, "the scanner's tiles have 64 px, the patches 48"),
        ({"overlap_px": 8}, "patches overlap"),
        ({"mpp_um": 0.5}, "no level has 0.5 µm/px, they have 0.2525, 1.01"),
    ):
        asked = {"mpp_um": 0.25, "size_px": TILE, "tissue": "none"} | tiling
        spec = build(CacheSpec, {"tiling": asked, "codec": "copy"}, "test")
        said = tile_slide(record, spec, tmp_path / "refused").error
        assert said == f"a: {record.path}: the scanner's tiles cannot be copied: {why}; tile with --codec auto"


@pytest.fixture
def damaged(record: SlideRecord, tmp_path: Path) -> SlideRecord:
    """The slide with 2 of its 88 whole tiles overwritten."""
    from wsi_dbps.slides.jpeg_tiles import jpeg_levels

    with open_slide(record.path) as slide:
        level = jpeg_levels(record.path, slide.info)[0]
    content = bytearray(record.path.read_bytes())
    for place in ((2, 3), (4, 1)):
        start, count = int(level.offsets[place]), int(level.counts[place])
        content[start : start + count] = b"\x55" * count
    path = tmp_path / "damaged.svs"
    path.write_bytes(content)
    return replace(record, path=path)


@pytest.mark.parametrize("codec", ["copy", "jpeg", "reader"])
def test_damaged_tiles_are_left_out_recorded_and_counted(damaged, record, tmp_path: Path, codec: str) -> None:
    outcome, cache = tile(damaged, tmp_path / "out", codec=codec, max_damaged=0.05, tiling={"mpp_um": 0.2525})
    assert (outcome.num_dropped, outcome.num_patches, len(cache)) == (2, 86, 86)
    assert cache.dropped().tolist() == [[192, 128], [64, 256]]
    assert not {(192, 128), (64, 256)} & {tuple(corner) for corner in cache.grid.origins_lv0.tolist()}
    assert outcome.notes[0].startswith("2 of 88 tiles could not be decoded and were left out; the first: ")
    _, whole = tile(record, tmp_path / "whole", codec=codec, tiling={"mpp_um": 0.2525})
    kept = [
        i for i, corner in enumerate(whole.grid.origins_lv0.tolist()) if tuple(corner) not in {(192, 128), (64, 256)}
    ]
    np.testing.assert_array_equal(cache.patches(range(86)), whole.patches(kept))


def test_a_slide_beyond_its_fault_budget_fails(damaged: SlideRecord, tmp_path: Path) -> None:
    tiling = {"mpp_um": 0.25, "size_px": TILE, "tissue": "none"}
    spec = build(CacheSpec, {"tiling": tiling, "thumbnail_px": 200}, "test")
    outcome = tile_slide(damaged, spec, tmp_path / "out")
    assert outcome.error == (
        "a: more than 0.01 of its 88 tiles cannot be decoded (--max-damaged); the first: "
        f"{damaged.path}: cannot copy level 0 at (192, 128): the tile is no JPEG"
    )
    assert os.listdir(tmp_path / "out") == []


def test_the_command_copies_by_default_and_writes_a_table_of_slides(wsi_dbps, record, tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_text("hello")
    (tmp_path / "cohort.csv").write_text(f"slide_id,path\na,{record.path}\nbad,bad.svs\n")
    done = wsi_dbps(
        "tile", tmp_path / "cohort.csv", "--out", tmp_path / "out", "--mpp", 0.25, "--size", TILE, "--keep-pen"
    )
    assert done.code == 1
    with open(tmp_path / "out" / "tiling.csv", newline="") as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert rows["a"]["status"] == "tiled"
    assert (rows["a"]["reader"], rows["a"]["pixels"], rows["a"]["level"]) == ("openslide", "copy", "0")
    assert rows["a"]["mpp"] == "0.2525"
    assert int(rows["a"]["patches"]) > 0 < int(rows["a"]["bytes"])
    assert rows["bad"]["status"] == "failed"
    assert rows["bad"]["reason"].endswith("not a slide: neither OpenSlide nor tiffslide knows the format")
    again = wsi_dbps(
        "tile", tmp_path / "cohort.csv", "--out", tmp_path / "out", "--mpp", 0.25, "--size", TILE, "--keep-pen"
    )
    assert "1 kept as they were" in again.out
    with open(tmp_path / "out" / "tiling.csv", newline="") as file:
        assert {row["slide_id"]: row for row in csv.DictReader(file)}["a"] == rows["a"]


def test_the_contact_sheet_shows_every_slide_the_doubtful_first(wsi_dbps, record, tmp_path: Path) -> None:
    glass = np.full((300, 400, 3), 243, np.uint8)
    framed = glass.copy()
    framed[:150] = (200, 120, 170)  # stained up to the edge
    good = glass.copy()
    good[100:200, 100:300] = (200, 120, 170)
    for name, image in (("glass", glass), ("framed", framed), ("good", good)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.svs").write_text("hello")
    rows = [
        "good,good.png,8",
        "full," + str(record.path) + ",",
        "framed,framed.png,8",
        "glass,glass.png,8",
        "bad,bad.svs,8",
    ]
    (tmp_path / "cohort.csv").write_text("slide_id,path,mpp\n" + "\n".join(rows) + "\n")
    wsi_dbps(
        "tile",
        tmp_path / "cohort.csv",
        "--out",
        tmp_path / "out",
        "--mpp",
        8,
        "--size",
        32,
        "--workers",
        1,
        "--keep-pen",
    )
    page = (tmp_path / "out" / "contact-sheet.html").read_text()
    names = re.findall(r"<b>(.*?)</b>", page)
    assert sorted(names) == ["bad", "framed", "full", "glass", "good"]
    assert names[-1] == "good"
    assert "5 slides, 4 to look at" in page
    assert page.count("data:image/jpeg;base64,") == 4
    for said in (
        "not a slide",
        "no tissue found",
        "touches the edge of the slide",
        "more than 95% tissue",
        "<td>8 µm/px<td>3",
    ):
        assert said in page
    assert "http" not in page  # one file, no network
