import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.core.geometry import Size
from wsi_dbps.tiling.plan import tile_origins
from wsi_dbps.tiling.tissue import METHODS, TissueMask, everywhere, segment


def random_mask(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < 0.5


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30))
def test_the_shares_of_tiles_that_cover_the_slide_sum_to_the_mask(seed: int, h: int, w: int, rows: int, columns: int):
    tile, mask_HW = 97, random_mask(seed, h, w)
    slide = Size(columns * tile, rows * tile)
    origins = tile_origins(slide, tile, stride_lv0=tile)
    share = TissueMask(mask_HW, slide).share(origins, tile)
    assert len(share) == rows * columns
    assert share.mean() == pytest.approx(mask_HW.mean(), abs=1e-5)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(20, 500), st.integers(1, 60), st.integers(1, 60))
def test_where_all_is_tissue_the_share_is_1(width: int, height: int, tile: float, mask_h: int, mask_w: int) -> None:
    slide = Size(width, height)
    origins = tile_origins(slide, tile, stride_lv0=tile)
    for mask in (everywhere(slide), TissueMask(np.ones((mask_h, mask_w), np.bool_), slide)):
        assert (mask.share(origins, tile) == 1).all()
    assert (TissueMask(np.zeros((mask_h, mask_w), np.bool_), slide).share(origins, tile) == 0).all()


@settings(deadline=None)
@given(st.integers(0, 99), st.floats(3, 60), st.floats(1, 50))
def test_a_share_is_the_area_counted_pixel_by_pixel(seed: int, tile: float, stride: float) -> None:
    # a mask of 12 x 9 on 600 x 450: its pixels are 50 px, cut into hundredths to count
    mask_HW, slide = random_mask(seed, 9, 12), Size(600, 450)
    origins = tile_origins(slide, tile, stride_lv0=stride * 7)
    share = TissueMask(mask_HW, slide).share(origins, tile)
    steps = (np.arange(200) + 0.5) / 200 * tile
    for (x, y), found in list(zip(origins, share, strict=True))[:20]:
        counted = mask_HW[np.ix_(((y + steps) // 50).astype(int), ((x + steps) // 50).astype(int))].mean()
        assert found == pytest.approx(counted, abs=0.02)


def test_a_share_by_hand() -> None:
    mask = TissueMask(np.array([[1, 0], [0, 0]], np.bool_), Size(200, 200))
    origins = np.array([[0, 0], [50, 50], [50, 0], [100, 100]])
    assert mask.share(origins, 100).tolist() == [1, 0.25, 0.5, 0]


def test_no_tiles_have_no_shares() -> None:
    assert everywhere(Size(10, 10)).share(np.zeros((0, 2), np.int64), 20).shape == (0,)


def glass(height: int = 200, width: int = 300) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-2, 3, (height, width, 3))
    return (np.array([243, 242, 241]) + noise).astype(np.uint8)


def test_a_pink_blob_is_tissue_and_its_speck_and_pinhole_are_not() -> None:
    picture = glass()
    picture[50:150, 100:200] = (200, 120, 170)
    picture[98:102, 148:152] = (243, 242, 241)  # a pinhole of 32 µm
    picture[20:24, 20:24] = (200, 120, 170)  # a speck of 32 µm
    mask_HW = segment(picture, Size(4800, 3200), 0.5).mask_HW  # 8 µm a pixel
    expected = np.zeros((200, 300), np.bool_)
    expected[50:150, 100:200] = True
    wrong = mask_HW ^ expected
    assert wrong.mean() < 0.02  # the rim, which the blur makes a pixel wider
    assert mask_HW[100, 150]
    assert not mask_HW[:40, :40].any()


def test_a_hole_of_300_um_stays_a_hole() -> None:
    picture = glass()
    picture[20:180, 60:260] = (200, 120, 170)
    picture[80:130, 130:180] = glass(50, 50)  # 400 µm
    mask_HW = segment(picture, Size(4800, 3200), 0.5).mask_HW
    assert not mask_HW[90:120, 140:170].any()


@pytest.mark.parametrize("value", [0, 30, 128, 245, 255])
def test_a_slide_of_one_grey_has_no_tissue(value: int) -> None:
    picture = np.full((40, 60, 3), value, np.uint8)
    assert not segment(picture, Size(600, 400), 0.5).mask_HW.any()


def test_bare_glass_has_no_tissue_and_tissue_without_glass_is_all_tissue() -> None:
    assert not segment(glass(), Size(4800, 3200), 0.5).mask_HW.any()
    stained = np.random.default_rng(0).integers(-15, 16, (200, 300, 1)) + np.array([200, 120, 170])
    assert segment(stained.astype(np.uint8), Size(4800, 3200), 0.5).mask_HW.all()


def test_the_black_border_of_a_scan_is_not_tissue() -> None:
    picture = glass()
    picture[:, :50] = (5, 0, 9)
    picture[60:140, 120:220] = (200, 120, 170)
    mask_HW = segment(picture, Size(4800, 3200), 0.5).mask_HW
    assert not mask_HW[:, :47].any()
    assert mask_HW[70:130, 130:210].all()


def test_a_picture_of_one_pixel_is_segmented_too() -> None:
    assert segment(np.full((1, 1, 3), 255, np.uint8), Size(10, 10), 0.5).mask_HW.tolist() == [[False]]


TISSUES = {"H&E": (200, 120, 170), "haematoxylin": (120, 110, 175), "eosin": (225, 150, 190), "brown": (150, 110, 80)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("colour", TISSUES.values(), ids=TISSUES)
def test_every_method_finds_stained_tissue_and_leaves_glass_and_pens(method: str, colour) -> None:
    rng = np.random.default_rng(0)
    picture = glass()
    tissue = np.zeros((200, 300), np.bool_)
    tissue[50:150, 100:200] = True
    picture[tissue] = np.clip(rng.normal(colour, 14, (tissue.sum(), 3)), 0, 255)
    pens = {"green": (40, 150, 90), "blue": (30, 60, 190), "black": (35, 32, 38)}
    for i, ink in enumerate(pens.values()):
        picture[10 + 60 * i : 50 + 60 * i, 30:42] = np.clip(rng.normal(ink, 5, (40, 12, 3)), 0, 255)
    found = segment(picture, Size(4800, 3200), 0.5, method).mask_HW
    assert found[56:144, 106:194].mean() > 0.97
    assert found[:, :60].mean() < 0.02
    assert found[:, 220:].mean() < 0.02
    if method in ("stain", "otsu"):
        assert segment(picture, Size(4800, 3200), 0.5, method, drop_pen=False).mask_HW[:, :60].mean() > 0.05


def test_pale_tissue_beside_strong_is_found_also_on_tinted_glass() -> None:
    """Otsu's threshold lies between the pale and the strong, and loses the pale."""
    for tint in ((244, 243, 245), (245, 243, 238), (237, 240, 246)):
        picture = np.empty((200, 300, 3), np.uint8)
        picture[:] = tint
        picture[20:80, 50:250], picture[120:180, 50:250] = (190, 70, 140), np.array(tint) - (4, 24, 8)
        pale = np.s_[126:174, 56:244]
        found = segment(picture, Size(4800, 3200), 0.5).mask_HW
        assert found[pale].all()
        assert found.mean() < 0.45
        assert not segment(picture, Size(4800, 3200), 0.5, "otsu").mask_HW[pale].any()
