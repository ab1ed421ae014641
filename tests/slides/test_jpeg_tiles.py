"""The scanner's tiles, copied or decoded directly, are what OpenSlide shows, to the last bit."""

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from lossless import write_lossless
from PIL import Image

from wsi_dbps.core.errors import UnreadableSlideError
from wsi_dbps.core.geometry import Region
from wsi_dbps.slides.jpeg_tiles import JpegLevel, TileError, jpeg_levels
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.readers.tiles import SCALES, TileReader
from wsi_dbps.slides.source import ByteRanges
from wsi_dbps.synth.pyramid import write_aperio

TILE = 64


def picture(width: int = 528, height: int = 392) -> np.ndarray:
    x, y = np.arange(width), np.arange(height)[:, None]
    waves = [128 + 90 * np.sin(x / a + y / b) for a, b in ((7, 23), (19, 5), (31, 11))]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return np.clip(np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=[False, True], ids=["ycbcr", "rgb"])
def slide_path(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "a.svs"
    write_aperio(path, picture(), mpp_um=0.25, tile_px=TILE, jpeg_rgb=request.param, downsamples=(1, 4))
    return path


def found(path: Path) -> list[JpegLevel | str]:
    with open_slide(path) as slide:
        return jpeg_levels(path, slide.info)


def tile_bytes(level: JpegLevel, row: int, column: int) -> bytes:
    with ByteRanges(level.path) as file:
        return next(iter(level.jpegs(file, np.array([[column, row]]))))


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "OS-1-detail.ome.tif", None])
def test_every_copied_tile_shows_what_the_reader_shows_in_every_decoder(request, slide_path: Path, name) -> None:
    path = slide_path if name is None else request.getfixturevalue("real_data") / "slides" / name
    with open_slide(path) as slide:
        for i, level in enumerate(jpeg_levels(path, slide.info)):
            assert isinstance(level, JpegLevel)
            side = level.tile_px
            for row in range(level.size.height // side):
                for column in range(level.size.width // side):
                    jpeg = tile_bytes(level, row, column)
                    seen = slide.read(Region(i, column * side, row * side, side, side))
                    np.testing.assert_array_equal(simplejpeg.decode_jpeg(jpeg), seen)
                    np.testing.assert_array_equal(imagecodecs.jpeg8_decode(jpeg), seen)


def test_tiles_of_one_run_are_those_read_one_by_one(slide_path: Path) -> None:
    level = found(slide_path)[0]
    rows, columns = level.counts.shape
    some = [(column, row) for row in range(rows) for column in range(columns) if (row + column) % 3]
    cells_N2 = np.array(some[::-1] + some)
    with ByteRanges(slide_path) as file:
        together = list(level.jpegs(file, cells_N2))
    assert together == [tile_bytes(level, row, column) for column, row in cells_N2.tolist()]
    runs = list(level.runs(cells_N2))
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(len(cells_N2)))
    assert len(runs) < len(cells_N2)
    assert list(level.runs(cells_N2[:0])) == []


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_region_of_a_stored_level_is_what_the_reader_shows(slide_path: Path, data: st.DataObject) -> None:
    with open_slide(slide_path) as slide, TileReader(slide, jpeg_levels(slide_path, slide.info)) as fast:
        level = data.draw(st.integers(0, len(slide.info.levels) - 1))
        size = slide.info.levels[level].size
        x, y = data.draw(st.integers(0, size.width - 1)), data.draw(st.integers(0, size.height - 1))
        width, height = data.draw(st.integers(1, size.width - x)), data.draw(st.integers(1, size.height - y))
        region = Region(level, x, y, width, height)
        np.testing.assert_array_equal(fast.read(region), slide.read(region))


def test_between_the_stored_levels_there_are_steps_close_to_a_box_filter(slide_path: Path) -> None:
    with open_slide(slide_path) as slide, TileReader(slide, jpeg_levels(slide_path, slide.info)) as fast:
        downsamples = [level.downsample for level in fast.info.levels]
        assert downsamples[:2] == [1, 4]
        assert sorted(downsamples) == sorted({1, 4} | set(SCALES) | {4 * scale for scale in SCALES})
        whole = Image.fromarray(slide.read(Region(0, 0, 0, 512, 384)))
        for scale in (2, 8):
            level = fast.level_of(0, scale)
            pixels = fast.read(Region(level, 0, 0, 512 // scale, 384 // scale)).astype(int)
            assert np.abs(pixels - np.asarray(whole.reduce(scale))).mean() < 1.5


def test_why_tiles_cannot_be_had_is_said(tmp_path: Path, fiducial_file: Path) -> None:
    write_lossless(tmp_path / "a.tif", picture(), mpp_um=0.5, tile_px=64)
    assert found(tmp_path / "a.tif") == ["its tiles are compressed as DEFLATE, not JPEG"] * 2
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert found(tmp_path / "a.png") == ["image files are no plain grid of JPEG tiles"]


def test_damaged_tiles_are_refused_each_for_its_reason(slide_path: Path) -> None:
    level = found(slide_path)[0]
    start, count = int(level.offsets[1, 1]), int(level.counts[1, 1])
    whole = slide_path.read_bytes()[start : start + count]
    assert level.complete(whole)
    assert level.complete(whole + b"\0\0") == level.complete(whole)  # padding after the end
    scan = whole.index(b"\xff\xda") + 20
    frame = whole.index(b"\xff\xc0")
    for damaged, said in {
        whole[:-2]: "no end-of-image marker",
        whole[: len(whole) // 2]: "no end-of-image marker",
        whole[:scan] + b"\xff\xd9" + whole[scan + 2 :]: "markers where its pixels",
        b"\0" * len(whole): "the tile is no JPEG",
        b"": "the tile is no JPEG",
        whole[: frame + 1] + b"\xc2" + whole[frame + 2 :]: "no baseline JPEG",
        whole[: frame + 5] + struct.pack(">H", 63) + whole[frame + 7 :]: "the tile is 64 x 63 px",
        whole[:2] + whole[3:]: "header is damaged",
    }.items():
        with pytest.raises(TileError, match=said):
            level.complete(damaged)


def test_a_tile_that_cannot_be_decoded_is_named_with_its_place(slide_path: Path, tmp_path: Path) -> None:
    level = found(slide_path)[0]
    content = bytearray(slide_path.read_bytes())
    start, count = int(level.offsets[2, 3]), int(level.counts[2, 3])
    content[start : start + count] = b"\x55" * count
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    with open_slide(path) as slide, TileReader(slide, jpeg_levels(path, slide.info)) as fast:
        assert fast.read(Region(0, 0, 0, 150, 120)).shape == (120, 150, 3)
        with pytest.raises(UnreadableSlideError, match=r"a.svs: cannot decode level 0 at \(192, 128\): the tile is no"):
            fast.read(Region(0, 100, 100, 150, 120))
