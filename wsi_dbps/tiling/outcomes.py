"""What becomes of a slide that is to be tiled: `Tiled`, `Kept`, `Busy` or `Failed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Tiled:
    """The slide was tiled now."""

    slide_id: str
    path: Path
    """The cache."""
    num_patches: int
    num_bytes: int
    """Bytes of all patches together."""
    num_dropped: int
    """Tiles that could not be decoded and were left out."""
    reader: str
    """Which reader opened the slide."""
    pixel_path: str
    """`copy`, `tiles` or `reader`; see `PixelSource`."""
    level: int
    """Stored level that was read."""
    mpp_um: float
    """Resolution of the patches, µm per pixel."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What a user should know, for instance that there is no tissue, or that two mpp disagree."""


@dataclass(frozen=True)
class Kept:
    """The cache was there already, made from the same slide with the same settings, and was left as it is."""

    slide_id: str
    path: Path
    """The cache."""
    num_patches: int


@dataclass(frozen=True)
class Busy:
    """Another process is tiling the slide, so this one left it alone."""

    slide_id: str


@dataclass(frozen=True)
class Failed:
    """The slide could not be tiled; nothing was written for it."""

    slide_id: str
    error: str
    """Why, in one line, with the slide and its file."""
    traceback: str | None = None
    """Where it failed, if the failure was not foreseen: a bug, here or in a decoder."""


SlideOutcome = Tiled | Kept | Busy | Failed
