"""What is measured on each patch if asked for, and which patches a run then leaves out, without tiling again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import simplejpeg
from PIL import Image

from wsi_dbps.config import settings, to_dict
from wsi_dbps.errors import CacheError
from wsi_dbps.tiling.tissue import pen_share

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.patches.cache import PatchCache

MEASURES: Final = ("sharpness", "white", "pen")
WHITE: Final = 220
"""Least value of every channel of a pixel that is near white."""
_PEN_REDUCE: Final = 4


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
    """A cache as if it held only the patches that pass.

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


def measure(jpeg: bytes) -> tuple[float, ...]:
    """`MEASURES` of a patch.

    Sharpness is the variance of the 4-neighbour Laplacian of the grey values (Pech-Pacheco et al., "Diatom
    autofocusing in brightfield microscopy", 2000); it grows with texture and with resolution, so a threshold holds for
    one stain and one mpp.
    """
    pixels = simplejpeg.decode_jpeg(jpeg)
    picture = Image.fromarray(pixels)
    grey = np.asarray(picture.convert("L"), np.int16)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = 4 * grey[1:-1, 1:-1] - around
    white = (
        np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]) >= WHITE
    )  # .min(2) takes 5 times that
    pen = pen_share(np.asarray(picture.reduce(min(_PEN_REDUCE, *picture.size))))
    return float(laplacian.var()) if laplacian.size else 0.0, float(white.mean()), pen


def as_arrays(measures: list[tuple[float, ...]]) -> dict[str, npt.NDArray[np.float32]]:
    """(N,) of each of `MEASURES`."""
    table = np.array(measures, np.float32).reshape(-1, len(MEASURES))
    return dict(zip(MEASURES, table.T, strict=True))
