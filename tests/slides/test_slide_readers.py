from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_dbps.core.errors import SlideError
from wsi_dbps.core.geometry import Region, Size
from wsi_dbps.slides.base import square_mpp
from wsi_dbps.slides.colour import as_rgb
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.readers.memory import MemoryReader
from wsi_dbps.slides.readers.openslide import OpenSlideReader
from wsi_dbps.slides.readers.tiffslide import TiffSlideReader, _place
from wsi_dbps.slides.sampling import thumbnail
from wsi_dbps.slides.source import check_unchanged, sampled_fingerprint
from wsi_dbps.synth.pyramid import write_aperio


def region_of(data: st.DataObject, size: Size, level: int) -> Region:
    x, y = data.draw(st.integers(0, size.width - 1)), data.draw(st.integers(0, size.height - 1))
    width = data.draw(st.integers(1, min(80, size.width - x)))
    height = data.draw(st.integers(1, min(80, size.height - y)))
    return Region(level, x, y, width, height)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_tiffslide_gives_the_very_pixels_of_every_level(data, fiducial_file: Path, fiducial_levels) -> None:
    with TiffSlideReader(fiducial_file) as slide:
        level = data.draw(st.integers(0, 2))
        r = region_of(data, slide.info.levels[level].size, level)
        expected = fiducial_levels[level][r.y : r.y + r.height, r.x : r.x + r.width]
        np.testing.assert_array_equal(slide.read(r), expected)


@given(st.floats(1, 500), st.integers(0, 50_000))
def test_tiffslide_is_led_to_the_pixel_asked_for(scale: float, start: int) -> None:
    assert int(_place(start, scale) / scale) == start


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_openslide_and_tiffslide_agree_within_a_level_0_pixel(data, fiducial_file: Path) -> None:
    """On level 0 exactly. Below, OpenSlide may stand up to a level-0 pixel aside: a step of the coarse code at most."""
    with OpenSlideReader(fiducial_file) as a, TiffSlideReader(fiducial_file) as b:
        assert a.info.levels == b.info.levels
        assert a.info.fingerprint == b.info.fingerprint
        assert a.info.mpp_um == pytest.approx(b.info.mpp_um)
        level = data.draw(st.integers(0, 2))
        r = region_of(data, a.info.levels[level].size, level)
        difference = np.abs(a.read(r).astype(int) - b.read(r))[..., :2]
        assert difference.max() <= (0 if level == 0 else 1)


def test_openslide_mixes_nothing_from_beyond_the_slide_into_its_edges(fiducial_file: Path, fiducial_levels) -> None:
    with OpenSlideReader(fiducial_file) as slide:
        for level, array in enumerate(fiducial_levels):
            height, width = array.shape[:2]
            for x in range(width - 40, width - 2, 3):
                r = Region(level, x, height - 9, width - x, 9)
                difference = np.abs(slide.read(r).astype(int) - array[r.y :, r.x :])[..., :2]
                assert difference.max() <= 1


def test_a_slide_in_memory_is_a_slide() -> None:
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    with MemoryReader([image, image[::2, ::2]], mpp_um=0.5) as slide:
        assert [str(level.size) for level in slide.info.levels] == ["7 x 5", "4 x 3"]
        assert [level.downsample for level in slide.info.levels] == [1, 2]
        assert slide.info.mpp_um == 0.5
        pixels = slide.read(Region(0, 2, 1, 3, 2))
        np.testing.assert_array_equal(pixels, image[1:3, 2:5])
        pixels[:] = 0
        assert slide.read(Region(0, 2, 1, 3, 2)).any()
    other = MemoryReader([255 - image], mpp_um=0.5)
    assert other.info.fingerprint != slide.info.fingerprint == MemoryReader([image], mpp_um=None).info.fingerprint


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_an_array_that_is_not_rgb_bytes_is_no_level(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a level is \(H, W, 3\) uint8 and not empty; found "):
        MemoryReader([array], mpp_um=None)


PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
ALPHA = np.where(np.arange(40) < 20, 255, 0).astype(np.uint8) * np.ones((30, 1), np.uint8)


def read_all(path: Path, reader: str = "auto") -> np.ndarray:
    with open_slide(path, reader) as slide:
        size = slide.info.size_lv0
        return slide.read(Region(0, 0, 0, size.width, size.height))


def test_a_png_is_a_slide_of_one_level_without_mpp(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path, dpi=(300, 300))
    with open_slide(path) as slide:
        assert (slide.info.reader, slide.info.vendor, slide.info.mpp_um) == ("image", "image", None)
        assert slide.info.fingerprint == sampled_fingerprint(path)
    np.testing.assert_array_equal(read_all(path), PICTURE)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    expected = PICTURE.copy()
    expected[:, 20:] = 255
    Image.fromarray(np.dstack([PICTURE, ALPHA])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([PICTURE, ALPHA])).save(tmp_path / "rgba.tif")
    Image.fromarray(np.dstack([PICTURE[..., 0], ALPHA])).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_all(tmp_path / "rgba.png"), expected)
    np.testing.assert_array_equal(read_all(tmp_path / "rgba.tif"), expected)
    grey = expected[..., :1].repeat(3, axis=2)
    np.testing.assert_array_equal(read_all(tmp_path / "la.png"), grey)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_grey_is_three_equal_channels(tmp_path: Path, name: str) -> None:
    Image.fromarray(PICTURE[..., 0]).save(tmp_path / name)
    reader = "image" if name == "a.bmp" else "auto"
    np.testing.assert_array_equal(read_all(tmp_path / name, reader), PICTURE[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_a_palette_gives_its_colours(tmp_path: Path, name: str) -> None:
    image = Image.fromarray((PICTURE // 128) * 255).quantize(8)
    image.save(tmp_path / name)
    np.testing.assert_array_equal(read_all(tmp_path / name, "image"), np.asarray(image.convert("RGB")))


def test_a_jpeg_and_a_webp_come_back_nearly(tmp_path: Path) -> None:
    x, y = np.arange(64), np.arange(48)[:, None]
    image = np.stack([x + 2 * y, 200 - x + y, 100 + 0 * x + y], axis=-1).astype(np.uint8)
    for name in ("a.jpg", "a.webp"):
        Image.fromarray(image).save(tmp_path / name, quality=95)
        assert np.abs(read_all(tmp_path / name).astype(int) - image).max() <= 6


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_a_plain_tiff_opens_in_strips(tmp_path: Path, compression: str | None) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.tif", compression=compression, dpi=(72, 72))
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.info.reader == "tiffslide"
        assert slide.info.mpp_um == pytest.approx(352.78, abs=0.01)  # believed by nobody; see resolve_mpp
    if compression != "jpeg":
        np.testing.assert_array_equal(read_all(tmp_path / "a.tif"), PICTURE)


@pytest.mark.parametrize("jpeg_rgb", [False, True])
@pytest.mark.parametrize("reader", ["openslide", "tiffslide"])
def test_the_colours_of_scanner_jpegs_are_right(tmp_path: Path, jpeg_rgb: bool, reader: str) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 170)]
    image = np.repeat(np.array(colours, np.uint8), 64, axis=0)[None].repeat(64, axis=0)
    write_aperio(tmp_path / "a.svs", image, mpp_um=0.5, quality=95, tile_px=64, jpeg_rgb=jpeg_rgb)
    found = read_all(tmp_path / "a.svs", reader)
    for i, colour in enumerate(colours):
        assert np.abs(found[16:48, 64 * i + 16 : 64 * i + 48].astype(int) - colour).max() <= 3


def test_holes_of_a_scan_are_its_background() -> None:
    pixels = np.array([[[10, 20, 30, 255], [200, 0, 0, 128], [7, 7, 7, 0]]], np.uint8)
    assert as_rgb(pixels).tolist() == [[[10, 20, 30], [227, 127, 127], [255, 255, 255]]]
    assert as_rgb(pixels, (0, 0, 100)).tolist() == [[[10, 20, 30], [100, 0, 50], [0, 0, 100]]]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300_000), st.integers(0, 299_999), st.integers(1, 255))
def test_a_fingerprint_knows_length_and_samples(tmp_path_factory, length: int, place: int, change: int) -> None:
    path = tmp_path_factory.getbasetemp() / "fingerprint.bin"
    content = bytearray(b"a" * length)
    path.write_bytes(content)
    before = sampled_fingerprint(path)
    path.write_bytes(bytes(content) + b"a")
    assert sampled_fingerprint(path) != before
    content[place % length] ^= change
    path.write_bytes(content)
    block, i = 1 << 16, place % length
    middle = max(0, (length - block) // 2)
    sampled = i < block or i >= length - block or middle <= i < middle + block
    assert (sampled_fingerprint(path) != before) == sampled


@pytest.mark.parametrize("reader", ["openslide", "tiffslide", "image"])
def test_a_slide_that_changes_while_it_is_read_is_refused(tmp_path: Path, fiducial_file: Path, reader: str) -> None:
    path = tmp_path / "a.tif"
    if reader == "image":
        Image.fromarray(PICTURE).save(path)
    else:
        path.write_bytes(fiducial_file.read_bytes())
    with open_slide(path, reader) as slide:
        slide.read(Region(0, 0, 0, 9, 9))
        check_unchanged(slide.info, path)
        whole = path.read_bytes()
        (tmp_path / "other.tif").write_bytes(whole + b"more")
        (tmp_path / "other.tif").replace(path)  # the open reader still sees the old file
        said = rf"^{path}: the file changed while it was read \(fingerprint {slide.info.fingerprint} before, "
        with pytest.raises(SlideError, match=said):
            check_unchanged(slide.info, path)
        path.unlink()
        with pytest.raises(SlideError, match="to check that it did not change: No such file or directory; put"):
            check_unchanged(slide.info, path)


def test_pixels_that_are_not_square_are_refused() -> None:
    assert square_mpp(Path("a"), 0.25, 0.252) == pytest.approx(0.251)
    for x, y in [(None, 0.25), (0.25, None), (0.0, 0.25), (float("nan"), 0.25)]:
        assert square_mpp(Path("a"), x, y) is None
    with pytest.raises(Exception, match=r"^a: pixels are not square \(0.25 x 0.5 µm\); not supported$"):
        square_mpp(Path("a"), 0.25, 0.5)


def test_a_thumbnail_of_a_flat_image_is_the_image(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        np.testing.assert_array_equal(thumbnail(slide, 100), PICTURE)
