"""What every slide reader offers, and which reader opens which file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from wsi_dbps.errors import UnreadableSlideError
from wsi_dbps.slides.source import opened
from wsi_dbps.slides.tiff_tables import MAGIC, damage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from wsi_dbps.geometry import Level, Region, Size
    from wsi_dbps.slides.source import SlideFile

READERS: Final = ("openslide", "tiffslide", "image")
FLAT_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class SlideInfo:
    """What a slide file says of itself."""

    levels: tuple[Level, ...]
    """Finest first; never empty."""
    mpp_um: float | None
    """µm per level-0 pixel as the file has it, whether or not it is plausible."""
    vendor: str
    reader: str
    """One of `READERS`, or `memory`."""
    fingerprint: str
    """Tells this file's content from another's; see `source.sampled_fingerprint`."""
    icc_profile: bytes = b""
    """The profile of its colours; empty where the file has none that can be read."""

    @property
    def size_lv0(self) -> Size:
        """Size of level 0."""
        return self.levels[0].size


class SlideReader(Protocol):
    """Pixels of one open slide. Not safe to share between threads or processes."""

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself."""

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB pixels of a region, which lies inside its level.

        Raises:
            UnreadableSlideError: If the pixels cannot be decoded.
        """

    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


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
        from wsi_dbps.slides.openslide_reader import OpenSlideReader

        return OpenSlideReader(path)
    if chosen == "tiffslide":
        from wsi_dbps.slides.tiffslide_reader import TiffSlideReader

        return TiffSlideReader(path)
    if chosen == "image":
        from wsi_dbps.slides.image_reader import ImageReader

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
        from wsi_dbps.slides.openslide_reader import recognises

        if recognises(path):
            return "openslide"
    if head[:4] in MAGIC:
        return "tiffslide"
    if isinstance(path, str):
        raise UnreadableSlideError(
            f"{path}: neither a TIFF nor a flat image; of other formats only local files are read"
        )
    raise UnreadableSlideError(f"{path}: not a slide: neither OpenSlide nor tiffslide knows the format")


def square_mpp(path: SlideFile, mpp_x: float | None, mpp_y: float | None) -> float | None:
    """The one mpp of a slide from its two, or None where the file has none.

    Raises:
        UnreadableSlideError: If the two differ by more than 2 %: every later length would be wrong along one axis.
    """
    if mpp_x is None or mpp_y is None or not (mpp_x > 0 and mpp_y > 0):
        return None
    if abs(mpp_x - mpp_y) > 0.02 * max(mpp_x, mpp_y):
        raise UnreadableSlideError(f"{path}: pixels are not square ({mpp_x:g} x {mpp_y:g} µm); not supported")
    return (mpp_x + mpp_y) / 2
