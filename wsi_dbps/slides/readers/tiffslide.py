"""Slides through tiffslide (tifffile): OME-TIFF and other TIFF files that OpenSlide does not know."""

from __future__ import annotations

import logging
import math
import warnings
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

import tiffslide

from wsi_dbps.core.errors import SlideError, UnreadableSlideError, one_line
from wsi_dbps.core.geometry import Size, pyramid_levels
from wsi_dbps.slides.base import SlideInfo, square_mpp
from wsi_dbps.slides.colour import as_rgb
from wsi_dbps.slides.readers.common import Reader
from wsi_dbps.slides.source import opened, sampled_fingerprint

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from wsi_dbps.core.geometry import Region
    from wsi_dbps.slides.source import SlideFile

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it logs, it raises too; a run prints one line a slide


_UNITS_UM: Final = {
    **dict.fromkeys(("µm", "μm", "um"), 1.0),  # the micro sign, the Greek letter, and neither
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "nm": 1e-3,
    "pm": 1e-6,
    "Å": 1e-4,
    "in": 25_400.0,
}
"""Units of length in OME-XML, in µm; not `pixel` and `reference frame`, which are none."""


class TiffSlideReader(Reader):
    """A slide opened by tiffslide."""

    def __init__(self, path: SlideFile) -> None:
        self._path = path
        fingerprint = sampled_fingerprint(path)  # before it is opened: see `check_unchanged`
        slide = None
        self._file = opened(path)  # not by its name, which fsspec would read as a chain of protocols if it has `::`
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "metadata parsing only partially implemented"
                slide = tiffslide.TiffSlide(self._file)  # type: ignore[arg-type]
                levels = pyramid_levels([Size(*size) for size in slide.level_dimensions])
                properties = slide.properties
                ome = slide.ts_tifffile.ome_metadata
                tags = (properties.get("tiffslide.mpp-x"), properties.get("tiffslide.mpp-y"))
                mpp_um = square_mpp(path, *(_ome_mpp(ome) or tags))
        except Exception as error:  # tifffile raises IndexError, struct.error and others on damaged files
            if slide is not None:
                slide.close()
            self._file.close()
            if isinstance(error, SlideError):  # the network failed, or pixels are not square
                raise
            raise UnreadableSlideError(f"{path}: tiffslide cannot open it: {_line(error)}") from None
        self._slide = slide
        self._info = SlideInfo(
            levels=levels,
            mpp_um=mpp_um,
            vendor=properties.get("tiffslide.vendor") or ("ome" if ome else "tiff"),
            reader="tiffslide",
            fingerprint=fingerprint,
            jfif_is_ycbcr=True,
            icc_profile=_icc_profile(slide),
        )

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself."""
        return self._info

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB pixels of a region, the level's own."""
        scale = self._slide.level_downsamples[region.level]
        place = (_place(region.x, scale), _place(region.y, scale))
        try:
            pixels = self._slide.read_region(place, region.level, (region.width, region.height), as_array=True)
            return as_rgb(pixels)
        except SlideError:  # the network failed: no damaged tile
            raise
        except Exception as error:
            raise UnreadableSlideError(
                f"{self._path}: cannot decode level {region.level} at ({region.x}, {region.y}): {_line(error)}"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._slide.close()
        self._file.close()


def _place(start: int, scale: float) -> int:
    """The level-0 position that tiffslide, which divides by its own downsample and drops the rest, takes to `start`."""
    place = math.ceil(start * scale)
    return place if int(place / scale) >= start else place + 1


def _ome_mpp(xml: str | None) -> tuple[float, float] | None:
    """µm per pixel along x and y of the first image of an OME-TIFF, which tiffslide leaves unread; None without both.

    Source: the OME data model, 2016-06: `Pixels` with `PhysicalSizeX`, `PhysicalSizeXUnit` (µm if absent).
    """
    pixels = ElementTree.fromstring(xml).find("{*}Image/{*}Pixels") if xml else None
    if pixels is None:
        return None
    sizes = [
        float(pixels.get(f"PhysicalSize{axis}", "nan")) * _UNITS_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), 0)
        for axis in "XY"
    ]
    return (sizes[0], sizes[1]) if all(math.isfinite(size) and size > 0 for size in sizes) else None


def _icc_profile(slide: tiffslide.TiffSlide) -> bytes:
    tag = slide.ts_tifffile.pages.first.tags.get("InterColorProfile")
    return tag.value if tag is not None and isinstance(tag.value, bytes) else b""


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
