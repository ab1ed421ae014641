"""What a patch cache is made with, and what its file is made of. Documented in docs/formats/patch-cache.md."""

from __future__ import annotations

from dataclasses import field
from typing import Final, Literal

from wsi_dbps.config import settings
from wsi_dbps.tiling.plan import TilingSpec

FORMAT: Final = "wsi-dbps patch cache"
FORMAT_VERSION: Final = 1
REQUIRED_ATTRIBUTES: Final = (
    "slide_id",
    "slide_fingerprint",
    "vendor",
    "reader",
    "slide_size",
    "mpp_level0",
    "mpp_patch",
    "mpp_source",
    "mask_fingerprint",
    "patch_size_px",
    "patch_size_level0",
    "jpeg_origin",
    "jpeg_quality",
    "spec",
    "spec_fingerprint",
    "fingerprint",
    "wsi_dbps_version",
)
"""On the root of every cache, besides `format` and `format_version`."""
MAX_JPEG_SIDE: Final = 65_500
"""Longest side of a picture that libjpeg writes."""


@settings
class CacheSpec:
    """Everything that decides what is in a slide's cache, besides the slide."""

    tiling: TilingSpec = field(default_factory=TilingSpec)
    quality: int = 90
    """JPEG quality of encoded patches, 1 to 100; colour at half resolution (4:2:0), as scanners store it."""
    codec: Literal["auto", "copy", "jpeg", "reader"] = "auto"
    """`copy` takes the scanner's JPEG tiles unchanged, or fails; `jpeg` decodes and encodes; `auto` copies where
    patches are the scanner's tiles, and else decodes; `reader` decodes through the reader alone."""
    native_tolerance: float = 0.02
    """How far a level's mpp may be from the one asked for, as a share, for its tiles to be copied."""
    max_damaged: float = 0.01
    """Largest share of a slide's tiles that may be left out because they cannot be decoded."""
    icc: Literal["keep", "srgb"] = "keep"
    """Colours as they are stored, or turned into sRGB by the slide's ICC profile, where it has one."""
    qc: bool = False
    """Measure each patch: sharpness, share of near-white pixels, share of pixels of a pen's colour."""
    reader: Literal["auto", "openslide", "tiffslide", "image"] = "auto"
    """Which reader opens the slides."""
    thumbnail_px: int = 1600
    """Longest side of the stored thumbnail, on which tissue is found."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must lie in 1 .. 100, found {self.quality}")
        for name, most in (("native_tolerance", 0.1), ("max_damaged", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in 0 .. {most:g}, found {getattr(self, name)}")
        if not 16 <= self.thumbnail_px <= MAX_JPEG_SIDE:
            raise ValueError(f"thumbnail_px must lie in 16 .. {MAX_JPEG_SIDE}, found {self.thumbnail_px}")
        if self.tiling.size_px > MAX_JPEG_SIDE:
            raise ValueError(f"a patch is a JPEG of at most {MAX_JPEG_SIDE} px, found size_px {self.tiling.size_px}")
