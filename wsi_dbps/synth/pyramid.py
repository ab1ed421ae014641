"""Pyramidal TIFF files in the Aperio layout, as scanners write them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from PIL import Image

from wsi_dbps.core.files import written_whole
from wsi_dbps.core.geometry import Size, fit_within

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

THUMBNAIL_PX = 512


def write_aperio(
    path: Path,
    image_HWC: Pixels,
    *,
    mpp_um: float,
    quality: int = 85,
    tile_px: int = 256,
    downsamples: Sequence[int] | None = None,
    jpeg_rgb: bool = False,
    icc_profile: bytes | None = None,
) -> None:
    """Write a JPEG-tiled pyramid in the Aperio layout: level 0, thumbnail, lower levels.

    The same image and settings give the same bytes.

    Args:
        path: File to write atomically; end it in .svs.
        image_HWC: (H, W, 3) uint8, RGB.
        mpp_um: µm per pixel of `image_HWC`.
        quality: JPEG quality, 1 to 100.
        tile_px: Side of the encoded tiles in pixels, a multiple of 16.
        downsamples: Level-0 pixels per level pixel, 1 first; `default_downsamples` where None.
        jpeg_rgb: Store RGB in the JPEG streams, without chroma subsampling, instead of YCbCr 4:2:0. Scanners do both.
        icc_profile: Of the image's colours, to store with it.

    Raises:
        ValueError: If the image or a setting is out of range.
        OutputError: If the file cannot be written.
    """
    size = checked_size(image_HWC, mpp_um, tile_px)
    factors = checked_downsamples(size, tile_px, downsamples)
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be 1 to 100, found {quality}")
    with written_whole(path) as partial, tifffile.TiffWriter(partial) as out:
        _write_levels(out, image_HWC, size, factors, mpp_um, quality, tile_px, jpeg_rgb=jpeg_rgb, icc=icc_profile)


def _write_levels(
    out: tifffile.TiffWriter,
    image_HWC: Pixels,
    size: Size,
    factors: Sequence[int],
    mpp_um: float,
    quality: int,
    tile_px: int,
    *,
    jpeg_rgb: bool,
    icc: bytes | None,
) -> None:
    tail = f"|AppMag = {10 / mpp_um:.3g}|MPP = {mpp_um:.6g}"
    origin = f"{size.width}x{size.height} [0,0 {size.width}x{size.height}] ({tile_px}x{tile_px})"
    codec = f"JPEG/{'RGB' if jpeg_rgb else 'YCC'} Q={quality}"
    tiled: dict[str, Any] = {
        "photometric": "rgb",  # of what goes in; tifffile tags what comes out
        "subsampling": (1, 1) if jpeg_rgb else (2, 2),
        "compression": "jpeg",
        "compressionargs": {"level": quality, "outcolorspace": "rgb" if jpeg_rgb else "ycbcr"},
        "tile": (tile_px, tile_px),
        "metadata": None,
        "software": False,
    }
    out.write(image_HWC, description=_aperio_text(f"{origin} {codec}{tail}"), iccprofile=icc, **tiled)
    thumb = np.asarray(Image.fromarray(image_HWC).resize(_wh(fit_within(size, THUMBNAIL_PX)), reducing_gap=2.0))
    out.write(
        thumb,
        description=_aperio_text(f"{origin} -> {thumb.shape[1]}x{thumb.shape[0]} - {tail}"),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": quality},
        rowsperstrip=16,
        metadata=None,
        software=False,
    )
    for factor in factors[1:]:
        level = box_reduced(image_HWC, factor)
        out.write(level, description=_aperio_text(f"{origin} -> {level.shape[1]}x{level.shape[0]} {codec}"), **tiled)


def default_downsamples(size: Size, tile_px: int) -> tuple[int, ...]:
    """1, 4, 16, ... down to the last level whose shorter side still holds a tile; always at least 1.

    Examples:
        >>> default_downsamples(Size(4096, 2048), 256)
        (1, 4)
    """
    factors = [1]
    while min(size.width, size.height) // (factors[-1] * 4) >= tile_px:
        factors.append(factors[-1] * 4)
    return tuple(factors)


def box_reduced(image_HWC: Pixels, factor: int) -> Pixels:
    """The image with each `factor` x `factor` box averaged; rows and columns left over are dropped, as scanners do."""
    if factor == 1:
        return image_HWC
    height, width = image_HWC.shape[0] // factor * factor, image_HWC.shape[1] // factor * factor
    return np.asarray(Image.fromarray(image_HWC[:height, :width]).reduce(factor))


def _aperio_text(body: str) -> str:
    return f"Aperio Image Library v12.0.15 \r\n{body}"


def _wh(size: Size) -> tuple[int, int]:
    return size.width, size.height


def checked_size(image_HWC: Pixels, mpp_um: float, tile_px: int) -> Size:
    """The size of an image that can be written with these settings.

    Raises:
        ValueError: If the image is not (H, W, 3) uint8, or a setting is out of range.
    """
    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8:
        raise ValueError(f"the image must be (H, W, 3) uint8, found {image_HWC.shape} {image_HWC.dtype}")
    if not mpp_um > 0:
        raise ValueError(f"mpp_um must be above 0, found {mpp_um}")
    if tile_px < 16 or tile_px % 16:
        raise ValueError(f"tile_px must be a multiple of 16, found {tile_px}")
    return Size(image_HWC.shape[1], image_HWC.shape[0])


def checked_downsamples(size: Size, tile_px: int, downsamples: Sequence[int] | None) -> tuple[int, ...]:
    """The downsamples that were asked for, or the default ones.

    Raises:
        ValueError: If they do not begin with 1, do not rise, or exceed the image.
    """
    factors = default_downsamples(size, tile_px) if downsamples is None else tuple(downsamples)
    rising = all(a < b for a, b in itertools.pairwise(factors))
    if not factors or factors[0] != 1 or not rising:
        raise ValueError(f"downsamples must begin with 1 and rise, found {factors}")
    if factors[-1] > min(size.width, size.height):
        raise ValueError(f"downsample {factors[-1]} leaves nothing of a {size} image")
    return factors
