"""From a slide to a cache: the right pixels, once, and never somebody else's."""

import glob
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import imagecodecs
import numpy as np
import openslide
import pytest
from PIL import Image

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.errors import OutputError
from wsi_dbps.core.geometry import Size
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.sampling import best_level, read_box
from wsi_dbps.synth.pyramid import write_aperio, write_lossless
from wsi_dbps.tiling.outcomes import Failed, Kept, Tiled
from wsi_dbps.tiling.slide_plan import plan_slide
from wsi_dbps.tiling.tile_slide import estimate_bytes, tile_slide


def state(path: Path) -> tuple[int, int, str]:
    return path.stat().st_ino, path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("settings", [{}, {"mpp_um": 1.3, "size_px": 48, "overlap_px": 9}, {"mpp_um": 2.0}])
def test_patch_i_is_what_lies_at_origin_i(record: SlideRecord, make_spec, tmp_path: Path, settings: dict) -> None:
    spec = make_spec(min_tissue=0.3, **settings)
    outcome = tile_slide(record, spec, tmp_path)
    cache = PatchCache(outcome.path)
    assert len(cache) == outcome.num_patches > 1
    decided = plan_slide(record, spec)
    np.testing.assert_array_equal(cache.grid.origins_lv0, decided.plan.grid.origins_lv0)
    np.testing.assert_array_equal(cache.tissue_N, decided.plan.tissue_N)
    np.testing.assert_array_equal(cache.tissue_mask(), decided.mask.mask_HW)
    assert np.abs(cache.thumbnail().astype(int) - decided.thumbnail_HWC).mean() < 3
    patches = cache.patches(range(len(cache)))
    with open_slide(record.path) as slide:
        level = best_level(slide.info.levels, cache.grid.tile_lv0 / cache.grid.size_px)
        for (x, y), patch in zip(cache.grid.origins_lv0.tolist(), patches, strict=True):
            box = (x, y, x + cache.grid.tile_lv0, y + cache.grid.tile_lv0)
            there = read_box(slide, level, box, Size(cache.grid.size_px, cache.grid.size_px))
            assert np.abs(patch.astype(int) - there).mean() < 4


def test_saturated_colours_reach_the_cache(tmp_path: Path, make_spec) -> None:
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 170)], np.uint8)
    image = colours.repeat(64, axis=0)[None].repeat(64, axis=0)
    write_aperio(tmp_path / "a.svs", image, mpp_um=0.5, quality=95, tile_px=64)
    outcome = tile_slide(SlideRecord("a", "a", tmp_path / "a.svs"), make_spec(tissue="none"), tmp_path)
    patches = PatchCache(outcome.path).patches(range(4))
    assert np.abs(patches[:, 16:48, 16:48].astype(int) - colours[:, None, None]).max() <= 4


def test_a_second_run_leaves_the_file_alone(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    first = tile_slide(record, make_spec(), tmp_path)
    before = state(first.path)
    second = tile_slide(record, make_spec(), tmp_path)
    assert state(first.path) == before
    assert isinstance(first, Tiled)
    assert second == Kept("a", first.path, first.num_patches)


def test_the_same_slide_gives_the_same_bytes(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    path = tile_slide(record, make_spec(), tmp_path).path
    before, stamps = state(path), []
    with h5py.File(path) as file:  # HDF5 stamps the time on what it holds unless told not to
        file.visit(lambda name: stamps.append(h5py.h5g.get_objinfo(file.id, name.encode()).mtime))
    assert set(stamps) == {0}
    assert isinstance(tile_slide(record, make_spec(), tmp_path, overwrite=True), Tiled)
    assert state(path)[2] == before[2]
    assert state(path)[0] != before[0]
    assert glob.glob("*", root_dir=tmp_path) == ["a.h5"]


def test_a_copied_or_renamed_slide_is_known_again(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    tile_slide(record, make_spec(), tmp_path)
    copy = tmp_path / "elsewhere" / "renamed.tif"
    copy.parent.mkdir()
    shutil.copy(record.path, copy)
    assert isinstance(tile_slide(replace(record, path=copy), make_spec(), tmp_path), Kept)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"mpp_um": 1.0}, "mpp_um is 0.5 in it, 1.0 asked"),
        ({"size_px": 32}, "size_px is 64 in it, 32 asked"),
        ({"quality": 80}, "quality is 90 in it, 80 asked"),
        ({"reader": "tiffslide"}, "reader is 'auto' in it, 'tiffslide' asked"),
        ({"min_tissue": 0.25}, "min_tissue is 0.5 in it, 0.25 asked"),
        (
            {"size_px": 32, "tissue": "none"},
            "size_px is 64 in it, 32 asked; tissue is 'stain' in it, 'none' asked",
        ),
    ],
)
def test_a_cache_made_otherwise_is_refused_with_the_setting_named(
    record: SlideRecord, make_spec, tmp_path: Path, changes: dict, difference: str
) -> None:
    path = tile_slide(record, make_spec(), tmp_path).path
    before = state(path)
    outcome = tile_slide(record, make_spec(**changes), tmp_path)
    assert outcome.error == (f"a: {path} was made otherwise: {difference}; pass --overwrite, or another --out folder")
    assert state(path) == before
    assert isinstance(tile_slide(record, make_spec(**changes), tmp_path, overwrite=True), Tiled)
    assert isinstance(tile_slide(record, make_spec(**changes), tmp_path), Kept)


def test_a_cache_of_another_slide_mask_or_mpp_is_refused(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    path = tile_slide(record, make_spec(), tmp_path).path
    other = tmp_path / "other.tif"
    write_lossless(other, np.zeros((300, 300, 3), np.uint8), mpp_um=0.5)
    mask = tmp_path / "mask.png"
    Image.new("L", (70, 50), 255).save(mask)
    expected = {
        replace(record, path=other): f"the slide file was another one than {other}",
        replace(record, mask=mask): f"the manifest's mask or tissue was another one than {mask}",
        replace(record, mpp_um=0.55): "mpp_level0 is 0.5 in it, 0.55 asked",
    }
    for changed, difference in expected.items():
        assert f"{path} was made otherwise: {difference}; pass" in tile_slide(changed, make_spec(), tmp_path).error
    path.rename(tmp_path / "b.h5")
    said = tile_slide(replace(record, slide_id="b"), make_spec(), tmp_path).error
    assert "slide_id is 'a' in it, 'b' asked" in said


def test_a_damaged_cache_is_named_and_kept_until_overwritten(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    assert isinstance(tile_slide(record, make_spec(), tmp_path), Tiled)
    (tmp_path / "a.h5").write_text("hello")
    said = tile_slide(record, make_spec(), tmp_path).error
    assert said.startswith(f"a: {tmp_path}/a.h5: not a readable patch cache: ")
    assert (tmp_path / "a.h5").read_text() == "hello"
    assert isinstance(tile_slide(record, make_spec(), tmp_path, overwrite=True), Tiled)


def test_a_file_of_another_tool_is_not_overwritten(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = [[0, 0]]
    before = (tmp_path / "a.h5").read_bytes()
    said = tile_slide(record, make_spec(), tmp_path, overwrite=True).error
    assert said == (
        f"a: {tmp_path}/a.h5: exists and was not written by wsi-dbps, so it is not replaced; move it away, or give "
        "another name or folder with --out"
    )
    assert (tmp_path / "a.h5").read_bytes() == before


def test_a_manifests_mask_decides(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    left = {"type": "Polygon", "coordinates": [[[0, 0], [256, 0], [256, 500], [0, 500]]]}
    (tmp_path / "m.geojson").write_text(json.dumps(left))
    outcome = tile_slide(replace(record, mask=tmp_path / "m.geojson"), make_spec(min_tissue=0.9), tmp_path)
    cache = PatchCache(outcome.path)
    assert sorted({x for x, _ in cache.grid.origins_lv0.tolist()}) == [0, 64, 128, 192]
    assert len(cache) == 4 * 7
    assert len(cache.facts.mask_fingerprint) == 16


def test_a_manifests_mpp_decides(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    outcome = tile_slide(replace(record, mpp_um=0.25), make_spec(), tmp_path)
    cache = PatchCache(outcome.path)
    assert (cache.grid.tile_lv0, cache.grid.mpp_lv0_um, cache.facts.mpp_source) == (128, 0.25, "manifest")
    assert outcome.notes == ("the manifest says 0.25 µm/px and the file 0.5; the manifest is believed",)
    assert tile_slide(replace(record, mpp_um=0.51), make_spec(), tmp_path / "x").notes == ()


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, "no tissue found; no patches"),
        ({"size_px": 301}, "smaller (400 x 300 px) than one tile of 301 px; no patches"),
    ],
)
def test_a_slide_without_patches_has_a_cache_and_a_note(blank_path, make_spec, tmp_path, changes, note) -> None:
    outcome = tile_slide(SlideRecord("b", "b", blank_path), make_spec(**changes), tmp_path)
    assert (outcome.num_patches, outcome.notes) == (0, (note,))
    cache = PatchCache(outcome.path)
    assert len(cache) == 0
    assert cache.thumbnail().shape[1] == 100  # the level of that width
    assert isinstance(tile_slide(SlideRecord("b", "b", blank_path), make_spec(**changes), tmp_path), Kept)


def test_a_little_tissue_is_not_called_none(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    outcome = tile_slide(record, make_spec(size_px=450, min_tissue=1.0), tmp_path)
    assert outcome.notes == ("no tile holds a share of 1 of tissue; no patches",)


def test_what_is_estimated_is_what_is_written(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    spec = make_spec(tissue="none")
    cache = PatchCache(tile_slide(record, spec, tmp_path).path)
    assert estimate_bytes(plan_slide(record, spec), sample=99) == pytest.approx(cache.num_bytes, abs=99)


def test_a_slide_that_cannot_be_used_is_an_outcome_in_one_line(record, make_spec, tmp_path: Path) -> None:
    png = tmp_path / "a.png"
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(png)
    mask = tmp_path / "gone.png"
    expected = {
        replace(record, path=tmp_path / "gone.svs"): f"a: {tmp_path}/gone.svs: no such file",
        replace(record, path=None): "a: no path in the manifest",
        replace(record, path=None, url="nowhere://a.svs"): "a: nowhere://a.svs: the protocol 'nowhere' is not "
        "opened; allowed are a local path and file://, http://, https://, s3://, gs://, az://, abfs://",
        replace(record, path=png): f"a: {png}: no mpp in the file; add an mpp column to the manifest for a",
        replace(record, mask=mask): f"a: {record.path}: mask {mask}: cannot be read: No such file or directory",
    }
    for wrong, said in expected.items():
        assert tile_slide(wrong, make_spec(), tmp_path / "caches") == Failed("a", said)
    assert not list((tmp_path / "caches").glob("*"))


def test_a_failure_that_nobody_foresaw_names_the_slide_and_keeps_its_traceback(record, tmp_path: Path) -> None:
    outcome = tile_slide(record, None, tmp_path)  # no spec: a bug in the caller
    assert outcome.error == (
        f"a: {record.path}: unforeseen AttributeError: 'NoneType' object has no attribute 'reader'"
    )
    assert outcome.traceback.startswith("Traceback")


def test_a_flat_picture_is_tiled_when_its_mpp_is_given(tmp_path: Path, make_spec) -> None:
    image = np.random.default_rng(0).integers(0, 256, (130, 200, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    record = SlideRecord("a", "a", tmp_path / "a.png", mpp_um=0.5)
    cache = PatchCache(tile_slide(record, make_spec(tissue="none", quality=100), tmp_path).path)
    assert (len(cache), cache.facts.reader, cache.facts.vendor) == (6, "image", "image")
    luma = [0.299, 0.587, 0.114]  # colour noise does not survive 4:2:0
    found, expected = cache.patches([4])[0] @ luma, image[64:128, 64:128] @ luma
    assert np.abs(found - expected).mean() < 3


def test_jpegs_open_in_any_program(cache_file: Path, tmp_path: Path) -> None:
    cache = PatchCache(cache_file)
    (tmp_path / "0.jpg").write_bytes(cache.jpegs([0])[0])
    with Image.open(tmp_path / "0.jpg") as image:
        assert image.size == (64, 64)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels - imagecodecs.jpeg8_decode(cache.jpegs([0])[0])).max() <= 3


def test_a_folder_that_cannot_be_written_ends_the_run(record: SlideRecord, make_spec, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=f"^{tmp_path}/out/a.h5: cannot be written: (File exists|Not a directory)$"):
        tile_slide(record, make_spec(), tmp_path / "out")


@pytest.mark.parametrize("change", ["another slide", "written to", "removed"])
def test_a_slide_that_changes_while_it_is_tiled_fails_and_leaves_no_cache(
    record, blank_path: Path, make_spec, tmp_path: Path, monkeypatch, change: str
) -> None:
    path, out = tmp_path / "a.tif", tmp_path / "out"
    shutil.copy(record.path, path)
    read_region = openslide.OpenSlide.read_region

    def read_and_change(slide, *where):
        if change == "another slide":
            shutil.copy(blank_path, tmp_path / "new")
            os.replace(tmp_path / "new", path)
        elif change == "written to":
            with open(path, "ab") as file:
                file.write(b"more")
        else:
            path.unlink(missing_ok=True)
        return read_region(slide, *where)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", read_and_change)
    outcome = tile_slide(SlideRecord("a", "p1", path), make_spec(), out)
    said = f"a: {path}: the file was changed or removed while it was tiled; tile the slide again"
    assert outcome == Failed("a", said)
    assert glob.glob("*", root_dir=out) == []
    monkeypatch.undo()
    if change != "removed":
        assert isinstance(tile_slide(SlideRecord("a", "p1", path), make_spec(), out), Tiled)
