from types import SimpleNamespace

import numpy as np
import pytest
from fiducial import decode_centre, decode_pixels, decode_size
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_dbps.core.geometry import Level, Region, Size
from wsi_dbps.formats.spec import TilingSpec
from wsi_dbps.slides.readers.memory import MemoryReader
from wsi_dbps.slides.sampling import best_level, read_box, thumbnail
from wsi_dbps.synth.pyramid import box_reduced
from wsi_dbps.tiling.plan import plan_tiles
from wsi_dbps.tiling.tissue import everywhere

MPP_LV0 = 0.25


def smooth(width: int, height: int) -> np.ndarray:
    x, y = np.arange(width), np.arange(height)[:, None]
    return np.stack([128 + 90 * np.sin(x / 23 + y / 37 + phase) for phase in (0, 2, 4)], axis=-1).astype(np.uint8)


SMOOTH = smooth(900, 700)
SLIDE = MemoryReader([SMOOTH, box_reduced(SMOOTH, 3)], mpp_um=MPP_LV0)


class Counting(MemoryReader):
    """A slide that counts what it is asked for."""

    def read(self, region: Region) -> np.ndarray:
        self.regions = [*getattr(self, "regions", []), region]
        return super().read(region)


@settings(deadline=None)
@given(st.lists(st.floats(1, 300), min_size=1, max_size=8, unique=True), st.floats(0.5, 400))
def test_the_best_level_is_the_coarsest_that_holds_the_detail(downsamples: list[float], target: float) -> None:
    levels = [Level(Size(9, 9), d) for d in sorted([1.0, *downsamples])]
    best = levels[best_level(levels, target)].downsample
    fine_enough = [level.downsample for level in levels if level.downsample <= target * 1.02]
    assert best == max(fine_enough, default=1.0)


def test_a_level_hardly_too_coarse_serves() -> None:
    levels = [Level(Size(9, 9), d) for d in (1.0, 2.0135, 4.0)]
    assert [best_level(levels, target) for target in (0.9, 1, 1.9, 2, 3.9, 4, 99)] == [0, 0, 0, 1, 1, 2, 2]


@settings(deadline=None)
@given(st.integers(0, 1), st.data())
def test_what_is_native_is_the_levels_own_pixels(level: int, data: st.DataObject) -> None:
    array, scale = (SMOOTH, 1) if level == 0 else (box_reduced(SMOOTH, 3), 3)
    x, y = (data.draw(st.integers(0, side - 40)) for side in (array.shape[1], array.shape[0]))
    w, h = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    box = (x * scale, y * scale, (x + w) * scale, (y + h) * scale)
    np.testing.assert_array_equal(read_box(SLIDE, level, box, Size(w, h)), array[y : y + h, x : x + w])


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 300), st.floats(0, 200), st.floats(100, 400), st.floats(100, 400), st.sampled_from([0, 1]))
def test_what_is_resampled_is_the_picture_there(x: float, y: float, w: float, h: float, level: int) -> None:
    """Against the mean over each result pixel's own area, on a smooth picture: within 2 grey levels, 4 at the rim."""
    out = Size(round(w / 4), round(h / 4))
    found = read_box(SLIDE, level, (x, y, x + w, y + h), out).astype(float)
    fine = np.arange(5) / 5 + 0.1
    xs = (x + (np.arange(out.width)[:, None] + fine).ravel() * w / out.width).astype(int)
    ys = (y + (np.arange(out.height)[:, None] + fine).ravel() * h / out.height).astype(int)
    expected = SMOOTH[np.ix_(ys, xs)].reshape(out.height, 5, out.width, 5, 3).mean(axis=(1, 3))
    error = np.abs(found - expected)
    assert error[2:-2, 2:-2].max() <= (2 if level == 0 else 4)
    assert error.max() <= (4 if level == 0 else 8)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 300), st.integers(0, 200), st.integers(65, 400), st.integers(16, 64))
def test_a_whole_box_is_resampled_as_pillow_does(x: int, y: int, side: int, out: int) -> None:
    crop = Image.fromarray(SMOOTH[y : y + side, x : x + side])
    expected = np.asarray(crop.resize((out, out), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(read_box(SLIDE, 0, (x, y, x + side, y + side), Size(out, out)), expected)


@pytest.mark.parametrize("mpp", [0.25, 0.2525, 0.3, 0.5, 0.503, 0.73, 1.0, 1.1, 1.7, 2.0, 3.33, 4.0])
def test_every_patch_shows_the_place_its_plan_says(fiducial_slide, mpp: float) -> None:
    """At any resolution, centre and size decode to within 1 level-0 pixel, on a real file of odd sizes too."""
    spec = TilingSpec(mpp_um=mpp, size_px=64, tissue="none")
    plan = plan_tiles(everywhere(fiducial_slide.info.size_lv0), MPP_LV0, spec)
    level = best_level(fiducial_slide.info.levels, mpp / MPP_LV0)
    assert len(plan) >= 2
    rows = np.unique([0, len(plan) - 1, *np.random.default_rng(0).integers(0, len(plan), 24)])
    for x, y in plan.grid.origins_lv0[rows].tolist():
        patch = read_box(fiducial_slide, level, (x, y, x + plan.grid.tile_lv0, y + plan.grid.tile_lv0), Size(64, 64))
        half = plan.grid.tile_lv0 / 2
        # the code is a staircase of 16 px, which costs 32 / side, and OpenSlide rounds down where it blends two pixels
        blended = fiducial_slide.info.reader == "openslide" and level > 0
        error = np.abs(decode_centre(patch) - [x + half, y + half])
        assert error.max() <= 1 + 32 / plan.grid.tile_lv0 + 0.5 * blended
        assert np.abs(decode_size(patch) - plan.grid.tile_lv0).max() <= 4 + 256 / plan.grid.tile_lv0 + 4 * blended


def test_every_native_pixel_is_in_its_place(fiducial_slide, fiducial: np.ndarray) -> None:
    patch = read_box(fiducial_slide, 0, (1001, 777, 1065, 841), Size(64, 64))
    y, x = np.indices((64, 64))
    np.testing.assert_array_equal(decode_pixels(patch), np.stack([x + 1001, y + 777], axis=-1))


def test_the_last_column_of_a_level_is_repeated_and_nothing_stretched() -> None:
    image = np.zeros((8, 11, 3), np.uint8)
    image[:, 8:] = 200
    level = box_reduced(image, 4)  # two columns of 0, 4 px of 200 lost
    slide = MemoryReader([image, level], mpp_um=1.0)
    patch = read_box(slide, 1, (0, 0, 11, 8), Size(11, 8))
    assert patch.shape == (8, 11, 3)
    assert (patch == 0).all()


@pytest.mark.parametrize("max_px", [100, 430, 2000])
def test_a_thumbnail_read_in_bands_is_the_one_read_at_once(fiducial_slide, max_px: int) -> None:
    whole = thumbnail(fiducial_slide, max_px)
    banded = thumbnail(fiducial_slide, max_px, band_bytes=200_000)
    between_pixels = fiducial_slide.info.reader == "openslide"  # its level-0 positions fall between a level's pixels
    np.testing.assert_allclose(banded, whole, rtol=0, atol=4 if between_pixels else 0)


def test_a_thumbnail_in_bands_holds_little_at_a_time() -> None:
    slide = Counting([SMOOTH], mpp_um=None)
    thumbnail(slide, 200, band_bytes=300_000)
    assert len(slide.regions) >= 5
    assert max(region.width * region.height * 3 for region in slide.regions) < 450_000


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(16, 400))
def test_a_thumbnail_shows_the_whole_slide_and_is_never_enlarged(width: int, height: int, max_px: int) -> None:
    picture = thumbnail(MemoryReader([smooth(width, height)], mpp_um=None), max_px)
    assert max(picture.shape[:2]) == min(max_px, max(width, height))
    if max(width, height) <= max_px:
        np.testing.assert_array_equal(picture, smooth(width, height))


def test_a_level_of_a_fitting_size_is_the_thumbnail() -> None:
    level = box_reduced(SMOOTH, 3)  # of 300 px
    for max_px in (300, 500, 899):
        np.testing.assert_array_equal(thumbnail(SLIDE, max_px), level)
    assert thumbnail(SLIDE, 299).shape == (233, 299, 3)
    np.testing.assert_array_equal(thumbnail(SLIDE, 900), SMOOTH)


def test_a_thumbnail_decodes_to_the_whole_slide(fiducial_slide) -> None:
    picture = thumbnail(fiducial_slide, 554)  # levels are 555 and 138 px wide: none fits
    size = fiducial_slide.info.size_lv0
    assert picture.shape == (370, 554, 3)
    assert np.abs(decode_centre(picture) - [size.width / 2, size.height / 2]).max() < 1
    corners = SimpleNamespace(first=picture[:8, :8], last=picture[-8:, -8:])
    scale = size.width / 554
    assert np.abs(decode_centre(corners.first) - 4 * scale).max() < 4
    assert np.abs(decode_centre(corners.last) - [size.width - 4 * scale, size.height - 4 * scale]).max() < 4
