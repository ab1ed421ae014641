"""Check from its tables alone, in bounded time, whether a TIFF file is complete and can be decoded piece by piece.

The decoders are lenient: a file cut short inside its last tables opens with levels missing and nothing said, one whose
tables run in a circle is read for ever, and one that declares a strip of a terabyte ends the process. So the tables are
checked before any decoder sees the file.
Source: the TIFF 6.0 specification, section 2, its Supplement 1 (SubIFDs), and the BigTIFF layout of libtiff.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np

from wsi_dbps.slides.source import MAX_DECODED_BYTES

if TYPE_CHECKING:
    import numpy.typing as npt

MAGIC: Final = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
TYPE_BYTES: Final = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
UNSIGNED: Final = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
OFFSETS: Final = {273: 279, 324: 325}  # StripOffsets -> StripByteCounts, TileOffsets -> TileByteCounts
SUB_IFDS: Final = 330
NDPI_MARK: Final = 65420  # these files keep the high halves of offsets elsewhere
MAX_IMAGES: Final = 10_000
"""Most images, pyramid levels included, that a TIFF file may hold."""
MAX_NAMED: Final = 4
"""How many times its own length a file's tables and their values may take together. A whole file needs less than one
length; more means that the same bytes are named again and again, and every decoder would read them as often."""


def damage(file: BinaryIO, length: int) -> str | None:
    """Why a TIFF file cannot be read, with the repair; None for a sound file and for what is no TIFF.

    Args:
        file: The file.
        length: Its length in bytes.
    """
    try:
        _Tables(file, length).check()
    except _DamagedError as error:
        return str(error)
    return None


class _DamagedError(Exception):
    """Something in the tables that no decoder should see."""


@dataclass(frozen=True)
class _Tag:
    """One entry of a table of contents."""

    kind: int
    count: int
    value: bytes
    """The value itself, where it fits."""
    place: int | None
    """The byte where the value lies, where it does not."""


class _Tables:
    """The tables of one file."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file, self._length = file, length
        self._budget = MAX_NAMED * length + (1 << 20)
        file.seek(0)
        magic = file.read(4)
        self._order = MAGIC.get(magic)
        self._big = b"+" in magic
        self._word, self._count, entry = ("Q", "Q", "HHQ8s") if self._big else ("I", "H", "HHI4s")
        self._entry = struct.Struct(f"{self._order or '<'}{entry}")

    def check(self) -> None:
        """Walk over every table: those of the chain, and the SubIFDs that they name.

        Raises:
            _DamagedError: At the first fault.
        """
        if self._order is None:
            return
        [at] = self._unpack(self._word, 8 if self._big else 4)
        seen: set[int] = set()
        waiting: list[int] = []
        while at or waiting:
            in_chain = bool(at)
            at = at or waiting.pop()
            if at in seen:
                raise _DamagedError(
                    f"its tables of contents run in a circle (image {len(seen)} would be the one at byte {at} again); "
                    "the file is damaged; copy it again, or write it anew"
                )
            if len(seen) == MAX_IMAGES:
                raise _DamagedError(
                    f"more than {MAX_IMAGES} images in one TIFF file (MAX_IMAGES), which is no slide; write "
                    "the slide's own levels to a file of their own"
                )
            tags, after = self._table(at, len(seen))
            seen.add(at)
            if NDPI_MARK not in tags:
                self._check_image(tags, len(seen) - 1)
                if SUB_IFDS in tags:
                    waiting += [int(part) for part in self._numbers(tags[SUB_IFDS]) if part]
            at = after if in_chain else 0

    def _table(self, at: int, index: int) -> tuple[dict[int, _Tag], int]:
        """The entries of the table at a byte, and the byte of the next table; 0 if there is none."""
        [entries] = self._unpack(self._count, at)
        start = at + struct.calcsize(f"={self._count}")
        content = self._read(start, entries * self._entry.size)
        tags = {}
        for tag, kind, count, value in self._entry.iter_unpack(content):
            size = count * (TYPE_BYTES[kind] if kind < len(TYPE_BYTES) else 0)
            place = None
            if size > len(value):
                [place] = struct.unpack(f"{self._order}{self._word}", value)
            tags[tag] = _Tag(kind, count, value, place)
        for tag, entry in tags.items() if NDPI_MARK not in tags else ():
            if entry.place is not None:
                size = entry.count * TYPE_BYTES[entry.kind]
                self._check_end(f"tag {tag} of image {index}", entry.place + size)
                self._spend(size)
        # NDPI has eight bytes here, of which a file below 4 GiB needs the first four
        word = "Q" if NDPI_MARK in tags and self._length >= 1 << 32 else self._word
        [after] = self._unpack(word, start + len(content))
        return tags, after

    def _check_image(self, tags: dict[int, _Tag], index: int) -> None:
        """Refuse an image whose pixels lie past the end of the file, are too few, or come in pieces too large."""
        width, height = self._first(tags, 256, 0), self._first(tags, 257, 0)
        for tag, tag_of_counts in OFFSETS.items():
            if tag not in tags or tag_of_counts not in tags:
                continue
            if tag == 324:
                piece, columns, rows = "tile", self._first(tags, 322, width), self._first(tags, 323, height)
            else:
                piece, columns, rows = "strip", width, min(height, self._first(tags, 278, height))
            planes = max(1, self._first(tags, 277, 1))
            planar = planes if self._first(tags, 284, 1) == 2 else 1
            decoded = columns * rows * (planes // planar) * max(1, self._first(tags, 258, 8) // 8)
            if decoded > MAX_DECODED_BYTES:
                raise _DamagedError(
                    f"image {index} has {piece}s of {columns} x {rows} px, which would be decoded whole "
                    f"({decoded / 1e9:.1f} GB; MAX_DECODED_BYTES allows {MAX_DECODED_BYTES / 1e9:.1f}); "
                    "convert it to a tiled pyramidal TIFF (for example `vips tiffsave --tile --pyramid`)"
                )
            needed = -(-width // max(1, columns)) * -(-height // max(1, rows)) * planar
            if tags[tag].count < needed:
                raise _DamagedError(
                    f"image {index} of {width} x {height} px names {tags[tag].count} of the {needed} {piece}s that it "
                    "needs; the file is damaged; copy it again, or write it anew"
                )
            starts_N, counts_N = self._numbers(tags[tag]), self._numbers(tags[tag_of_counts])
            num = min(len(starts_N), len(counts_N))
            if num:  # as floats, which do not wrap around
                end = (starts_N[:num].astype(np.float64) + counts_N[:num]).max()
                self._check_end(f"the pixel data of image {index}", int(end))

    def _first(self, tags: dict[int, _Tag], tag: int, default: int) -> int:
        values_N = self._numbers(tags[tag]) if tag in tags else np.empty(0, np.uint64)
        return int(values_N[0]) if len(values_N) else default

    def _numbers(self, tag: _Tag) -> npt.NDArray[np.unsignedinteger]:
        """The values of a tag of whole numbers; none for other tags."""
        if tag.kind not in UNSIGNED:
            return np.empty(0, np.uint64)
        kind = np.dtype(f"{self._order}{UNSIGNED[tag.kind]}")
        size = tag.count * kind.itemsize
        content = tag.value[:size] if tag.place is None else self._read(tag.place, size)
        return np.frombuffer(content, kind)

    def _unpack(self, layout: str, at: int) -> tuple[int, ...]:
        layout = f"{self._order}{layout}"
        return struct.unpack(layout, self._read(at, struct.calcsize(layout)))

    def _read(self, at: int, size: int) -> bytes:
        self._check_end("a table of contents", at + size)
        self._spend(size)
        self._file.seek(at)
        return self._file.read(size)

    def _check_end(self, name: str, end: int) -> None:
        if end > self._length:
            raise _DamagedError(f"the file is cut short: {name} ends at byte {end} of {self._length}; copy it again")

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise _DamagedError(
                f"its tables name the same bytes again and again: more than {MAX_NAMED} times the file's "
                f"{self._length} bytes (MAX_NAMED); the file is damaged; copy it again, or write it anew"
            )
