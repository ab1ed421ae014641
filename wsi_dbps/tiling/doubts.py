"""What a person should look at before relying on a slide's patches: colours that no bright-field stain has, a mask that
other methods contradict, a resolution that the manifest and the file disagree about.

All of it is cheap to find, and none of it changes a mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from wsi_dbps.core.geometry import Size, fit_within
from wsi_dbps.tiling.plan import is_plausible
from wsi_dbps.tiling.tissue import DARK, HE_HUES, METHODS, Method, segment

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from wsi_dbps.tiling.slide_plan import SlidePlan

MPP_DISAGREEMENT: Final = 0.10
"""A manifest's mpp is reported if it differs from the file's by more than this share: it may be a correction or a
mistake."""
LOOK_PX: Final = 200
"""Longer side of the picture on which doubts are looked for: the methods then take some 0.03 s together."""
LARGEST_DARK: Final = 0.5
"""Share of a picture that may be dark. Fluorescence is dark nearly everywhere."""
LARGEST_GLASS_SATURATION: Final = 0.35
"""Saturation that the brightest hundredth of a picture may have: glass has 0.05, dense pink tissue without glass 0.25,
glass whose YCbCr was taken for RGB 0.5."""
SMALLEST_STAINED: Final = 0.5
"""Share of the coloured tissue that must have hues of H&E or of brown and blue immunostains."""
DISAGREEMENT: Final = 1.5
"""How many times more tissue another method must find, or how many times less all others, to be worth a look."""
SMALLEST_DIFFERENCE: Final = 0.005
"""The share of the slide that this has to be."""


def slide_notes(decided: SlidePlan) -> Iterator[str]:
    """What a user should know about a slide before relying on its patches, a line each."""
    plan, file_um = decided.plan, decided.info.mpp_um
    known_um = file_um if file_um is not None and is_plausible(file_um) else plan.grid.mpp_lv0_um
    if abs(plan.grid.mpp_lv0_um / known_um - 1) > MPP_DISAGREEMENT:
        yield f"the manifest says {plan.grid.mpp_lv0_um:g} µm/px and the file {file_um:.4g}; the manifest is believed"
    yield from _mask_notes(decided)
    if decided.spec.icc == "srgb" and not decided.info.icc_profile:
        yield "no ICC profile that can be read; its colours are taken for sRGB"
    if past := int(plan.past_edge.sum()):
        yield f"{past} of {len(plan)} given tiles reach past the slide's edge; their patches are white there"
    if len(plan):
        return
    if min(plan.grid.slide_lv0.width, plan.grid.slide_lv0.height) < plan.grid.tile_lv0:
        yield f"smaller ({plan.grid.slide_lv0} px) than one tile of {plan.grid.tile_lv0:g} px; no patches"
    elif not decided.mask.mask_HW.any():
        yield "no tissue found; no patches"
    else:
        yield f"no tile holds a share of {plan.spec.min_tissue:g} of tissue; no patches"


def _mask_notes(decided: SlidePlan) -> Iterator[str]:
    """What is doubtful about a slide's colours and its tissue mask."""
    plan, mask_HW = decided.plan, decided.mask.mask_HW
    method = decided.provenance.mask_fingerprint or plan.spec.tissue  # the manifest's word for the slide, or a mask's
    yield from colour_doubts(decided.thumbnail_HWC, mask_HW if method in METHODS else None)
    if method in METHODS:
        yield from tissue_doubts(
            decided.thumbnail_HWC, plan.grid.slide_lv0, plan.grid.mpp_lv0_um, method, drop_pen=plan.spec.drop_pen
        )
    elif "none" not in (method, plan.spec.tissue) and mask_HW.all():
        yield "its mask takes the whole slide for tissue; is it the mask, and not a picture of the slide?"


def colour_doubts(thumbnail_HWC: npt.NDArray[np.uint8], mask_HW: npt.NDArray[np.bool_] | None) -> Iterator[str]:
    """Why a picture may not be one of a stained slide in bright field; nothing for H&E and common immunostains.

    Args:
        thumbnail_HWC: (H, W, 3) RGB picture of the whole slide.
        mask_HW: What was found to be tissue, on any grid over the slide; None where a person or a tool chose it, who
            may have meant these very hues.
    """
    picture = _small(thumbnail_HWC)
    hue_HW, saturation_HW, bright_HW = (np.asarray(channel) for channel in picture.convert("HSV").split())
    dark = float((bright_HW < DARK).mean())
    if dark > LARGEST_DARK:
        yield f"{dark:.0%} of the slide is dark, as in fluorescence: its tissue and its patches are not to be trusted"
        return
    light_HW = np.asarray(picture.convert("L"))
    brightest_HW = light_HW >= np.percentile(light_HW, 99)
    if np.median(saturation_HW[brightest_HW]) > 255 * LARGEST_GLASS_SATURATION:
        r, g, b = np.median(np.asarray(picture)[brightest_HW], axis=0).astype(int)
        yield (
            f"its brightest parts have the colour ({r}, {g}, {b}), where glass is pale: are its pixels stored as YCbCr "
            "and called RGB? Convert the slide again, or leave it out"
        )
    if mask_HW is None:
        return
    tissue_HW = np.asarray(Image.fromarray(mask_HW).resize(picture.size)) & (saturation_HW > 255 * 0.1)
    hues = hue_HW[tissue_HW & (bright_HW >= DARK)] * (360 / 255)
    stained = float(((hues >= HE_HUES[0]) | (hues <= HE_HUES[1])).mean()) if hues.size else 1.0
    if stained < SMALLEST_STAINED:
        yield (
            f"only {stained:.0%} of what was taken for tissue has the hues of H&E or of brown and blue immunostains: "
            "if this is another stain, give it a mask in the manifest"
        )


def tissue_doubts(
    thumbnail_HWC: npt.NDArray[np.uint8], slide_lv0: Size, mpp_lv0_um: float, method: Method, *, drop_pen: bool = True
) -> Iterator[str]:
    """Whether another method finds much more tissue than the one in use, or all others much less.

    All of them look at the same small picture, so that they differ by method only.

    Args:
        thumbnail_HWC: (H, W, 3) RGB picture of the whole slide.
        slide_lv0: The slide's size.
        mpp_lv0_um: µm per level-0 pixel.
        method: The one in use.
        drop_pen: Whether it leaves out strokes of pens.
    """
    picture = np.asarray(_small(thumbnail_HWC))
    found = {
        name: float(segment(picture, slide_lv0, mpp_lv0_um, name, drop_pen=drop_pen).mask_HW.mean()) for name in METHODS
    }
    used, others = found[method], [share for name, share in found.items() if name != method]
    less, more = sorted((used, max(others)))
    if more > less * DISAGREEMENT and more - less > SMALLEST_DIFFERENCE:
        said = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
        instead = max((name for name in METHODS if name != method), key=lambda name: abs(found[name] - used))
        yield (
            f"the methods disagree about its tissue ({said} of the slide), and {method} was used: look at the contact "
            f"sheet; if it is wrong, write {instead} into the manifest's column tissue, or tile with --tissue {instead}"
        )


def _small(thumbnail_HWC: npt.NDArray[np.uint8]) -> Image.Image:
    size = fit_within(Size(thumbnail_HWC.shape[1], thumbnail_HWC.shape[0]), LOOK_PX)
    return Image.fromarray(thumbnail_HWC).resize((size.width, size.height), Image.Resampling.BOX)
