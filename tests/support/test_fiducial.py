import numpy as np
import pytest
from fiducial import decode_centre, decode_pixels, decode_size, fiducial_image
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.core.geometry import Size
from wsi_dbps.synth.pyramid import box_reduced

IMAGE = fiducial_image(Size(4096, 1024))
TALL = fiducial_image(Size(64, 4096))


def test_decoding_inverts_encoding_for_every_pixel() -> None:
    for image in (IMAGE, TALL):
        y, x = np.indices(image.shape[:2])
        np.testing.assert_array_equal(decode_pixels(image), np.stack([x, y], axis=-1))


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(0, 400), st.integers(64, 300), st.integers(64, 300), st.integers(1, 16))
def test_the_centre_survives_averaging(x: int, y: int, width: int, height: int, factor: int) -> None:
    width, height = width // factor * factor, height // factor * factor
    patch = box_reduced(np.ascontiguousarray(IMAGE[y : y + height, x : x + width]), factor)
    error = np.abs(decode_centre(patch) - [x + width / 2, y + height / 2])
    assert (error <= np.array([32 / width, 32 / height]) + (factor / 2 if factor > 1 else 0) + 1e-9).all()


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(0, 30), st.integers(4, 16), st.sampled_from([1, 2, 4, 8, 16]))
def test_averaging_on_the_grid_costs_no_precision(column: int, row: int, num_px: int, factor: int) -> None:
    x, y, side = column * factor, row * factor, num_px * factor
    patch = box_reduced(np.ascontiguousarray(IMAGE[y : y + side, x : x + side]), factor)
    assert np.abs(decode_centre(patch) - [x + side / 2, y + side / 2]).max() <= 32 / side + 1e-9


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(0, 400), st.sampled_from([256, 384, 512]), st.sampled_from([1, 2, 4, 8]))
def test_the_size_survives_averaging_on_the_grid(x: int, y: int, side: int, factor: int) -> None:
    x, y = x // factor * factor, y // factor * factor
    patch = box_reduced(np.ascontiguousarray(IMAGE[y : y + side, x : x + side]), factor)
    np.testing.assert_allclose(decode_size(patch), [side, side], atol=256 / side)


def test_an_example_by_hand() -> None:
    assert IMAGE[35, 18].tolist() == [1, 2, 2 * 16 + 3]
    assert decode_centre(IMAGE).tolist() == [2048, 512]


def test_a_side_beyond_twelve_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 4096 px a side, asked for 4097 x 10"):
        fiducial_image(Size(4097, 10))


def test_the_size_of_an_odd_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="must have even sides, found 15 x 16"):
        decode_size(IMAGE[:16, :15])
