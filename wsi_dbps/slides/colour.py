"""What decoders hand out, as RGB: grey is repeated, and what is transparent shows the background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

WHITE: Final = (255, 255, 255)


def as_rgb(pixels: npt.NDArray[Any], background: tuple[int, int, int] = WHITE) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 from 8-bit grey (H, W) or (H, W, 1), RGB (H, W, 3), or RGBA (H, W, 4) with straight alpha.

    Raises:
        ValueError: If the pixels are of another shape or depth; nothing is scaled down in silence.

    Examples:
        >>> as_rgb(np.array([[[100, 0, 0, 255], [100, 0, 0, 0]]], np.uint8)).tolist()
        [[[100, 0, 0], [255, 255, 255]]]
    """
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}; convert it to 8-bit grey, RGB or RGBA")
    if pixels.shape[2] == 1:
        return pixels.repeat(3, axis=2)
    alpha = pixels[..., 3:]
    if alpha.size == 0 or alpha.min() == 255:
        return np.ascontiguousarray(pixels[..., :3])
    share = alpha.astype(np.float32) / 255
    return np.rint(pixels[..., :3] * share + np.array(background, np.float32) * (1 - share)).astype(np.uint8)
