"""From amounts of stain to the pixels of a scanner: Beer's law, the slide's own colours, camera noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from wsi_dbps.synth.layout import WORKING_UM

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.core.geometry import Size
    from wsi_dbps.synth.spec import TissueSpec

    Field = npt.NDArray[np.float32]

# optical density per unit of stain in R, G, B
HAEMATOXYLIN = np.array([0.66, 0.72, 0.36])
EOSIN = np.array([0.17, 0.80, 0.44])


def light_through(
    haematoxylin: Field, eosin: Field, spec: TissueSpec, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8: what passes the stains, in the slide's own colours."""
    much = spec.stain_variation
    stains = np.stack([HAEMATOXYLIN, EOSIN]) * (1 + 0.10 * much * rng.normal(size=(2, 3)).clip(-1.5, 1.5))
    stains *= np.exp(0.16 * much * rng.normal(size=(2, 1)).clip(-1.6, 1.6))
    glass = 243 + much * rng.uniform(-5, 2) + much * rng.normal(0, 1.5, 3)
    room = math.ceil(3 * spec.noise_level)  # for the noise to come
    light = np.empty((*haematoxylin.shape, 3), np.uint8)
    for channel in range(3):
        h, e = stains[:, channel].astype(np.float32)
        density = haematoxylin * -h
        density -= eosin * e
        np.exp(density, out=density)
        density *= np.float32(glass[channel])
        light[..., channel] = density.clip(room, 255 - room)
    return light


def at_level_0(
    light: npt.NDArray[np.uint8], size: Size, mpp_um: float, spec: TissueSpec, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 at level 0, with camera noise: one field of it, turned at random and laid side by side."""
    box = (
        0,
        0,
        min(size.width * mpp_um / WORKING_UM, light.shape[1]),
        min(size.height * mpp_um / WORKING_UM, light.shape[0]),
    )
    image = np.array(Image.fromarray(light).resize((size.width, size.height), Image.Resampling.BILINEAR, box=box))
    period = 512
    noise = np.rint(spec.noise_level * rng.normal(size=(period, period, 3)).clip(-3, 3)).astype(np.int8)
    turned = [np.ascontiguousarray(np.rot90(noise, quarter)).view(np.uint8) for quarter in range(4)]
    for y in range(0, size.height, period):
        for x in range(0, size.width, period):
            window = image[y : y + period, x : x + period]
            # bytes wrap round, so adding a negative one as if unsigned is right; `light_through` left room at both ends
            window += turned[int(rng.integers(4))][: window.shape[0], : window.shape[1]]
    return image
