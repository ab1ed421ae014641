"""What a slide file says of itself, and what every slide reader offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from wsi_dbps.core.errors import UnreadableSlideError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from wsi_dbps.core.geometry import Level, Region, Size
    from wsi_dbps.slides.source import SlideFile


READERS: Final = ("openslide", "tiffslide", "image")


@dataclass(frozen=True)
class SlideInfo:
    """What a slide file says of itself."""

    levels: tuple[Level, ...]
    """Finest first; never empty."""
    mpp_um: float | None
    """µm per level-0 pixel as the file has it, whether or not it is plausible."""
    vendor: str
    reader: str
    """One of `READERS`, or `memory`."""
    fingerprint: str
    """Tells this file's content from another's; see `source.sampled_fingerprint`."""
    jfif_is_ycbcr: bool = False
    """Whether this reader takes JPEG tiles with a JFIF segment for YCbCr even where the file says RGB."""
    icc_profile: bytes = b""
    """The profile of its colours; empty where the file has none that can be read."""

    @property
    def size_lv0(self) -> Size:
        """Size of level 0."""
        return self.levels[0].size


class SlideReader(Protocol):
    """Pixels of one open slide. Not safe to share between processes, nor between threads unless it is `thread_safe`."""

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself."""

    @property
    def thread_safe(self) -> bool:
        """Whether several threads may call `read` at once."""

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB pixels of a region, which lies inside its level.

        Raises:
            UnreadableSlideError: If the pixels cannot be decoded.
        """

    def thumbnail(self, max_px: int) -> npt.NDArray[np.uint8]:
        """(H, W, 3) picture of the whole slide, its longer side at most `max_px`, never enlarged."""

    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def square_mpp(path: SlideFile, mpp_x: float | None, mpp_y: float | None) -> float | None:
    """The one mpp of a slide from its two, or None where the file has none.

    Raises:
        UnreadableSlideError: If the two differ by more than 2 %: every later length would be wrong along one axis.
    """
    if mpp_x is None or mpp_y is None or not (mpp_x > 0 and mpp_y > 0):
        return None
    if abs(mpp_x - mpp_y) > 0.02 * max(mpp_x, mpp_y):
        raise UnreadableSlideError(f"{path}: pixels are not square ({mpp_x:g} x {mpp_y:g} µm); not supported")
    return (mpp_x + mpp_y) / 2
