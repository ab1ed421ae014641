import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.core.geometry import Size, fit_within, pyramid_levels

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
