import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.core.geometry import Size
from wsi_dbps.synth.layout import row_rectangles
from wsi_dbps.synth.spec import TissueSpec
from wsi_dbps.synth.tissue import TissueSlide, render_slide

SMALL = Size(1600, 1280)


def render(seed: int, *, has_lesion: bool, size: Size = SMALL, mpp_um: float = 0.5) -> TissueSlide:
    rng = np.random.default_rng(seed)
    return render_slide(size, mpp_um=mpp_um, has_lesion=has_lesion, spec=TissueSpec(), rng=rng)


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_rectangles_cover_every_cell_once_and_no_other(cells: np.ndarray) -> None:
    painted = np.zeros(cells.shape, int)
    for x0, y0, x1, y1 in row_rectangles(cells):
        painted[y0:y1, x0:x1] += 1
    np.testing.assert_array_equal(painted, cells.astype(int))


def test_alike_rows_join_to_one_rectangle() -> None:
    assert row_rectangles(np.array([[0, 1, 1], [0, 1, 1]], bool)).tolist() == [[1, 0, 3, 2]]


def test_the_same_generator_state_gives_the_same_slide() -> None:
    first, again, other = (render(seed, has_lesion=True) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.lesion_lv0, again.lesion_lv0)
    assert (first.image != other.image).mean() > 0.3


@pytest.mark.parametrize("seed", range(4))
def test_the_lesion_is_the_asked_for_share_of_the_tissue(seed: int) -> None:
    slide = render(seed, has_lesion=True)
    assert slide.image.shape == (1280, 1600, 3)
    low, high = slide.lesion_lv0[:, :2], slide.lesion_lv0[:, 2:]
    share = (high - low).prod(axis=1).sum() / (slide.tissue_share * 1600 * 1280)
    assert 0.22 < share < 0.37
    assert (slide.lesion_lv0 % 64 == 0).all()


def test_a_negative_slide_has_no_lesion() -> None:
    assert render(0, has_lesion=False).lesion_lv0.shape == (0, 4)


def test_glass_is_bright_and_reaches_every_edge() -> None:
    image = render(1, has_lesion=True).image
    edge = np.concatenate([image[:8].reshape(-1, 3), image[-8:].reshape(-1, 3), image[:, :8].reshape(-1, 3)])
    assert edge.min() > 215
    assert image.min() < 110


@pytest.mark.parametrize("mpp_um", [0.25, 0.37, 1.0])
def test_other_pixel_sizes_render_the_same_extent(mpp_um: float) -> None:
    side = round(640 / mpp_um)
    slide = render(2, has_lesion=True, size=Size(side, side), mpp_um=mpp_um)
    assert slide.image.shape == (side, side, 3)
    assert 0 < slide.lesion_lv0.max() <= side


def test_a_slide_too_small_for_tissue_is_refused() -> None:
    with pytest.raises(ValueError, match="a slide of 512 x 512 px has fewer than 16 squares of 64 px a side"):
        render(0, has_lesion=True, size=Size(512, 512))


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must rise between 0 and 0.4, found 0.45 and 0.35"):
        TissueSpec(lesion_share_min=0.45)
