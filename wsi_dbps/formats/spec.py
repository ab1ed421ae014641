"""What a patch cache is made with, and what its file is made of. Documented in docs/formats/patch-cache.md."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Final, Literal

from wsi_dbps.core.settings import settings

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


UPSAMPLING_TOLERANCE = 0.10
"""How much finer than level 0 a patch may be: 0.5 µm/px is given from a slide of 0.5034, but never from one of 1.0."""
MOST_MPP_UM = 1000.0
"""Coarsest resolution of patches: a whole slide then has 25 x 75 pixels."""

Tissue = Literal["stain", "otsu", "hsv", "entropy", "none"]
Codec = Literal["auto", "copy", "jpeg", "reader"]
Icc = Literal["keep", "srgb"]
ReaderName = Literal["auto", "openslide", "tiffslide", "image"]


@settings
class TilingSpec:
    """Which tiles to cut."""

    mpp_um: float = 0.5
    """Resolution of the patches, µm per pixel."""
    size_px: int = 256
    """Patch side."""
    overlap_px: int = 0
    """What neighbouring patches share along each side."""
    tissue: Tissue = "stain"
    """How tissue is found where the manifest gives no mask: `stain`, what is more coloured than the slide's glass;
    `otsu`, what is coloured by Otsu's threshold; `hsv`, the hues of stains at a fixed saturation; `entropy`, what is
    structured; `none`, everywhere. A column `tissue` of the manifest overrules it for a slide."""
    drop_pen: bool = True
    """Leave out strokes of green, blue and black pens."""
    min_tissue: float = 0.25
    """Least share of a tile that must be tissue."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mpp_um) and self.mpp_um > 0):
            raise ValueError(f"mpp_um must be above 0, found {self.mpp_um}")
        if self.mpp_um > MOST_MPP_UM:
            raise ValueError(f"mpp_um must be at most {MOST_MPP_UM:g}, found {self.mpp_um:g}")
        if self.size_px < 1:
            raise ValueError(f"size_px must be at least 1, found {self.size_px}")
        if not 0 <= self.overlap_px < self.size_px:
            raise ValueError(f"overlap_px must lie in 0 .. size_px - 1 = {self.size_px - 1}, found {self.overlap_px}")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue must lie in 0 .. 1, found {self.min_tissue}")


@settings
class CacheSpec:
    """Everything that decides what is in a slide's cache, besides the slide."""

    tiling: TilingSpec = field(default_factory=TilingSpec)
    quality: int = 90
    """JPEG quality of encoded patches, 1 to 100; colour at half resolution (4:2:0), as scanners store it."""
    codec: Codec = "auto"
    """`copy` takes the scanner's JPEG tiles unchanged, or fails; `jpeg` decodes and encodes; `auto` copies where
    patches are the scanner's tiles, and else decodes; `reader` decodes through the reader alone."""
    native_tolerance: float = 0.02
    """How far a level's mpp may be from the one asked for, as a share, for its tiles to be copied."""
    max_damaged: float = 0.01
    """Largest share of a slide's tiles that may be left out because they cannot be decoded."""
    icc: Icc = "keep"
    """Colours as they are stored, or turned into sRGB by the slide's ICC profile, where it has one."""
    qc: bool = False
    """Measure each patch: sharpness, share of near-white pixels, share of pixels of a pen's colour."""
    reader: ReaderName = "auto"
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
