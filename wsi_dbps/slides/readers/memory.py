"""A slide that is an array: for flat images, for tests and for use from a notebook."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from wsi_dbps.core.geometry import Size, pyramid_levels
from wsi_dbps.slides.base import SlideInfo
from wsi_dbps.slides.readers.common import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from wsi_dbps.core.geometry import Region


class MemoryReader(Reader):
    """A slide held in memory as one (H, W, 3) uint8 array per level, finest first."""

    thread_safe = True

    def __init__(
        self, levels: Sequence[npt.NDArray[np.uint8]], *, mpp_um: float | None, vendor: str = "memory"
    ) -> None:
        for array in levels:
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
                raise ValueError(f"a level is (H, W, 3) uint8 and not empty; found {array.dtype} {array.shape}")
        self._levels = levels
        self._info = SlideInfo(
            levels=pyramid_levels([Size(array.shape[1], array.shape[0]) for array in levels]),
            mpp_um=mpp_um,
            vendor=vendor,
            reader="memory",
            fingerprint=hashlib.blake2b(levels[0].tobytes(), digest_size=8).hexdigest(),
        )

    @property
    def info(self) -> SlideInfo:
        """What the slide says of itself."""
        return self._info

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB pixels of a region."""
        array = self._levels[region.level]
        return array[region.y : region.y + region.height, region.x : region.x + region.width].copy()
