from pathlib import Path

import numpy as np
import openslide
import pytest
from fiducial import fiducial_image
from hypothesis import given
from hypothesis import strategies as st
from lossless import write_lossless

from wsi_dbps.core.geometry import Size
from wsi_dbps.synth.pyramid import box_reduced, default_downsamples, write_aperio


def smooth_image(width: int, height: int) -> np.ndarray:
    x, y = np.arange(width), np.arange(height)[:, None]
    channels = [128 + 90 * np.sin(x / 61 + y / 97 + phase) for phase in (0, 2, 4)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def level_pixels(slide: openslide.OpenSlide, level: int) -> np.ndarray:
    return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))


@pytest.mark.parametrize("jpeg_rgb", [False, True])
def test_an_aperio_file_comes_back_through_openslide(tmp_path: Path, jpeg_rgb: bool) -> None:
    image = smooth_image(700, 500)
    write_aperio(tmp_path / "a.svs", image, mpp_um=0.2525, tile_px=128, downsamples=(1, 2, 8), jpeg_rgb=jpeg_rgb)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.2525
        assert float(slide.properties["openslide.objective-power"]) == pytest.approx(39.6)
        assert slide.level_dimensions == ((700, 500), (350, 250), (87, 62))
        assert slide.associated_images["thumbnail"].size == (512, 366)
        assert np.abs(level_pixels(slide, 0).astype(int) - image).mean() < 2
        assert np.abs(level_pixels(slide, 2).astype(int) - box_reduced(image, 8)).mean() < 3


def test_a_lossless_file_keeps_every_pixel_of_every_level(tmp_path: Path) -> None:
    image = fiducial_image(Size(700, 500))
    write_lossless(tmp_path / "a.tif", image, mpp_um=0.5, tile_px=64, downsamples=(1, 4))
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert slide.level_dimensions == ((700, 500), (175, 125))
        for level, factor in enumerate((1, 4)):
            np.testing.assert_array_equal(level_pixels(slide, level), box_reduced(image, factor))


def test_the_same_image_gives_the_same_bytes(tmp_path: Path) -> None:
    for write in (write_aperio, write_lossless):
        files = [tmp_path / name for name in ("a.tif", "b.tif")]
        for file in files:
            write(file, smooth_image(300, 200), mpp_um=0.5)
        assert files[0].read_bytes() == files[1].read_bytes()


@given(st.integers(1, 200_000), st.integers(1, 200_000), st.sampled_from([16, 240, 256, 512]))
def test_the_last_level_is_the_last_to_hold_a_tile(width: int, height: int, tile_px: int) -> None:
    factors = default_downsamples(Size(width, height), tile_px)
    assert factors == tuple(4**i for i in range(len(factors)))
    assert min(width, height) // (factors[-1] * 4) < tile_px
    assert len(factors) == 1 or min(width, height) // factors[-1] >= tile_px


def test_a_box_average_drops_what_is_left_over() -> None:
    image = np.array([[0, 10, 99], [20, 30, 99]], np.uint8)[..., None].repeat(3, axis=2)
    assert box_reduced(image, 2).tolist() == [[[15, 15, 15]]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mpp_um": 0.0}, "mpp_um must be above 0, found 0.0"),
        ({"tile_px": 100}, "tile_px must be a multiple of 16, found 100"),
        ({"downsamples": (2, 4)}, r"downsamples must begin with 1 and rise, found \(2, 4\)"),
        ({"downsamples": (1, 300)}, "downsample 300 leaves nothing of a 300 x 200 image"),
        ({"quality": 0}, "quality must be 1 to 100, found 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_aperio(tmp_path / "a.svs", smooth_image(300, 200), **({"mpp_um": 0.5} | settings))
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_not_rgb_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the image must be \(H, W, 3\) uint8, found \(8, 8\) float64"):
        write_lossless(tmp_path / "a.tif", np.zeros((8, 8)), mpp_um=0.5)
