"""What all readers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from wsi_dbps.slides.sampling import thumbnail

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from wsi_dbps.core.geometry import Region
    from wsi_dbps.slides.base import SlideInfo


class Reader:
    """The parts of a `SlideReader` that follow from its `info` and `read`."""

    thread_safe = False

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself."""
        raise NotImplementedError

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB pixels of a region, which lies inside its level."""
        raise NotImplementedError

    def thumbnail(self, max_px: int) -> npt.NDArray[np.uint8]:
        """(H, W, 3) picture of the whole slide, its longer side at most `max_px`, never enlarged."""
        return thumbnail(self, max_px)

    def close(self) -> None:
        """Close the file, if there is one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
