import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_dbps.errors import UnreadableSlideError
from wsi_dbps.geometry import Region
from wsi_dbps.slides import image_reader
from wsi_dbps.slides.reader import READERS, open_slide
from wsi_dbps.slides.tiff_tables import missing_part

EVERY = ("auto", *READERS)
PICTURE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)


def read_every_level(path: Path, reader: str) -> None:
    with open_slide(path, reader) as slide:
        for i, level in enumerate(slide.info.levels):
            slide.read(Region(i, 0, 0, level.size.width, level.size.height))


def refusal(path: Path, reader: str = "auto") -> str:
    """What is said, in one line, of a file that cannot be read; without its path."""
    with pytest.raises(UnreadableSlideError) as caught:
        read_every_level(path, reader)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("reader", EVERY)
def test_what_is_no_file_is_said_whatever_the_reader(tmp_path: Path, reader: str) -> None:
    assert refusal(tmp_path / "a.svs", reader) == "no such file"
    assert refusal(tmp_path, reader) == "a folder; name the slide file in it"
    (tmp_path / "empty.svs").touch()
    assert refusal(tmp_path / "empty.svs", reader) == "the file is empty; copy it again"
    (tmp_path / "a.txt").touch()
    assert refusal(tmp_path / "a.txt" / "b.svs", reader) == "cannot be read: Not a directory"


@pytest.mark.parametrize("reader", EVERY)
def test_a_git_lfs_pointer_is_known(tmp_path: Path, reader: str) -> None:
    (tmp_path / "a.svs").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert refusal(tmp_path / "a.svs", reader) == "a Git LFS pointer, not the slide itself; run `git lfs pull`"


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs users")
@pytest.mark.parametrize("reader", EVERY)
def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    path.chmod(0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        assert refusal(path, reader) == "cannot be read: Permission denied"
    finally:
        os.seteuid(was)


def test_text_is_no_slide_to_anyone(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_text("hello\n")
    assert refusal(path) == "not a slide: neither OpenSlide nor tiffslide knows the format"
    assert refusal(path, "openslide") == "OpenSlide cannot open it: Unsupported or missing image file"
    assert refusal(path, "tiffslide").startswith("tiffslide cannot open it: TiffFileError: not a TIFF file")
    assert refusal(path, "image").startswith("not a readable image: cannot identify image file")


def test_a_reader_that_does_not_exist_is_named(fiducial_file: Path) -> None:
    said = "no reader is called 'cucim'; there are auto, openslide, tiffslide, image"
    assert refusal(fiducial_file, "cucim") == said


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_cut_short_before_its_table_is_known(tmp_path: Path, big: bool, order: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE, bigtiff=big, byteorder=order)
    whole = path.read_bytes()
    table = 300_000 + 7  # where writers that stream put it: at the end
    head = whole[:8] + struct.pack(order + "Q", table) if big else whole[:4] + struct.pack(order + "I", table)
    path.write_bytes(head + whole[len(head) : 5000])
    said = f"the file is cut short: a table of contents ends at byte {table + (8 if big else 2)} of 5000; copy it again"
    assert {refusal(path, reader) for reader in EVERY} == {said}


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0, 0.999))
@example(share=0.9895851687316761)  # inside the last tables, which tifffile leaves out in silence
def test_a_file_cut_short_anywhere_is_refused_by_every_reader(fiducial_file: Path, tmp_path_factory, share: float):
    whole = fiducial_file.read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.tif"
    path.write_bytes(whole[: 1 + int(share * len(whole))])
    for reader in ("auto", "openslide", "tiffslide"):
        assert refusal(path, reader)


def test_every_cut_is_seen_from_the_tables_alone(fiducial_file: Path) -> None:
    whole = fiducial_file.read_bytes()
    assert missing_part(io.BytesIO(whole), len(whole)) is None
    for length in {*range(16, len(whole), 997), *range(len(whole) - 3000, len(whole))}:
        assert missing_part(io.BytesIO(whole[:length]), length), length


@settings(deadline=None)
@given(place=st.floats(0, 1), value=st.integers(0, 255))
def test_damaged_tables_never_crash_nor_hang_the_check(fiducial_file: Path, place: float, value: int) -> None:
    content = bytearray(fiducial_file.read_bytes())
    content[int(place * (len(content) - 1))] = value
    said = missing_part(io.BytesIO(content), len(content))
    assert said is None or said.endswith(f"of {len(content)}")


@settings(deadline=None, max_examples=40)
@given(place=st.floats(0, 1), value=st.integers(0, 255), ending=st.sampled_from([".png", ".jpg", ".webp", ".bmp"]))
def test_a_damaged_picture_is_read_or_refused_in_one_line(tmp_path_factory, place, value, ending) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged{ending}"
    Image.fromarray(PICTURE[:40, :40]).save(path)
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] = value
    path.write_bytes(content)
    said = ""
    try:
        with open_slide(path) as slide:
            assert slide.read(Region(0, 0, 0, 1, 1)).shape == (1, 1, 3)
    except UnreadableSlideError as error:
        said = str(error)
    assert "\n" not in said


def test_a_picture_cut_short_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        Image.fromarray(PICTURE).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        assert refusal(tmp_path / name).startswith("not a readable image: image file is truncated")


def test_deep_pictures_are_refused_not_scaled_in_silence(tmp_path: Path) -> None:
    deep = PICTURE[..., 0].astype(np.uint16) * 16
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert refusal(tmp_path / "a.png") == "more than 8 bits deep (I;16); convert it to 8-bit RGB"
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "f.tif")
    assert refusal(tmp_path / "f.tif", "image") == "more than 8 bits deep (F); convert it to 8-bit RGB"
    tifffile.imwrite(tmp_path / "a.tif", deep)
    assert refusal(tmp_path / "a.tif") == (
        "cannot decode level 0 at (0, 0): ValueError: pixels are uint16 (300, 400, 1); "
        "convert it to 8-bit grey, RGB or RGBA"
    )
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((300, 400, 5), np.uint8), photometric="minisblack")
    assert re.search(r"convert it to|cannot open|cannot decode", refusal(tmp_path / "five.tif"))


def test_a_picture_too_large_for_memory_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(image_reader, "MAX_GIGAPIXELS", 1e-4)
    said = refusal(tmp_path / "a.png")
    assert said.startswith("a flat image of 400 x 300 px would be held in memory whole; convert it to a tiled pyramid")


def test_a_tile_that_cannot_be_decoded_is_named_with_its_place(fiducial_file: Path, tmp_path: Path) -> None:
    content = bytearray(fiducial_file.read_bytes())
    with tifffile.TiffFile(fiducial_file) as tiff:
        page = tiff.pages[0]
        for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            content[start : start + count] = b"\x55" * count
    path = tmp_path / "damaged.tif"
    path.write_bytes(content)
    for reader in ("openslide", "tiffslide"):
        with open_slide(path, reader) as slide:
            with pytest.raises(UnreadableSlideError) as caught:
                slide.read(Region(0, 300, 600, 50, 50))
            assert str(caught.value).startswith(f"{path}: cannot decode level 0 at (300, 600): ")
            assert "\n" not in str(caught.value)
