"""Which reader opens which slide file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wsi_dbps.core.errors import UnreadableSlideError
from wsi_dbps.slides.base import READERS
from wsi_dbps.slides.source import opened
from wsi_dbps.slides.tiff_tables import MAGIC, damage

if TYPE_CHECKING:
    from wsi_dbps.slides.base import SlideReader
    from wsi_dbps.slides.source import SlideFile

FLAT_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def open_slide(path: SlideFile, reader: str = "auto") -> SlideReader:
    """Open a slide with the named reader; `auto` picks one by the file's format and `info.reader` says which.

    What is not a local file is opened through fsspec, by tiffslide: OpenSlide reads local files only.

    `auto` takes flat images (PNG, JPEG ...) by suffix, whatever OpenSlide recognises except OME-TIFF, and then TIFF
    files through tiffslide. A file that OpenSlide recognises but cannot open is an error: no other decoder steps in.

    Raises:
        UnreadableSlideError: If the file is missing, may not be read, is empty, cut short, or not a slide to that
            reader.
    """
    if isinstance(path, str) and "://" not in path:
        path = Path(path)
    head = _checked_head(path)
    chosen = _choose(path, head) if reader == "auto" else reader
    if chosen == "openslide":
        if isinstance(path, str):
            raise UnreadableSlideError(f"{path}: OpenSlide reads local files only; copy it, or pass --reader tiffslide")
        from wsi_dbps.slides.readers.openslide import OpenSlideReader

        return OpenSlideReader(path)
    if chosen == "tiffslide":
        from wsi_dbps.slides.readers.tiffslide import TiffSlideReader

        return TiffSlideReader(path)
    if chosen == "image":
        from wsi_dbps.slides.readers.image import ImageReader

        return ImageReader(path)
    raise UnreadableSlideError(f"{path}: no reader is called {reader!r}; there are auto, {', '.join(READERS)}")


def _checked_head(path: SlideFile) -> bytes:
    """The first bytes of a file that is there, may be read, and is not one of the usual accidents of copying."""
    try:
        with opened(path) as file:
            head = file.read(64)
            length = file.seek(0, os.SEEK_END)
            damaged = damage(file, length)
    except FileNotFoundError:
        raise UnreadableSlideError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UnreadableSlideError(f"{path}: a folder; name the slide file in it") from None
    except OSError as error:
        raise UnreadableSlideError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not head:
        raise UnreadableSlideError(f"{path}: the file is empty; copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise UnreadableSlideError(f"{path}: a Git LFS pointer, not the slide itself; run `git lfs pull`")
    if isinstance(path, Path):
        _check_container(path)
    if damaged:
        raise UnreadableSlideError(f"{path}: {damaged}")
    return head


def _check_container(path: Path) -> None:
    """Refuse a file that only names its pixels, which lie in a folder beside it, where they cannot be had.

    A VSI file is a TIFF of the slide's label: without this it would be tiled as the slide.
    """
    suffix = path.suffix.lower()
    folder = path.parent / (f"_{path.stem}_" if suffix == ".vsi" else path.stem)
    if suffix in (".vsi", ".mrxs") and not folder.is_dir():
        raise UnreadableSlideError(
            f"{path}: the slide's pixels lie in the folder {folder.name} beside it, which is missing; copy it there too"
        )
    if suffix == ".vsi":
        raise UnreadableSlideError(
            f"{path}: no reader here reads Olympus's VSI; convert it to OME-TIFF (for example with QuPath or bfconvert)"
        )


def _choose(path: SlideFile, head: bytes) -> str:
    if str(path).partition("?")[0].lower().endswith(FLAT_SUFFIXES):
        return "image"
    if isinstance(path, Path):
        from wsi_dbps.slides.readers.openslide import recognises

        if recognises(path):
            return "openslide"
    if head[:4] in MAGIC:
        return "tiffslide"
    if isinstance(path, str):
        raise UnreadableSlideError(
            f"{path}: neither a TIFF nor a flat image; of other formats only local files are read"
        )
    raise UnreadableSlideError(f"{path}: not a slide: neither OpenSlide nor tiffslide knows the format")
