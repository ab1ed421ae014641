"""What a patch cache is made with, and what its file is made of. Documented in docs/formats/patch-cache.md."""

from __future__ import annotations

from dataclasses import field
from typing import Final, Literal

from wsi_dbps.config import settings
from wsi_dbps.tiling.plan import TilingSpec

FORMAT: Final = "wsi-dbps patch cache"
FORMAT_VERSION: Final = 1


@settings
class CacheSpec:
    """Everything that decides what is in a slide's cache, besides the slide."""

    tiling: TilingSpec = field(default_factory=TilingSpec)
    quality: int = 90
    """JPEG quality of encoded patches, 1 to 100; colour at half resolution (4:2:0), as scanners store it."""
    reader: Literal["auto", "openslide", "tiffslide", "image"] = "auto"
    """Which reader opens the slides."""
    thumbnail_px: int = 1600
    """Longest side of the stored thumbnail, on which tissue is found."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must lie in 1 .. 100, found {self.quality}")
        if self.thumbnail_px < 16:
            raise ValueError(f"thumbnail_px must be at least 16, found {self.thumbnail_px}")
