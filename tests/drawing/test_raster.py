import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.drawing.placement import Window, picture_mpp_um, round_length_um, tile_boxes_px
from wsi_dbps.drawing.raster import _Sums, percentile_ranks, rasterize, rasterize_channels, rasterize_window

slide_side, raster_side = st.integers(1, 5000), st.integers(1, 60)
tile_side = st.floats(1, 900)
number = st.floats(-1e3, 1e3, allow_subnormal=False)


@st.composite
def scenes(draw, least=1):
    """Tiles somewhere on a slide, and a raster of it."""
    slide, raster = Size(draw(slide_side), draw(slide_side)), Size(draw(raster_side), draw(raster_side))
    n = draw(st.integers(least, 12))
    x = st.integers(0, slide.width - 1)
    y = st.integers(0, slide.height - 1)
    coords = np.array(draw(st.lists(st.tuples(x, y), min_size=n, max_size=n)), np.int64).reshape(-1, 2)
    values = np.array(draw(st.lists(number, min_size=n, max_size=n)))
    return coords, draw(tile_side), values, slide, raster


def drawn(coords, tile, values, slide, raster):
    return rasterize(TileGrid(coords, tile, slide, 0.25), values, raster).values_HW


@settings(deadline=None, max_examples=60)
@given(scenes(), number)
def test_equal_values_in_give_that_value_out(scene, value):
    coords, tile, _, slide, raster = scene
    pixels = drawn(coords, tile, np.full(len(coords), value), slide, raster)
    assert (pixels[~np.isnan(pixels)] == np.float32(value)).all()


@settings(deadline=None, max_examples=60)
@given(scenes(), st.randoms(use_true_random=False))
def test_the_order_of_the_tiles_changes_nothing(scene, random):
    coords, tile, values, slide, raster = scene
    order = list(range(len(values)))
    random.shuffle(order)
    np.testing.assert_allclose(
        drawn(coords[order], tile, values[order], slide, raster), drawn(*scene), rtol=1e-5, atol=1e-5
    )


@settings(deadline=None, max_examples=60)
@given(scenes())
def test_every_value_lies_between_those_of_the_tiles(scene):
    pixels, values = drawn(*scene), scene[2].astype(np.float32)
    pixels = pixels[~np.isnan(pixels)]
    assert ((pixels >= values.min()) & (pixels <= values.max())).all()


@settings(deadline=None, max_examples=60)
@given(scenes())
def test_the_covered_areas_add_up_to_the_areas_of_the_tiles_on_the_slide(scene):
    coords, tile, values, slide, raster = scene
    boxes = tile_boxes_px(TileGrid(coords, tile, slide), raster).clip(0, [raster.width, raster.height] * 2)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    total = _Sums(TileGrid(coords, tile), Window.whole(slide, raster)).of(np.ones(len(values))).sum()
    assert total == pytest.approx(areas.sum(), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(scenes())
def test_every_tile_that_lies_on_the_slide_shows(scene):
    coords, tile, values, slide, raster = scene
    for row in range(len(values)):
        if (coords[row] + tile <= [slide.width, slide.height]).all():
            assert not np.isnan(drawn(coords[[row]], tile, values[[row]], slide, raster)).all()


@settings(deadline=None, max_examples=60)
@given(scenes())
def test_pixels_that_no_tile_touches_have_no_value(scene):
    coords, tile, _, slide, raster = scene
    touched = np.zeros((raster.height, raster.width), bool)
    for left, top, right, bottom in tile_boxes_px(TileGrid(coords, tile, slide), raster):
        touched[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    assert np.isnan(drawn(*scene)[~touched]).all()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1000, 200_000), st.integers(1000, 200_000), st.floats(100, 900), st.integers(64, 400), st.integers(0)
)
def test_a_tile_lies_on_the_raster_where_it_lies_on_the_slide_within_a_pixel(width, height, tile, longest, seed):
    scale = longest / max(width, height)
    slide, raster = Size(width, height), Size(max(1, round(width * scale)), max(1, round(height * scale)))
    corner = np.random.default_rng(seed).integers(0, [width, height], size=(1, 2))
    box = tile_boxes_px(TileGrid(corner, tile, slide), raster)[0]
    expected = np.concatenate([corner[0], corner[0] + tile]) * scale
    expected = expected.clip(0, [raster.width, raster.height] * 2)  # one factor for both axes drifts at the far edge
    assert np.abs(box.clip(0, [raster.width, raster.height] * 2) - expected).max() <= 1
    shown = np.argwhere(~np.isnan(drawn(corner, tile, np.ones(1), slide, raster)))
    if len(shown):
        (top, left), (bottom, right) = shown.min(axis=0), shown.max(axis=0) + 1
        limits = box.clip(0, [raster.width, raster.height] * 2)
        assert np.abs(np.array([left, top, right, bottom]) - limits).max() <= 1


@settings(deadline=None, max_examples=60)
@given(st.lists(number, min_size=2))
def test_percentile_ranks_keep_the_order_and_their_mean_is_half(values):
    ranks = percentile_ranks(np.array(values))
    order = np.argsort(values)
    assert (np.diff(ranks[order]) >= 0).all()
    assert ranks.mean() == pytest.approx(0.5)
    assert (ranks >= 0).all() and (ranks <= 1).all()  # noqa: PT018
    assert len(set(ranks)) == len(set(values))


def test_two_tiles_that_share_a_pixel_are_averaged_by_area():
    # One row of 3 pixels over 30 level-0 pixels; a tile on [0, 15] of value 2 and one on [15, 30] of value 6.
    pixels = drawn(np.array([[0, 0], [15, 0]]), 15.0, np.array([2.0, 6.0]), Size(30, 10), Size(3, 1))
    assert pixels.tolist() == [[2.0, 4.0, 6.0]]


def test_a_pixel_covered_by_less_than_half_has_no_value():
    pixels = drawn(np.array([[0, 0]]), 24.0, np.array([1.0]), Size(40, 24), Size(4, 1))
    assert np.isnan(pixels).tolist() == [[False, False, True, True]]


def test_no_tiles_give_a_picture_without_values():
    empty = rasterize(TileGrid(np.zeros((0, 2), np.int64), 9.5, Size(101, 53), 0.25), np.zeros(0), Size(20, 10))
    assert empty.values_HW.shape == (10, 20)
    assert np.isnan(empty.values_HW).all()
    assert empty.mpp_um == pytest.approx(0.25 * 101 / 20)


def test_the_percentile_of_one_value_alone_is_half_and_equals_share_theirs():
    assert percentile_ranks(np.array([3.0])).tolist() == [0.5]
    assert percentile_ranks(np.array([2.0, 2.0, 2.0])).tolist() == [0.5, 0.5, 0.5]
    assert percentile_ranks(np.array([])).tolist() == []


def test_the_pixel_size_is_that_of_the_longer_side():
    none = np.zeros((0, 2), np.int64)
    assert picture_mpp_um(TileGrid(none, 1.0, Size(1000, 333), 0.5), Size(100, 33)) == 5.0
    assert picture_mpp_um(TileGrid(none, 1.0, Size(333, 1000), 0.5), Size(33, 100)) == 5.0


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-3, 1e6))
def test_a_round_length_is_1_2_or_5_and_more_than_a_third_of_what_fits(longest):
    length = round_length_um(longest)
    assert f"{length:e}"[0] in "125"
    assert longest / 2.6 < length <= longest


def test_a_slide_of_64_000_tiles_takes_less_than_two_seconds():
    corners = np.stack(np.meshgrid(np.arange(320), np.arange(200)), -1).reshape(-1, 2) * 300
    start = time.perf_counter()
    pixels = drawn(corners, 300.5, np.arange(64_000.0), Size(96_001, 60_001), Size(1536, 960))
    assert time.perf_counter() - start < 2
    assert not np.isnan(pixels).any()


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="needs a finite value per tile"):
        drawn(np.array([[0, 0]]), 8.0, np.array([np.nan]), Size(8, 8), Size(2, 2))
    with pytest.raises(ValueError, match=r"found \(2,\) values for 1 tiles"):
        drawn(np.array([[0, 0]]), 8.0, np.array([1.0, 2.0]), Size(8, 8), Size(2, 2))


@settings(deadline=None, max_examples=60)
@given(scenes(), number, st.floats(1, 2000))
def test_smoothing_gives_equal_values_back_and_leaves_the_blank_blank(scene, value, sigma_um):
    coords, tile, values, slide, raster = scene
    plain = drawn(coords, tile, values, slide, raster)
    grid = TileGrid(coords, tile, slide, 0.25)
    equal = rasterize(grid, np.full(len(coords), value), raster, smooth_um=sigma_um).values_HW
    smooth = rasterize(grid, values, raster, smooth_um=sigma_um).values_HW
    for pixels in (equal, smooth):
        np.testing.assert_array_equal(np.isnan(pixels), np.isnan(plain))
    assert (equal[~np.isnan(equal)] == np.float32(value)).all()
    low, high = np.float32(values.min()), np.float32(values.max())
    shown = smooth[~np.isnan(smooth)]
    assert ((shown >= low) & (shown <= high)).all()


@pytest.mark.parametrize(("side", "sigma_um"), [(333, 20.0), (333, 100.0), (333, 400.0), (40, 400.0)])
def test_a_lone_tile_is_smoothed_to_the_gaussian_of_its_square(side, sigma_um):
    """On a slide full of tiles, one of value 1 spreads as the integral of a Gaussian over it, whatever the raster."""
    coords = np.stack(np.meshgrid(np.arange(40), np.arange(40)), -1).reshape(-1, 2) * 250
    values = ((coords == [5000, 4500]).all(axis=1)).astype(float)
    slide, mpp_um = Size(10_000, 10_000), 0.5
    grid = TileGrid(coords, 250.0, slide, mpp_um)
    pixels = rasterize(grid, values, Size(side, side), smooth_um=sigma_um).values_HW
    edges = np.linspace(0, 10_000, side + 1)
    middle, sigma = (edges[1:] + edges[:-1]) / 2, sigma_um / mpp_um

    def along(start):
        return special.ndtr((start + 250 - middle) / sigma) - special.ndtr((start - middle) / sigma)

    def inside():  # what lies on the slide, which is all that counts
        return special.ndtr((10_000 - middle) / sigma) - special.ndtr(-middle / sigma)

    expected = np.outer(along(4500) / inside(), along(5000) / inside())
    assert np.abs(pixels - expected).max() < 0.07 * expected.max()
    assert pixels.sum() == pytest.approx(values.sum() * (250 * side / 10_000) ** 2, rel=0.02)


def test_a_part_of_the_slide_is_smoothed_as_the_whole_is():
    rng = np.random.default_rng(0)
    grid = TileGrid(rng.integers(0, 3900, (300, 2)), 97.3, mpp_lv0_um=0.5)
    values = rng.random(300)
    whole = rasterize_window(grid, values, Window(0, 0, 4000, 4000, Size(400, 400)), smooth_um=75)
    part = rasterize_window(grid, values, Window(1000, 1500, 800, 600, Size(80, 60)), smooth_um=75)
    np.testing.assert_allclose(part, whole[150:210, 100:180], atol=0.005)
    exact = rasterize_window(grid, values, Window(1000, 1500, 800, 600, Size(80, 60)))
    whole = rasterize_window(grid, values, Window(0, 0, 4000, 4000, Size(400, 400)))
    np.testing.assert_allclose(exact, whole[150:210, 100:180], rtol=1e-6)


def test_several_values_at_once_are_as_each_alone():
    rng = np.random.default_rng(1)
    grid, values, window = (
        TileGrid(rng.integers(0, 900, (50, 2)), 61.7, mpp_lv0_um=0.5),
        rng.normal(size=(3, 50)),
        Window(0, 0, 999, 1001, Size(37, 41)),
    )
    for smooth in (0, 40):
        together = rasterize_channels(grid, values, window, smooth_um=smooth)
        alone = [rasterize_window(grid, one, window, smooth_um=smooth) for one in values]
        np.testing.assert_array_equal(together, alone)
