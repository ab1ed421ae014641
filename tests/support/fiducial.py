"""Pictures whose pixels say where they are, so that a wrong level, axis or half pixel changes a value.

The code, for a pixel (x, y) with 0 <= x, y < 4096:

    R = x // 16          the coarse column
    G = y // 16          the coarse row
    B = 16 (x % 16) + y % 16     the fine part of both

An untouched pixel decodes exactly (`decode_pixels`). Averaging scrambles B but not R and G, which are ramps: their mean
over a patch is the patch's centre to within 32 / side px (`decode_centre`), whatever the downsample in between.
Use it with lossless files only; JPEG mixes the channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.core.geometry import Size

MAX_SIDE_PX = 4096
STEP_PX = 16


def fiducial_image(size: Size) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 in which each pixel encodes its own (x, y).

    Raises:
        ValueError: If a side is above 4096 px: the code has 12 bits per axis.
    """
    if max(size.width, size.height) > MAX_SIDE_PX:
        raise ValueError(f"a fiducial image is at most {MAX_SIDE_PX} px a side, asked for {size}")
    image_HWC = np.empty((size.height, size.width, 3), np.uint8)
    x, y = np.arange(size.width), np.arange(size.height)[:, None]
    image_HWC[..., 0] = x // STEP_PX
    image_HWC[..., 1] = y // STEP_PX
    image_HWC[..., 2] = x % STEP_PX * STEP_PX + y % STEP_PX
    return image_HWC


def decode_pixels(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """(..., 2) int64: the exact (x, y) of untouched level-0 pixels (..., 3)."""
    values = pixels.astype(np.int64)
    x = values[..., 0] * STEP_PX + values[..., 2] // STEP_PX
    y = values[..., 1] * STEP_PX + values[..., 2] % STEP_PX
    return np.stack([x, y], axis=-1)


def decode_centre(patch_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(2,) float64: the centre (x, y), in level-0 px, of the region a patch shows, at whatever downsample.

    Pixel i covers [i, i + 1), so the whole image's centre is (width / 2, height / 2). Off by at most 32 / side level-0
    px for a patch `side` level-0 px wide. Rounding after averaging f x f boxes adds nothing where f divides 16 and the
    boxes lie on the grid, as in a pyramid with downsamples up to 16, and else at most f / 2: half a pixel of the patch.
    """
    coarse = patch_HWC[..., :2].reshape(-1, 2).mean(axis=0, dtype=np.float64)
    centre: npt.NDArray[np.float64] = coarse * STEP_PX + STEP_PX / 2
    return centre


def decode_size(patch_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """(2,) float64: the (width, height), in level-0 px, of the region a patch shows, from its halves' centres.

    Off by at most 256 / side level-0 px, under the same rounding as `decode_centre`. The patch needs even sides.

    Raises:
        ValueError: If a side is odd.
    """
    height, width = patch_HWC.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"the patch must have even sides, found {width} x {height}")
    left, right = decode_centre(patch_HWC[:, : width // 2]), decode_centre(patch_HWC[:, width // 2 :])
    top, bottom = decode_centre(patch_HWC[: height // 2]), decode_centre(patch_HWC[height // 2 :])
    return np.array([2 * (right[0] - left[0]), 2 * (bottom[1] - top[1])])
