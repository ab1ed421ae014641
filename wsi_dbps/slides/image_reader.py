"""Flat images (PNG, JPEG, plain TIFF ...): one level, decoded whole."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsi_dbps.errors import UnreadableSlideError
from wsi_dbps.slides.memory_reader import MemoryReader
from wsi_dbps.slides.reader import SlideInfo, sampled_fingerprint

if TYPE_CHECKING:
    from pathlib import Path

MAX_GIGAPIXELS = 1.0


class ImageReader(MemoryReader):
    """A flat image as a slide of one level. It has no mpp of its own: a dpi tag says how to print it, not its scale."""

    def __init__(self, path: Path) -> None:
        pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is larger, and says what to do
        try:
            with Image.open(path) as image:
                if image.width * image.height > MAX_GIGAPIXELS * 1e9:
                    raise UnreadableSlideError(
                        f"{path}: a flat image of {image.width} x {image.height} px would be held in memory whole; "
                        "convert it to a tiled pyramidal TIFF (for example `vips tiffsave --tile --pyramid`)"
                    )
                pixels = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise UnreadableSlideError(f"{path}: not a readable image: {error}") from None
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit
        super().__init__([pixels], mpp_um=None, vendor="image")
        self._info: SlideInfo = dataclasses.replace(
            self._info, reader="image", fingerprint=sampled_fingerprint(path)
        )
