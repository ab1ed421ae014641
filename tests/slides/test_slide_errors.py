import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_dbps.core.errors import SlideError, UnreadableSlideError
from wsi_dbps.core.geometry import Region, Size
from wsi_dbps.slides.base import READERS
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.sampling import read_box, thumbnail
from wsi_dbps.slides.tiff_tables import MAX_IMAGES, damage

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


@pytest.mark.parametrize("reader", EVERY)
@pytest.mark.parametrize(("name", "folder"), [("a.vsi", "_a_"), ("a.VSI", "_a_"), ("a.mrxs", "a")])
def test_a_container_without_its_pixels_is_refused_naming_the_folder(tmp_path, name: str, folder: str, reader: str):
    tifffile.imwrite(tmp_path / name, PICTURE, tile=(64, 64))
    said = f"the slide's pixels lie in the folder {folder} beside it, which is missing; copy it there too"
    assert refusal(tmp_path / name, reader) == said
    (tmp_path / folder).mkdir()
    if name != "a.mrxs":
        assert refusal(tmp_path / name, reader).startswith("no reader here reads Olympus's VSI; convert it to OME-TIFF")


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
    assert damage(io.BytesIO(whole), len(whole)) is None
    for length in {*range(16, len(whole), 997), *range(len(whole) - 3000, len(whole))}:
        assert damage(io.BytesIO(whole[:length]), length), length


@settings(deadline=None)
@given(place=st.floats(0, 1), value=st.integers(0, 255))
def test_damaged_tables_never_crash_nor_hang_the_check(fiducial_file: Path, place: float, value: int) -> None:
    content = bytearray(fiducial_file.read_bytes())
    content[int(place * (len(content) - 1))] = value
    said = damage(io.BytesIO(content), len(content))
    assert said is None or said.endswith(("; copy it again", ", or write it anew", "--tile --pyramid`)"))


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


def test_a_picture_too_large_for_memory_says_what_to_do(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 31_000, 31_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    content = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert refusal(tmp_path / "a.png") == (
        "a flat image of 31000 x 31000 px would be held in memory whole (2.9 GB; MAX_DECODED_BYTES allows 1.1); "
        "convert it to a tiled pyramidal TIFF (for example `vips tiffsave --tile --pyramid`)"
    )


def tiny_tiff(size: int, *entries: tuple[int, int, int, int], after: int = 0, tables: int = 1, named: int = 8) -> bytes:
    """A grey TIFF of `size` x `size` px with one strip, or with the tiles that `entries` name.

    Args:
        size: Its side.
        entries: (tag, type, count, value), in place of or beside the usual ones.
        after: The byte of the table that follows the last one.
        tables: How many such tables follow each other.
        named: The byte of the first one.
    """
    usual = [(256, 4, 1, size), (257, 4, 1, size), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    if all(tag != 324 for tag, *_ in entries):
        usual += [(273, 4, 1, 0), (278, 4, 1, size), (279, 4, 1, 16)]
    tags = sorted({entry[0]: entry for entry in (*usual, *entries)}.values())
    length = 2 + 12 * len(tags) + 4
    content = b"II*\0" + struct.pack("<I", named)
    for i in range(tables):
        following = after if i == tables - 1 else named + (i + 1) * length
        content += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        content += struct.pack("<I", following)
    return content


CIRCLE = "its tables of contents run in a circle (image {} would be the one at byte 8 again); the file is damaged; copy"
BOMB = "image 0 has {}s of {} x {} px, which would be decoded whole ({} GB; MAX_DECODED_BYTES allows 1.1); convert it"
TILE = 999_984


@pytest.mark.parametrize("reader", EVERY)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tiny_tiff(64, after=8), CIRCLE.format(1)),
        (tiny_tiff(64, after=8, tables=3), CIRCLE.format(3)),
        (tiny_tiff(64, (65420, 4, 1, 1), after=8), CIRCLE.format(1)),  # as in Hamamatsu's files
        (tiny_tiff(64, (330, 4, 1, 8)), CIRCLE.format(1)),  # a SubIFD that is its own
        (tiny_tiff(64, tables=MAX_IMAGES + 1), f"more than {MAX_IMAGES} images in one TIFF file (MAX_IMAGES), which"),
        (tiny_tiff(10**6), BOMB.format("strip", 10**6, 10**6, "1000.0")),
        (
            tiny_tiff(10**6, (322, 4, 1, TILE), (323, 4, 1, TILE), (324, 4, 1, 0), (325, 4, 1, 16)),
            BOMB.format("tile", TILE, TILE, "1000.0"),
        ),
        (
            tiny_tiff(10**6, (322, 4, 1, 256), (323, 4, 1, 256), (324, 4, 1, 0), (325, 4, 1, 16)),
            "image 0 of 1000000 x 1000000 px names 1 of the 15264649 tiles that it needs; the file is damaged; copy",
        ),
        (
            tiny_tiff(64, (330, 4, 1, 4_000_000), tables=1),
            "the file is cut short: a table of contents ends at byte 4000002 of ",
        ),
        (
            tiny_tiff(64, (700, 7, 1_400_000, 8), tables=99).ljust(1_400_008, b"\0"),
            "its tables name the same bytes again and again: more than 4 times the file's 1400008 bytes (MAX_NAMED)",
        ),
        (
            tiny_tiff(64, *((tag, 7, 1_000_000, 8) for tag in range(1000, 60_000))).ljust(2_000_000, b"\0"),
            "its tables name the same bytes again and again: more than 4 times the file's 2000000 bytes (MAX_NAMED)",
        ),
    ],
)
def test_tables_that_would_hang_or_crash_a_decoder_are_refused(
    tmp_path: Path, reader: str, content: bytes, said: str
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    found = refusal(path, reader)
    assert found.startswith(said), found
    assert found.endswith(("; copy it again", "write it anew", "--tile --pyramid`)", "file of their own"))


def test_a_slide_without_a_level_coarse_enough_is_refused_in_place_of_reading_it_whole(tmp_path: Path) -> None:
    """10^6 x 10^6 px in tiles of 8192 px, all of them the same 16 bytes: every table is as it should be."""
    num = (-(-(10**6) // 8192)) ** 2
    tags = [(322, 4, 1, 8192), (323, 4, 1, 8192)]
    end = len(tiny_tiff(10**6, *tags, (324, 4, num, 0), (325, 4, num, 0)))
    head = tiny_tiff(10**6, *tags, (324, 4, num, end), (325, 4, num, end + 4 * num))
    (tmp_path / "a.tif").write_bytes(head + struct.pack("<I", 8) * num + struct.pack("<I", 16) * num)
    with open_slide(tmp_path / "a.tif") as slide:
        for look in (lambda: thumbnail(slide, 1600), lambda: read_box(slide, 0, (0, 0, 8e5, 8e5), Size(9, 9))):
            with pytest.raises(
                SlideError, match=r" px of level 0 would be decoded at once \(.*MAX_DECODED_BYTES.* with"
            ):
                look()


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


def test_a_tiff_without_samples_in_separate_planes_is_no_division_by_zero() -> None:
    content = tiny_tiff(16, (277, 3, 1, 0), (284, 3, 1, 2))
    assert damage(io.BytesIO(content + bytes(512)), len(content) + 512) is None
