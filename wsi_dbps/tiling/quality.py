"""Measures of each patch's quality (`tile --qc`), by which a later run can leave patches out without tiling again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import simplejpeg
from PIL import Image

from wsi_dbps.tiling.tissue import pen_share

if TYPE_CHECKING:
    import numpy.typing as npt


MEASURES: Final = ("sharpness", "white", "pen")
WHITE: Final = 220
"""Least value of every channel of a pixel that is near white."""
_PEN_REDUCE: Final = 4


def measure(jpeg: bytes) -> tuple[float, ...]:
    """`MEASURES` of a patch.

    Sharpness is the variance of the 4-neighbour Laplacian of the grey values (Pech-Pacheco et al., "Diatom
    autofocusing in brightfield microscopy", 2000); it grows with texture and with resolution, so a threshold holds for
    one stain and one mpp.
    """
    pixels = simplejpeg.decode_jpeg(jpeg)
    picture = Image.fromarray(pixels)
    grey = np.asarray(picture.convert("L"), np.int16)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = 4 * grey[1:-1, 1:-1] - around
    # five times as fast as pixels.min(2)
    white = np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]) >= WHITE
    pen = pen_share(np.asarray(picture.reduce(min(_PEN_REDUCE, *picture.size))))
    return float(laplacian.var()) if laplacian.size else 0.0, float(white.mean()), pen


def as_arrays(measures: list[tuple[float, ...]]) -> dict[str, npt.NDArray[np.float32]]:
    """(N,) of each of `MEASURES`."""
    table = np.array(measures, np.float32).reshape(-1, len(MEASURES))
    return dict(zip(MEASURES, table.T, strict=True))
