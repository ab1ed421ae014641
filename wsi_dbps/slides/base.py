"""What every slide reader offers."""

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
    icc_profile: bytes = b""
    """The profile of its colours; empty where the file has none that can be read."""

    @property
    def size_lv0(self) -> Size:
        """Size of level 0."""
        return self.levels[0].size


class SlideReader(Protocol):
    """Pixels of one open slide. Not safe to share between threads or processes."""

    @property
    def info(self) -> SlideInfo:
        """What the file says of itself."""

    def read(self, region: Region) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB pixels of a region, which lies inside its level.

        Raises:
            UnreadableSlideError: If the pixels cannot be decoded.
        """

    def close(self) -> None:
        """Let go of the file."""

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
