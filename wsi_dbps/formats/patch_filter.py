"""Which patches a run leaves out by the measures of `wsi-dbps tile --qc`, without tiling again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dbps.core.errors import CacheError
from wsi_dbps.core.settings import settings, to_dict

if TYPE_CHECKING:
    from wsi_dbps.formats.patch_cache import PatchCache


@settings
class PatchFilter:
    """Which patches a run sees, by what `wsi-dbps tile --qc` measured. The defaults leave out none."""

    min_sharpness: float = 0.0
    """Least variance of the Laplacian, in squared grey levels of 255: at 0.5 µm/px real H&E in focus has 500
    and more, blurred by 2 px (sigma) less than 50, and bare glass less than 2."""
    max_white: float = 1.0
    """Largest share of near-white pixels."""
    max_pen: float = 1.0
    """Largest share of pixels of a pen's colour."""

    def __post_init__(self) -> None:
        if not self.min_sharpness >= 0:
            raise ValueError(f"min_sharpness must be at least 0, found {self.min_sharpness}")
        for name in ("max_white", "max_pen"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0 .. 1, found {getattr(self, name)}")


def filtered(cache: PatchCache, patch_filter: PatchFilter) -> PatchCache:
    """The cache with only those patches that pass the filter.

    Raises:
        CacheError: If something is asked for that was not measured.
    """
    if patch_filter == PatchFilter():
        return cache
    measured = cache.quality()
    if not measured:
        raise CacheError(f"{cache.path}: made without --qc, so [patches] cannot filter it; tile with --qc")
    keep_N = (
        (measured["sharpness"] >= patch_filter.min_sharpness)
        & (measured["white"] <= patch_filter.max_white)
        & (measured["pen"] <= patch_filter.max_pen)
    )
    return cache.only(keep_N, why=to_dict(patch_filter))
