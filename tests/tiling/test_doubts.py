"""What is said of slides whose colours or tissue are suspicious; and that ordinary slides are left in peace."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_dbps.core.geometry import Size
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.sampling import thumbnail
from wsi_dbps.tiling.doubts import METHODS, colour_doubts, tissue_doubts
from wsi_dbps.tiling.tissue import segment

SLIDE = Size(4800, 3200)
STAINS = {"H&E": (200, 120, 170), "haematoxylin": (120, 110, 175), "eosin": (225, 150, 190), "brown": (150, 110, 80)}


def slide(colour: tuple[int, int, int], noise: float = 14, glass: tuple[int, int, int] = (243, 242, 241)) -> np.ndarray:
    rng = np.random.default_rng(0)
    picture = np.clip(np.rint(rng.normal(glass, 1.5, (200, 300, 3))), 0, 255).astype(np.uint8)
    picture[50:150, 100:200] = np.clip(rng.normal(colour, noise, (100, 100, 3)), 0, 255)
    return picture


def colours(picture: np.ndarray) -> list[str]:
    return list(colour_doubts(picture, segment(picture, SLIDE, 0.5).mask_HW))


def as_ycbcr(picture: np.ndarray) -> np.ndarray:
    """The picture as it is seen where its YCbCr values are taken for RGB."""
    return np.asarray(Image.fromarray(picture).convert("YCbCr"))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.integers(1, 60), st.integers(1, 60))
def test_no_picture_is_too_strange_to_doubt(seed: int, height: int, width: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    said = [*colours(picture), *colour_doubts(picture, None)]
    for method in METHODS:
        said += tissue_doubts(picture, SLIDE, 0.5, method)
    assert all("\n" not in line for line in said)


@pytest.mark.parametrize("colour", STAINS.values(), ids=STAINS)
def test_stained_slides_raise_no_doubts_and_their_ycbcr_does(colour: tuple[int, int, int]) -> None:
    picture = slide(colour)
    assert colours(picture) == []
    for method in METHODS:
        assert list(tissue_doubts(picture, SLIDE, 0.5, method)) == []
    assert colours(as_ycbcr(picture))[0].startswith("its brightest parts have the colour (24")


def test_hues_of_no_stain_are_said() -> None:
    said = colours(slide((90, 190, 120), noise=5))
    assert said == [] or "hues of H&E" in said[0]  # as pen it is left out
    mask_HW = np.zeros((200, 300), np.bool_)
    mask_HW[50:150, 100:200] = True
    green = slide((90, 190, 120), noise=5)
    assert [line.partition(" of what")[0] for line in colour_doubts(green, mask_HW)] == ["only 0%"]
    assert list(colour_doubts(green, None)) == []


def test_a_dark_slide_is_said_to_be_fluorescence() -> None:
    said = "97% of the slide is dark, as in fluorescence: its tissue and its patches are not to be trusted"
    picture = np.full((100, 100, 3), 8, np.uint8)
    picture[:3] = (40, 60, 220)
    assert list(colour_doubts(picture, None)) == [said]


def test_pale_tissue_that_one_method_loses_is_said() -> None:
    rng = np.random.default_rng(0)
    picture = np.full((200, 300, 3), 243, np.uint8)
    picture[50:150, 100:200] -= np.rint(np.abs(rng.normal(0, 15, (100, 100, 1))) * [0.9, 1.1, 1]).astype(np.uint8)
    assert segment(picture, SLIDE, 0.5).mask_HW.mean() < 0.02
    [said] = tissue_doubts(picture, SLIDE, 0.5, "otsu")
    assert said.startswith("the methods disagree about its tissue (stain 0.0%, otsu 0.0%, hsv 0.0%, entropy 1"), said
    assert said.endswith("write entropy into the manifest's column tissue, or tile with --tissue entropy")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("CMU-1-Small-Region.svs", ""),
        ("OS-1-detail.ome.tif", ""),
        ("camelyon-overview.dcm", ""),
        ("test3-DAPI-2-387.ndpi", "75% of the slide is dark, as in fluorescence"),
    ],
)
def test_real_slides_are_doubted_where_their_colours_are_wrong(real_data: Path, name: str, plain: str) -> None:
    with open_slide(real_data / "slides" / name) as reader:
        picture = thumbnail(reader, 1600)
    assert [line.partition(":")[0] for line in colours(picture)] == ([plain] if plain else [])
    if not plain:
        assert colours(as_ycbcr(picture))[0].startswith("its brightest parts have the colour (2")
