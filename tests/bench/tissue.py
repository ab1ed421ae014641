"""How much of the tissue each way of finding it finds, on slides whose tissue is known, at several strengths of stain.

    python tests/bench/tissue.py COHORT/cohort.csv [--slides 6] [--more SLIDE ...]

COHORT is a folder of slides of islands of tissue on glass without texture, as `build_colon_cohort.py` makes them:
there the truth is what differs from the glass. Each slide's thumbnail is then changed: its optical density is scaled,
its stain turned to that of DAB or of haematoxylin alone, its glass tinted, and noise is added. Printed: mean share of
the true tissue that is found, and the largest share of the glass that is taken for tissue. `--more` names slides
without a known truth, of which the share of the slide is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.sampling import thumbnail
from wsi_dbps.tiling.tissue import METHODS, segment

DAB = np.array([0.27, 0.57, 0.78])
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
"""Optical densities in red, green and blue. Source: A. Ruifrok and D. Johnston, 2001."""
CLEAN = (243.0, 241.0, 244.0)
VARIANTS = {
    "H&E": (1.0, None, CLEAN),
    "H&E 0.5": (0.5, None, CLEAN),
    "H&E 0.3": (0.3, None, CLEAN),
    "H&E 0.2": (0.2, None, CLEAN),
    "H&E 0.12": (0.12, None, CLEAN),
    "H&E 0.3, yellowish glass": (0.3, None, (245.0, 243.0, 237.0)),
    "H&E 0.3, bluish glass": (0.3, None, (236.0, 240.0, 246.0)),
    "DAB": (1.0, DAB, CLEAN),
    "DAB 0.3": (0.3, DAB, CLEAN),
    "haematoxylin 0.2": (0.2, HAEMATOXYLIN, CLEAN),
}
"""Name: scale of the optical density, a stain to turn it to, colour of the glass."""


def changed(
    picture_HWC: npt.NDArray[np.uint8],
    scale: float,
    stain: npt.NDArray[np.float64] | None,
    glass: tuple[float, ...],
    rng: np.random.Generator,
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) the picture in another stain and strength, on glass of another colour, with noise of 2 grey levels."""
    density_HWC = np.log(np.array(CLEAN) / np.maximum(picture_HWC, 1.0)).clip(0)
    if stain is not None:
        density_HWC = density_HWC.mean(2, keepdims=True) * stain / stain.mean()
    seen_HWC = np.array(glass) * np.exp(-scale * density_HWC) + rng.normal(0, 2, picture_HWC.shape)
    return seen_HWC.clip(0, 255).astype(np.uint8)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--slides", type=int, default=6)
    parser.add_argument("--more", type=Path, nargs="*", default=[])
    asked = parser.parse_args()
    rng, found = np.random.default_rng(0), {}
    for record in read_manifest(asked.cohort, need_path=True).records[: asked.slides]:
        with open_slide(record.file) as slide:
            picture_HWC, size, mpp_um = thumbnail(slide, 1024), slide.info.size_lv0, slide.info.mpp_um
        far_HW = np.abs(picture_HWC - np.array(CLEAN)).max(2) > 12
        image = Image.fromarray(far_HW).convert("L").filter(ImageFilter.MaxFilter(9)).filter(ImageFilter.MinFilter(9))
        truth_HW = np.asarray(image) > 0
        glass_HW = np.asarray(image.filter(ImageFilter.MaxFilter(9))) == 0
        for variant, how in VARIANTS.items():
            seen_HWC = changed(picture_HWC, *how, rng)
            for method in METHODS:
                mask_HW = segment(seen_HWC, size, mpp_um or 0.5, method).mask_HW
                found.setdefault((variant, method), []).append((mask_HW[truth_HW].mean(), mask_HW[glass_HW].mean()))
    print("found of the tissue / largest share of glass\n" + " ".join(f"{text:>26}" for text in ("", *METHODS)))
    for variant in VARIANTS:
        cells = [np.array(found[variant, method]) for method in METHODS]
        print(" ".join([f"{variant:>26}", *(f"{c[:, 0].mean():>17.2f} / {c[:, 1].max():.4f}" for c in cells)]))
    for path in asked.more:
        with open_slide(path) as slide:
            picture_HWC, size, mpp_um = thumbnail(slide, 1024), slide.info.size_lv0, slide.info.mpp_um
        shares = [segment(picture_HWC, size, mpp_um or 0.5, method).mask_HW.mean() for method in METHODS]
        print(" ".join([f"{path.name[:26]:>26}", *(f"{share:>26.2f}" for share in shares)]))


if __name__ == "__main__":
    main()
