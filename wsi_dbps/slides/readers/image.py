"""Flat images (PNG, JPEG, plain TIFF ...): one level, decoded whole."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wsi_dbps.core.errors import SlideError, UnreadableSlideError
from wsi_dbps.slides.colour import as_rgb
from wsi_dbps.slides.readers.memory import MemoryReader
from wsi_dbps.slides.source import MAX_DECODED_BYTES, opened, sampled_fingerprint

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.slides.base import SlideInfo
    from wsi_dbps.slides.source import SlideFile

_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


class ImageReader(MemoryReader):
    """A flat image as a slide of one level; what is transparent is white.

    It has no mpp of its own: a dpi tag says how to print it, not its scale.
    """

    def __init__(self, path: SlideFile) -> None:
        fingerprint = sampled_fingerprint(path)  # before it is opened: see `check_unchanged`
        pixels, icc_profile = _decode(path)
        super().__init__([pixels], mpp_um=None, vendor="image")
        self._info: SlideInfo = dataclasses.replace(
            self._info, reader="image", fingerprint=fingerprint, icc_profile=icc_profile
        )


def _decode(path: SlideFile) -> tuple[npt.NDArray[np.uint8], bytes]:
    """Its pixels and its ICC profile."""
    pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is larger, and says what to do
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of EXIF and palettes; what keeps pixels from us raises
            with opened(path) as file, Image.open(file) as image:
                decoded = 3 * image.width * image.height
                if decoded > MAX_DECODED_BYTES:
                    raise UnreadableSlideError(
                        f"{path}: a flat image of {image.width} x {image.height} px would be held in memory whole "
                        f"({decoded / 1e9:.1f} GB; MAX_DECODED_BYTES allows {MAX_DECODED_BYTES / 1e9:.1f}); "
                        "convert it to a tiled pyramidal TIFF (for example `vips tiffsave --tile --pyramid`)"
                    )
                if image.mode in _DEEP_MODES:
                    raise UnreadableSlideError(f"{path}: more than 8 bits deep ({image.mode}); convert it to 8-bit RGB")
                in_rgb = image.mode in ("RGB", "RGBA")  # a profile of CMYK or grey says nothing of what we make of it
                profile = image.info.get("icc_profile") or b"" if in_rgb else b""
                mode = "RGBA" if image.has_transparency_data else "RGB"
                return as_rgb(np.asarray(image if image.mode == mode else image.convert(mode))), profile
    except SlideError:
        raise
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others on damaged files
        raise UnreadableSlideError(f"{path}: not a readable image: {error}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = pillow_limit
