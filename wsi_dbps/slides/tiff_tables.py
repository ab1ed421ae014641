"""Is a TIFF file whole? Every table of contents and every tile it names must end inside the file.

The decoders are lenient: a file cut short inside its last tables opens with levels missing and nothing said.
Source: the TIFF 6.0 specification, section 2, and the BigTIFF layout of libtiff.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC: Final = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
TYPE_BYTES: Final = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
UNSIGNED: Final = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
OFFSETS: Final = {273: 279, 324: 325}  # StripOffsets -> StripByteCounts, TileOffsets -> TileByteCounts
NDPI_MARK: Final = 65420  # these files keep the high halves of offsets elsewhere
MAX_TABLES: Final = 10_000  # a damaged chain may run in a circle


def missing_part(file: BinaryIO, length: int) -> str | None:
    """What of a TIFF file lies past its end, in words; None for a whole file and for what is no TIFF."""
    try:
        for name, end in _parts(file, length):
            if end > length:
                return f"{name} ends at byte {end} of {length}"
    except _PastEndError as error:
        return str(error)
    return None


class _PastEndError(Exception):
    """A table lies past the end of the file."""


def _parts(file: BinaryIO, length: int) -> Iterator[tuple[str, int]]:
    """Each table's last value and each image's last byte, with the byte where it ends."""

    def read(at: int, size: int) -> bytes:
        if at + size > length:
            raise _PastEndError(f"a table of contents ends at byte {at + size} of {length}")
        file.seek(at)
        return file.read(size)

    def unpack(layout: str, at: int) -> tuple[int, ...]:
        return struct.unpack(layout, read(at, struct.calcsize(layout)))

    def numbers(kind: int, count: int, value: bytes, place: int | None) -> tuple[int, ...]:
        if kind not in UNSIGNED:
            return ()
        layout = struct.Struct(f"{order}{count}{UNSIGNED[kind]}")
        return layout.unpack(value[: layout.size] if place is None else read(place, layout.size))

    file.seek(0)
    magic = file.read(4)
    if (order := MAGIC.get(magic)) is None:
        return
    big = b"+" in magic
    word, count_format, entry_format = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    [at] = unpack(order + word, 8 if big else 4)
    for index in range(MAX_TABLES):
        if not at:
            return
        [entries] = unpack(order + count_format, at)
        start = at + struct.calcsize(order + count_format)
        layout = struct.Struct(order + entry_format)
        table = read(start, entries * layout.size)
        values = {}
        for tag, kind, count, value in layout.iter_unpack(table):
            size = count * (TYPE_BYTES[kind] if kind < len(TYPE_BYTES) else 0)
            place = struct.unpack(order + word, value)[0] if size > len(value) else None
            values[tag] = (kind, count, value, place)
            if place is not None:
                yield f"tag {tag} of image {index}", place + size
        if NDPI_MARK in values:
            return
        for tag, tag_of_counts in OFFSETS.items():
            if tag in values and tag_of_counts in values:
                ends = map(sum, zip(*(numbers(*values[t]) for t in (tag, tag_of_counts)), strict=False))
                yield f"the pixel data of image {index}", max(ends, default=0)
        [at] = unpack(order + word, start + len(table))
