"""Colours as the scanner saw them, or as a screen shows them: a slide's ICC profile, and pixels turned into sRGB.

Source: ICC.1, the file format; the transform is LittleCMS's, by Pillow, with the profile's own rendering intent.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms

from wsi_dbps.core.errors import UnreadableSlideError
from wsi_dbps.slides.readers.common import Reader

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.core.geometry import Region
    from wsi_dbps.slides.base import SlideInfo, SlideReader

_GRID = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(18, -1, 3)


def profile_name(profile: bytes) -> str:
    """What a profile calls itself; empty where there is none, and what is wrong where it cannot be read."""
    if not profile:
        return ""
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip() or "unnamed"
    except (ImageCms.PyCMSError, OSError) as error:
        return f"unreadable ({error})"


@lru_cache(maxsize=4)
def to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """The transform of a profile's RGB to sRGB; None where it moves no colour by more than a level in 255.

    Raises:
        UnreadableSlideError: If it is no profile of RGB colours.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), "RGB", "RGB", ImageCms.Intent(ImageCms.getDefaultIntent(source))
        )
    except (ImageCms.PyCMSError, OSError) as error:
        raise UnreadableSlideError(f"its ICC profile cannot be applied ({error}); tile with --icc keep") from None
    moved = _applied(transform, _GRID).astype(np.int16) - _GRID
    return transform if np.abs(moved).max() > 1 else None


def in_colours(reader: SlideReader, icc: str) -> SlideReader:
    """A reader of a slide's colours as they are stored (`keep`), or in sRGB (`srgb`).

    Raises:
        UnreadableSlideError: If the slide's profile is no profile of RGB colours.
    """
    transform = to_srgb(reader.info.icc_profile) if icc == "srgb" and reader.info.icc_profile else None
    return reader if transform is None else SrgbReader(reader, transform)


def _applied(transform: ImageCms.ImageCmsTransform, pixels_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.asarray(transform.apply(Image.fromarray(pixels_HWC)))


class SrgbReader(Reader):
    """A reader whose pixels are turned into sRGB. To close it does nothing: the one beneath stays open."""

    def __init__(self, beneath: SlideReader, transform: ImageCms.ImageCmsTransform) -> None:
        """Wrap an open reader, which stays the caller's to close."""
        self._beneath, self._transform = beneath, transform
        self.thread_safe = beneath.thread_safe

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself."""
        return self._beneath.info

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """(H, W, 3) sRGB pixels of a region, which lies inside its level."""
        return _applied(self._transform, self._beneath.read(region))
