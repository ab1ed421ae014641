"""The scanner's own JPEG tiles in a TIFF: where each lies, and each as a complete JPEG file.

In a TIFF a tile's stream usually lacks the quantisation and Huffman tables, which are stored once per level, and says
nothing of its colour space: scanners store RGB as well as YCbCr. Both are put in, so that any decoder shows the tile
right; the compressed pixels stay as they are.

Sources: the TIFF 6.0 specification and TIFF Technical Note 2 (JPEGTables); ITU-T T.81 for the markers; Adobe Technical
Note 5116 for the APP14 segment that declares a colour space.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.core.errors import SlideError, UnreadableSlideError, one_line
from wsi_dbps.slides.source import opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from wsi_dbps.core.geometry import Size
    from wsi_dbps.slides.base import SlideInfo
    from wsi_dbps.slides.source import ByteRanges, SlideFile

VENDORS: Final = ("aperio", "generic-tiff", "ome", "tiff", "philips", "qptiff")
"""Formats whose levels are plain TIFF grids. Elsewhere tiles overlap or are laid out by other rules."""
_JPEG: Final = 7
_RGB = 2
_COLOURS: Final = (_RGB, 6)  # RGB, YCbCr
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_RUN_BYTES: Final = 2 << 20
_RUN_GAP: Final = 1 << 16


class TileError(UnreadableSlideError):
    """A tile is not the baseline JPEG that its place in the file promises."""


@dataclass(frozen=True)
class Damaged:
    """What stands in the place of a tile or patch that cannot be decoded."""

    why: str


@dataclass(frozen=True)
class _Head:
    """What a tile begins with, up to its pixels."""

    content: bytes
    """To put in its place."""
    num_marks: int
    """Markers in what was there."""


@dataclass
class JpegLevel:
    """One pyramid level as a grid of JPEG tiles."""

    path: SlideFile
    size: Size
    tile_px: int
    offsets: npt.NDArray[np.int64]
    """(rows, columns) byte where each tile begins."""
    counts: npt.NDArray[np.int64]
    """(rows, columns) bytes of each tile; 0 where the scanner stored none."""
    tables: bytes
    """Segments that every tile lacks."""
    rgb: bool
    """Whether the file says that its JPEG streams hold RGB."""
    jfif_wins: bool
    """Whether a JFIF segment, which means YCbCr, outweighs that: tifffile takes it so, OpenSlide does not."""
    _heads: dict[bytes, _Head] = field(default_factory=dict, repr=False)
    """Heads of tiles seen so far, and what takes their place: nearly always one."""

    def runs(self, cells_N2: npt.NDArray[np.int64]) -> Iterator[slice]:
        """Tiles that follow each other and are neighbours in the file: what is best read in one go.

        Args:
            cells_N2: (column, row) of each, none of them empty.
        """
        starts_N, ends_N = self._places(cells_N2)
        gaps = starts_N[1:] - ends_N[:-1]
        apart = ((gaps < 0) | (gaps > _RUN_GAP)).tolist()
        starts, ends, first = starts_N.tolist(), ends_N.tolist(), 0
        for i, alone in enumerate(apart, start=1):
            if alone or ends[i] - starts[first] > _RUN_BYTES:
                yield slice(first, i)
                first = i
        if starts:
            yield slice(first, len(starts))

    def jpegs(self, file: ByteRanges, cells_N2: npt.NDArray[np.int64]) -> Iterator[bytes | Damaged]:
        """Tiles as complete JPEG files, in order; `Damaged` in the place of one that is no baseline JPEG.

        Args:
            file: The open file.
            cells_N2: (column, row) of each, none of them empty.

        Raises:
            SlideError: If the file cannot be read.
        """
        for part in self.runs(cells_N2):
            starts_N, ends_N = self._places(cells_N2[part])
            base = int(starts_N[0])
            run = file.read(base, int(ends_N[-1]) - base)
            marks = _marks(run)
            places = ((starts_N - base).tolist(), (ends_N - base).tolist())
            counts = (np.searchsorted(marks, places[1]) - np.searchsorted(marks, places[0])).tolist()
            for start, end, num_marks in zip(*places, counts, strict=True):
                try:
                    yield self._whole(run, start, end, num_marks)
                except TileError as error:
                    yield Damaged(str(error))

    def _places(self, cells_N2: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(N,) byte where each tile begins, and where it ends."""
        starts_N = self.offsets[cells_N2[:, 1], cells_N2[:, 0]]
        return starts_N, starts_N + self.counts[cells_N2[:, 1], cells_N2[:, 0]]

    def complete(self, stream: bytes) -> bytes:
        """A stored tile as a JPEG file of its own.

        Raises:
            TileError: If it is not a whole baseline JPEG of three components and the grid's size.
        """
        return self._whole(stream, 0, len(stream), len(_marks(stream)))

    def _whole(self, run: bytes, start: int, end: int, num_marks: int) -> bytes:
        """`complete`, of a tile within a run of them that holds so many markers; its bytes are copied once."""
        scan = run.find(b"\xff\xda", start, end) + 2
        pixels = max(scan, start) + int.from_bytes(run[scan : scan + 2], "big")
        head = run[start:pixels]
        if (new := self._heads.get(head)) is None:
            new = self._heads[head] = self._completed(head)
        if run[end - 2 : end] != _EOI:  # some writers pad
            padded, end = end, run.rfind(_EOI, start, end) + 2
            if end < 2 or run[end:padded].strip(b"\0\xff"):
                raise TileError("the tile has no end-of-image marker")
        if num_marks != new.num_marks + 1 and _marks(run[pixels:end]).tolist() != [end - pixels - 2]:
            raise TileError("the tile holds markers where its pixels should be")
        return b"".join((new.content, memoryview(run)[pixels:end]))

    def _completed(self, head: bytes) -> _Head:
        kept, tables = [], b"" if b"\xff\xc4" in head else self.tables
        for marker, segment in _segments(head):
            if marker == 0xC0:
                self._check_frame(segment)
            elif 0xC1 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                raise TileError("the tile is no baseline JPEG")
            if not 0xE0 <= marker <= 0xEF and marker != 0xFE:
                kept.append(segment)
        rgb = self.rgb and not (self.jfif_wins and b"JFIF\0" in head)
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x00" if rgb else b"\x01")
        return _Head(b"".join((_SOI, adobe, tables, *kept)), len(_marks(head)))

    def _check_frame(self, segment: bytes) -> None:
        bits, height, width = segment[4], int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[7:9], "big")
        if (bits, width, height, segment[9]) != (8, self.tile_px, self.tile_px, 3):
            raise TileError(f"the tile is {width} x {height} px of {segment[9]} components and {bits} bits")


def _marks(content: bytes) -> npt.NDArray[np.int64]:
    """Where there is a marker: 0xFF that no 0x00 follows (a plain 0xFF among pixels), nor a restart or a fill byte."""
    values = np.frombuffer(content, np.uint8)
    places = np.flatnonzero(values[:-1] == 0xFF)
    after = values[places + 1]
    return places[(after != 0) & (after != 0xFF) & ((after & 0xF8) != 0xD0)]


def _segments(head: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, whole segment) of a JPEG's head, from after its start marker to the start of scan, which must end it."""
    if not head.startswith(_SOI):
        raise TileError("the tile is no JPEG")
    place, marker = 2, 0
    while marker != 0xDA:
        if head[place : place + 1] != b"\xff" or len(head) < place + 4:
            raise TileError("the tile's header is damaged")
        marker = head[place + 1]
        end = place + 2 + int.from_bytes(head[place + 2 : place + 4], "big")
        yield marker, head[place:end]
        place = end
    if place != len(head):
        raise TileError("the tile's header is damaged")


def jpeg_levels(path: SlideFile, info: SlideInfo) -> list[JpegLevel | str]:
    """For each level its tiles, or in words why they cannot be had."""
    if info.vendor not in VENDORS:
        return [f"{info.vendor} files are no plain grid of JPEG tiles"] * len(info.levels)
    import tifffile

    try:
        with opened(path) as file, tifffile.TiffFile(file) as tiff:
            pages = [page for series in tiff.pages for page in (series, *(series.pages or ()))]
            return [_level(path, level.size, pages, jfif_wins=info.jfif_is_ycbcr) for level in info.levels]
    except SlideError:  # the network failed
        raise
    except Exception as error:  # tifffile raises IndexError, struct.error and others on damaged files
        said = f"{type(error).__name__}: {one_line(error)}"
        return [f"tifffile cannot read its tables ({said})"] * len(info.levels)


def _level(path: SlideFile, size: Size, pages: Sequence[Any], *, jfif_wins: bool) -> JpegLevel | str:
    fitting = [page for page in pages if (page.imagewidth, page.imagelength) == (size.width, size.height)]
    page = next((page for page in fitting if page.is_tiled), None)
    why = ""
    if page is None:
        why = "stored in strips, not tiles" if fitting else f"no image of {size} px in the file"
    elif page.compression != _JPEG:
        why = f"its tiles are compressed as {getattr(page.compression, 'name', page.compression)}, not JPEG"
    elif (page.samplesperpixel, page.bitspersample, page.planarconfig) != (3, 8, 1) or page.photometric not in _COLOURS:
        why = "its tiles are not 8-bit RGB or YCbCr"
    elif page.tilewidth != page.tilelength:
        why = f"its tiles are {page.tilewidth} x {page.tilelength} px, not square"
    if page is None or why:
        return why
    shape = (-(-size.height // page.tilelength), -(-size.width // page.tilewidth))
    offsets, counts = (np.array(values, np.int64) for values in (page.dataoffsets, page.databytecounts))
    if offsets.size != shape[0] * shape[1]:
        return f"it names {offsets.size} tiles where its size needs {shape[0] * shape[1]}"
    tables = page.jpegtables or b""
    return JpegLevel(
        path,
        size,
        page.tilewidth,
        offsets.reshape(shape),
        counts.reshape(shape),
        tables.removeprefix(_SOI).removesuffix(_EOI),
        rgb=int(page.photometric) == _RGB,
        jfif_wins=jfif_wins,
    )
