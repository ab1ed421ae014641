"""Where the tissue is: a mask from the thumbnail, and the share of tissue under any rectangle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.core.geometry import Size

Method = Literal["stain", "otsu", "hsv", "entropy"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
DARK: Final = 50
"""Brightest channel (0 to 255) below which a pixel is scanner border or unlit ground, whatever its saturation."""
SATURATION_BOUNDS: Final = (0.05, 0.15)
"""Otsu's threshold is held between these. Without tissue it would cut glass noise (0.01 to 0.03) in two; without glass,
the tissue itself (pale stroma is about 0.15)."""
HE_HUES: Final = (200.0, 50.0)
"""Hues of bright-field stains, in degrees, from haematoxylin's blue over pink and red to brown."""
GLASS_BOUNDS: Final = (0.03, 0.05)
"""The least saturation of tissue by `stain` is that of the slide's own glass and `ABOVE_GLASS`, held between these:
noise alone has up to 0.03, and 0.05 is what `hsv` asks of every slide."""
ABOVE_GLASS: Final = 0.02
PEN_GREENS: Final = (70.0, 195.0)
PEN_BLUES: Final = (195.0, 250.0)
"""Hues of pens; blue ones only where far more saturated than haematoxylin."""
ENTROPY_BOUNDS: Final = (3.5, 5.0)
"""Otsu's threshold on entropy is held between these: noise on glass has about 3 bits, tissue 5 and more."""
SMALLEST_TISSUE_UM2: Final = 100.0**2
LARGEST_HOLE_UM2: Final = 300.0**2
_AT_ONCE: Final = 1 << 14
"""Tiles whose shares are computed together: few enough for their numbers to take no memory to speak of."""


@dataclass(frozen=True)
class TissueMask:
    """Tissue on a grid laid over the whole slide."""

    mask_HW: npt.NDArray[np.bool_]
    slide_lv0: Size

    def share(self, origins_lv0: npt.NDArray[np.int64], tile_lv0: float) -> npt.NDArray[np.float32]:
        """(N,) share of each tile that is tissue, 0 to 1: exact area, edges that cut mask pixels included, to 1e-6.

        Args:
            origins_lv0: (N, 2) top-left corners (x, y).
            tile_lv0: Tile side; tiles lie on the slide.
        """
        height, width = self.mask_HW.shape
        scale = np.array([width / self.slide_lv0.width, height / self.slide_lv0.height])
        area = np.zeros((height + 1, width + 1), np.int32)  # area[y, x] = tissue in the rectangle from (0, 0) to (x, y)
        area[1:, 1:] = self.mask_HW.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
        share_N = np.empty(len(origins_lv0), np.float32)
        for first in range(0, len(origins_lv0), _AT_ONCE):
            corners = origins_lv0[first : first + _AT_ONCE]
            low = np.minimum(corners * scale, [width, height])
            high = np.minimum((corners + tile_lv0) * scale, [width, height])
            (x0, y0), (x1, y1) = low.T, high.T
            tissue = _at(area, x1, y1) - _at(area, x0, y1) - _at(area, x1, y0) + _at(area, x0, y0)
            share = tissue / ((x1 - x0) * (y1 - y0))
            share_N[first : first + _AT_ONCE] = share.round(6)  # 1 must be 1 for `min_tissue=1`, whatever the rounding
        return share_N.clip(0, 1)


def _at(area: npt.NDArray[np.int32], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Bilinear look-up, which is exact for an area that grows evenly within each mask pixel."""
    left = np.minimum(x.astype(np.int64), area.shape[1] - 2)
    top = np.minimum(y.astype(np.int64), area.shape[0] - 2)
    fx, fy = x - left, y - top
    upper = area[top, left] * (1 - fx) + area[top, left + 1] * fx
    lower = area[top + 1, left] * (1 - fx) + area[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def everywhere(slide_lv0: Size) -> TissueMask:
    """A mask that takes the whole slide for tissue."""
    return TissueMask(np.ones((1, 1), np.bool_), slide_lv0)


def segment(
    thumbnail_HWC: npt.NDArray[np.uint8],
    slide_lv0: Size,
    mpp_lv0_um: float,
    method: Method = "stain",
    *,
    drop_pen: bool = True,
) -> TissueMask:
    """Tissue in a bright-field picture, specks removed and small holes filled.

    `stain` takes what is more coloured than the slide's own glass, in any hue: pale tissue and special stains too.
    `otsu` takes what is coloured by Otsu's threshold on saturation, and so loses pale tissue, the more beside strongly
    stained tissue. `hsv` takes the hues of H&E and of brown and blue immunostains at a fixed saturation. `entropy`
    takes what is structured, by Otsu's threshold on local entropy: for pale tissue, but slow, and dust is structured
    too.

    On fluorescence the unlit ground is dark and so left out, but what remains has not been validated: give a mask, or
    tile with `none`.

    Args:
        thumbnail_HWC: (H, W, 3) RGB picture of the whole slide.
        slide_lv0: The slide's size.
        mpp_lv0_um: µm per level-0 pixel, for the sizes of specks and holes.
        method: How.
        drop_pen: Leave out strokes of green, blue and black pens.

    Source: N. Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    mask_HW = _stained(thumbnail_HWC, method, drop_pen=drop_pen)
    pixel_um2 = (slide_lv0.width / thumbnail_HWC.shape[1] * mpp_lv0_um) ** 2
    mask_HW &= ~_parts_up_to(SMALLEST_TISSUE_UM2 / pixel_um2, mask_HW)
    return TissueMask(mask_HW | _parts_up_to(LARGEST_HOLE_UM2 / pixel_um2, ~mask_HW, inside=True), slide_lv0)


def _stained(thumbnail_HWC: npt.NDArray[np.uint8], method: Method, *, drop_pen: bool) -> npt.NDArray[np.bool_]:
    """(H, W) which pixels look like tissue, each by itself."""
    hue_HW, saturation_HW, bright_HW = _smooth_hsv(thumbnail_HWC)
    lit_HW = bright_HW >= DARK
    if not lit_HW.any():
        return lit_HW
    if method == "otsu":
        mask_HW = lit_HW & (saturation_HW > 255 * np.clip(_otsu(saturation_HW[lit_HW]) / 255, *SATURATION_BOUNDS))
    elif method == "stain":
        mask_HW = lit_HW & (saturation_HW > 255 * _above_glass(saturation_HW, bright_HW))
    elif method == "hsv":
        stained_HW = (hue_HW >= _as_byte(HE_HUES[0])) | (hue_HW <= _as_byte(HE_HUES[1]))
        mask_HW = lit_HW & stained_HW & (saturation_HW > 255 * SATURATION_BOUNDS[0])
    else:
        entropy_HW = _entropy(thumbnail_HWC)
        mask_HW = lit_HW & (entropy_HW > np.clip(_otsu(entropy_HW[lit_HW]), *ENTROPY_BOUNDS))
    if drop_pen and lit_HW.mean() > 0.5:  # on fluorescence blue is a stain
        pen_HW = _is_pen(hue_HW, saturation_HW, bright_HW)
        if pen_HW.any():  # and its rim, which is mixed with what is around
            pen_HW = np.asarray(Image.fromarray(pen_HW).convert("L").filter(ImageFilter.MaxFilter(5)), np.bool_)
            mask_HW &= ~pen_HW
    return mask_HW


def _above_glass(saturation_HW: npt.NDArray[np.uint8], bright_HW: npt.NDArray[np.uint8]) -> float:
    """The least saturation of tissue, 0 to 1: a little above that of the brightest twentieth, glass if there is any."""
    glass = np.median(saturation_HW[bright_HW >= np.percentile(bright_HW, 95)]) / 255
    return float(np.clip(glass + ABOVE_GLASS, *GLASS_BOUNDS))


def _smooth_hsv(pixels_HWC: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], ...]:
    """(H, W) hue, saturation and brightness, each 0 to 255, of a picture freed from its noise."""
    hsv = Image.fromarray(pixels_HWC).filter(ImageFilter.BoxBlur(1)).convert("HSV")
    return tuple(np.asarray(channel) for channel in hsv.split())


def _as_byte(hue: float) -> float:
    """A hue of 0 to 360 degrees on the scale of `_smooth_hsv`."""
    return hue * 255 / 360


def _otsu(values: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> float:
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values))


def _entropy(thumbnail_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(H, W) bits of entropy of the grey values within 5 pixels."""
    from skimage.filters import rank
    from skimage.morphology import disk

    grey_HW = thumbnail_HWC.mean(2).astype(np.uint8)
    return rank.entropy(grey_HW, disk(5)).astype(np.float32)


def pen_share(pixels_HWC: npt.NDArray[np.uint8]) -> float:
    """Share of a picture's pixels whose colour pens have and no stain has."""
    return float(_is_pen(*_smooth_hsv(pixels_HWC)).mean())


def _is_pen(
    hue_HW: npt.NDArray[np.uint8], saturation_HW: npt.NDArray[np.uint8], bright_HW: npt.NDArray[np.uint8]
) -> npt.NDArray[np.bool_]:
    green, blue = ((_as_byte(low), _as_byte(high)) for low, high in (PEN_GREENS, PEN_BLUES))
    green_HW = (hue_HW > green[0]) & (hue_HW < green[1]) & (saturation_HW > 255 * 0.2)
    blue_HW = (hue_HW > blue[0]) & (hue_HW < blue[1]) & (saturation_HW > 255 * 0.6)
    black_HW = (bright_HW < 100) & (saturation_HW < 255 * 0.3)
    return green_HW | blue_HW | black_HW


def _parts_up_to(num_px: float, mask_HW: npt.NDArray[np.bool_], *, inside: bool = False) -> npt.NDArray[np.bool_]:
    """The connected parts of a mask (4-connected) that have at most `num_px` pixels.

    scikit-image's `remove_small_holes` also fills parts at the picture's edge, so it cannot take the place of this.

    Args:
        num_px: How many.
        mask_HW: The mask.
        inside: Only parts that do not reach the picture's edge: bare glass that does is no hole, however small.
    """
    from scipy import ndimage

    labels_HW, _ = ndimage.label(mask_HW, output=np.intp)  # which `bincount` need not copy
    small = np.bincount(labels_HW.ravel()) <= num_px
    small[0] = False
    if inside:
        for edge in (labels_HW[0], labels_HW[-1], labels_HW[:, 0], labels_HW[:, -1]):
            small[edge] = False
    found: npt.NDArray[np.bool_] = small[labels_HW]
    return found
