"""Numbers become colours over a picture of the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

INK: Final = "#1a1a1a"
GREY: Final = "#666666"
_COLOURS: Final = {False: "YlOrRd", True: "RdBu_r"}
"""By whether values are signed. The lightness of the first falls all the way, of the second to both sides, so that they
read under every colour blindness, and the first in grey."""
_FIRST_ALPHA, _LAST_ALPHA = 0.2, 0.95
"""How much of the tissue the lowest (of signed values, 0) and the highest value hide."""
_GREY_STRENGTH: Final = 0.6
"""Contrast left to the grey tissue, so that dark tissue is not taken for attention."""
_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)


def blend(
    picture_HWC: npt.NDArray[np.uint8],
    values_HW: npt.NDArray[np.float32],
    highest: float,
    *,
    signed: bool = False,
    strength: float = 1.0,
) -> npt.NDArray[np.uint8]:
    """The picture in grey with values over it, the more opaque the higher; untouched pixels stay grey.

    Args:
        picture_HWC: (H, W, 3) RGB.
        values_HW: (H, W) values of the same pixels; NaN where there is none.
        highest: The value of full colour.
        signed: The lowest is -`highest`, and colours follow `signed_share`; else the lowest is 0.
        strength: Opacity against the usual; below 1, the picture keeps its own colours in that measure.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    steps = colours_with_alpha(signed=signed).astype(np.float32)
    share_HW = signed_share(values_HW, highest) if signed else values_HW / np.float32(highest)
    step_HW = np.rint(np.nan_to_num(share_HW).clip(0, 1) * (len(steps) - 1)).astype(np.uint8)
    alpha_HW = np.where(np.isnan(values_HW), np.float32(0), steps[:, 3][step_HW]) * np.float32(strength)
    grey_HW = (1 - (1 - picture_HWC @ (_LUMA / 255)) * _GREY_STRENGTH) * np.float32(strength)
    mixed_HWC = np.empty(picture_HWC.shape, np.uint8)
    for channel in range(3):
        behind_HW = grey_HW if strength == 1 else grey_HW + picture_HWC[..., channel] * np.float32((1 - strength) / 255)
        mixed = behind_HW + alpha_HW * (steps[:, channel][step_HW] - behind_HW)
        mixed_HWC[..., channel] = np.rint(mixed * 255)
    return mixed_HWC


def signed_share(values: npt.NDArray[np.floating], highest: float) -> npt.NDArray[np.floating]:
    """Where a signed value lies among the colours: 0 at -`highest`, 1/2 at 0, 1 at `highest`, by the square root.

    In proportion, evidence that many tiles share, a tenth of a log-odds each, could not be told from none on a scale
    that also holds a tile which decides alone.

    Examples:
        >>> signed_share(np.array([-4.0, -1.0, 0.0, 1.0, 4.0]), 4.0).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    far = np.sqrt(np.abs(values) / highest)
    return (np.copysign(far, values) + 1) / 2


def signed_value(share: npt.NDArray[np.floating], highest: float) -> npt.NDArray[np.floating]:
    """The value that lies there among the colours: the inverse of `signed_share`.

    Examples:
        >>> signed_value(np.array([0.0, 0.25, 1.0]), 4.0).tolist()
        [-4.0, -1.0, 4.0]
    """
    far = 2 * share - 1
    return far * np.abs(far) * highest


def colours_with_alpha(*, signed: bool) -> npt.NDArray[np.float64]:
    """(256, 4) RGBA from the lowest value to the highest, in [0, 1]."""
    import matplotlib

    share = np.linspace(0, 1, 256)
    colours: npt.NDArray[np.float64] = matplotlib.colormaps[_COLOURS[signed]](share)
    far = np.abs(2 * share - 1) if signed else share
    colours[:, 3] = _FIRST_ALPHA + (_LAST_ALPHA - _FIRST_ALPHA) * far
    return colours
