import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.core.errors import CacheError, UnknownGridError
from wsi_dbps.core.geometry import Size, TileGrid, fit_within, pyramid_levels

side = st.integers(1, 200_000)


@settings(deadline=None)
@given(st.integers(8, 20_000), st.integers(8, 20_000), st.integers(0, 10), st.booleans())
def test_a_power_of_two_is_found_again_whichever_way_the_rest_was_rounded(
    width: int, height: int, power: int, rounded_up: bool
) -> None:
    factor = 2**power
    fine = Size(width * factor + factor // 3, height * factor + factor // 2)
    divided = math.ceil if rounded_up else math.floor
    coarse = Size(divided(fine.width / factor), divided(fine.height / factor))
    assert [level.downsample for level in pyramid_levels([fine, coarse])] == [1, factor]


@settings(deadline=None)
@given(side, side, side)
def test_a_size_that_fits_keeps_its_shape_and_never_grows(width: int, height: int, max_px: int) -> None:
    size = fit_within(Size(width, height), max_px)
    assert 1 <= size.width <= min(width, max_px)
    assert 1 <= size.height <= min(height, max_px)
    scale = min(1, max_px / max(width, height))
    assert abs(size.width - width * scale) <= 1
    assert abs(size.height - height * scale) <= 1


@pytest.mark.parametrize(
    ("coarse", "downsample"),
    [
        (Size(555, 741), 4),  # what is left over was dropped, as scanners do
        (Size(555, 742), 4),  # or kept
        (Size(740, 989), 3),
        (Size(8, 11), 256),  # where 274 would explain the sides too
        (Size(900, 1200), pytest.approx(2.46958, abs=1e-5)),  # no whole number does
        (Size(4440, 2967), 0.75),  # a nonsensical level is no reason to stop
    ],
)
def test_examples_of_downsamples(coarse: Size, downsample: float) -> None:
    assert pyramid_levels([Size(2220, 2967), coarse])[1].downsample == downsample


# ---- the grid of a slide's tiles


def made_grid(**changes) -> TileGrid:
    known = {"slide_lv0": Size(900, 700), "mpp_lv0_um": 0.25, "size_px": 100, "mpp_um": 0.5}
    return TileGrid(np.array([[0, 0], [200, 0], [0, 200]]), 200.0, **(known | changes))


@pytest.mark.parametrize("rows", [np.array([2, 0]), np.array([True, False, True]), np.array([], np.int64)])
def test_some_tiles_of_a_grid_are_those_named_and_lie_on_the_same_slide(rows) -> None:
    grid = made_grid()
    some = grid.take(rows)
    np.testing.assert_array_equal(some.origins_lv0, grid.origins_lv0[rows])
    assert len(some) == len(grid.origins_lv0[rows])
    assert (some.tile_lv0, some.slide_lv0, some.mpp_lv0_um) == (200.0, Size(900, 700), 0.25)
    assert (some.size_px, some.mpp_um) == (100, 0.5)


def test_what_is_not_known_of_a_grid_is_an_error_when_it_is_asked_for_and_not_before() -> None:
    def no_size() -> Size:
        raise CacheError("a.h5: does not say how large its slide is")

    grid = made_grid(slide_lv0=no_size, mpp_um=None, mpp_lv0_um=lambda: 0.125)
    assert (len(grid), grid.mpp_lv0_um, grid.knows("mpp_lv0_um", "size_px")) == (3, 0.125, True)
    assert not grid.knows("slide_lv0")
    assert not grid.knows("size_px", "mpp_um")
    with pytest.raises(CacheError, match=r"a\.h5: does not say how large its slide is"):
        _ = grid.slide_lv0
    with pytest.raises(UnknownGridError, match="the patches' mpp is not known"):
        _ = grid.take(np.array([0])).mpp_um


def test_a_grid_is_completed_by_another_only_in_what_it_does_not_know() -> None:
    other = TileGrid(np.array([[7, 7]]), 9.0, Size(1, 1), 9.0, 9, 9.0)
    whole = made_grid(slide_lv0=None, mpp_um=None).completed(other)
    assert (whole.tile_lv0, whole.mpp_lv0_um, whole.size_px, len(whole)) == (200.0, 0.25, 100, 3)
    assert (whole.slide_lv0, whole.mpp_um) == (Size(1, 1), 9.0)
    assert made_grid(slide_lv0=None).with_tile(5.0).tile_lv0 == 5.0
