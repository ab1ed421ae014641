"""Slides through OpenSlide: Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, DICOM, generic tiled TIFF and others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import openslide

from wsi_dbps.core.errors import UnreadableSlideError
from wsi_dbps.core.geometry import Size, pyramid_levels
from wsi_dbps.slides.base import SlideInfo, square_mpp
from wsi_dbps.slides.colour import as_rgb
from wsi_dbps.slides.readers.common import Reader
from wsi_dbps.slides.source import sampled_fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.core.geometry import Region


def recognises(path: Path) -> bool:
    """Whether OpenSlide knows the file's format; it may yet fail to open it.

    An OME-TIFF is any tiled TIFF to OpenSlide: it would show the finest level only, without its mpp.
    """
    found = openslide.OpenSlide.detect_format(path)
    return found is not None and not (found == "generic-tiff" and _is_ome(path))


def _is_ome(path: Path) -> bool:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.is_ome)
    except Exception:  # tifffile raises IndexError, struct.error and others on damaged files, which OpenSlide may open
        return False


class OpenSlideReader(Reader):
    """A slide opened by OpenSlide. What no scanner tile covers is the slide's background colour, white by default."""

    thread_safe = True

    def __init__(self, path: Path) -> None:
        self._path = path
        fingerprint = sampled_fingerprint(path)  # before it is opened: see `check_unchanged`
        try:
            self._slide = openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError) as error:
            raise UnreadableSlideError(f"{path}: OpenSlide cannot open it: {error}") from None
        self._downsamples, self._sizes = self._slide.level_downsamples, self._slide.level_dimensions
        properties = self._slide.properties
        background = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self._background = (int(background[:2], 16), int(background[2:4], 16), int(background[4:6], 16))
        self._info = SlideInfo(
            levels=pyramid_levels([Size(*size) for size in self._slide.level_dimensions]),
            mpp_um=square_mpp(
                path,
                _number(properties.get(openslide.PROPERTY_NAME_MPP_X)),
                _number(properties.get(openslide.PROPERTY_NAME_MPP_Y)),
            ),
            vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
            reader="openslide",
            fingerprint=fingerprint,
            icc_profile=self._icc_profile(),
        )

    def _icc_profile(self) -> bytes:
        try:
            profile = self._slide.color_profile
        except (openslide.OpenSlideError, OSError):  # damaged: the pixels are none the worse
            return b""
        return profile.tobytes() if profile is not None else b""

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself."""
        return self._info

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB pixels of a region.

        OpenSlide takes whole level-0 positions and divides by its own downsample, so we multiply by that one, not by
        ours. Where the product is not whole, what comes back is shifted by at most half a level-0 pixel (one at the
        right and bottom edges, where rounding up would mix in what lies beyond the slide).
        """
        scale, (width, height) = self._downsamples[region.level], self._sizes[region.level]
        place = (
            min(round(region.x * scale), math.floor((width - region.width) * scale)),
            min(round(region.y * scale), math.floor((height - region.height) * scale)),
        )
        slide = self._slide
        try:
            image = slide.read_region(place, region.level, (region.width, region.height))
        except openslide.OpenSlideError:
            # A handle that has failed once fails for ever, for other threads too: each tries again with a new one.
            slide = openslide.OpenSlide(self._path)
            try:
                image = slide.read_region(place, region.level, (region.width, region.height))
            except openslide.OpenSlideError as error:
                self._slide = openslide.OpenSlide(self._path)
                raise UnreadableSlideError(
                    f"{self._path}: cannot decode level {region.level} at ({region.x}, {region.y}): {error}"
                ) from None
            self._slide = slide
        return as_rgb(np.asarray(image), self._background)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
