"""A lossless pyramidal TIFF file that OpenSlide opens: what is read from it can be compared exactly."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from wsi_dbps.core.files import written_whole
from wsi_dbps.synth.pyramid import box_reduced, checked_downsamples, checked_size

Pixels = npt.NDArray[np.uint8]


def write_lossless(
    path: Path,
    image_HWC: Pixels,
    *,
    mpp_um: float,
    tile_px: int = 256,
    downsamples: Sequence[int] | None = None,
) -> None:
    """Write a deflate-tiled pyramid that OpenSlide opens as generic-tiff; level 0 is exactly `image_HWC`.

    Lower levels are box averages, rounded. Arguments and errors as in `write_aperio`; mpp goes to the resolution tags,
    in pixels per centimetre, because this layout has no other place for it.
    """
    size = checked_size(image_HWC, mpp_um, tile_px)
    factors = checked_downsamples(size, tile_px, downsamples)
    with written_whole(path) as partial, tifffile.TiffWriter(partial) as out:
        for factor in factors:
            per_cm = 10_000 / (mpp_um * factor)
            out.write(
                box_reduced(image_HWC, factor),
                photometric="rgb",
                compression="deflate",
                predictor=True,
                tile=(tile_px, tile_px),
                subfiletype=0 if factor == 1 else 1,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
                software=False,
            )
