"""Nuclei as small pictures, drawn once per slide and stamped many times."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    import numpy.typing as npt

    Field = npt.NDArray[np.float32]
    Points = npt.NDArray[np.float64]

_FINER = 2  # sprites are drawn this much finer, then averaged, for smooth edges


def nucleus_sprites(
    count: int,
    *,
    diameter_px: float,
    diameter_spread: float,
    elongation: float,
    ruggedness: float,
    darkness: float,
    clumping: float,
    rng: np.random.Generator,
    nucleoli: bool = False,
) -> list[Field]:
    """Pictures of nuclei as amounts of haematoxylin, turned evenly: sprite k lies at the angle pi k / count.

    Args:
        count: How many.
        diameter_px: Mean diameter of a circle of the same area.
        diameter_spread: Its relative standard deviation.
        elongation: Mean ratio of the long to the short axis.
        ruggedness: Relative amplitude of the dents in the outline.
        darkness: Mean amount of haematoxylin inside.
        clumping: Relative amplitude of the chromatin's texture.
        rng: Of everything random.
        nucleoli: Draw a dark rim, a paler inside and one to three nucleoli.
    """
    reach = math.ceil(diameter_px * (0.5 + diameter_spread) * math.sqrt(elongation) * (1 + ruggedness)) + 2
    side = 2 * reach * _FINER
    axis = (np.arange(side, dtype=np.float32) - side / 2 + 0.5) / _FINER
    x, y = axis[None, None, :], axis[None, :, None]

    def each(values: npt.NDArray[np.floating]) -> Field:
        return values.astype(np.float32)[:, None, None]

    turn = each(np.arange(count) * math.pi / count)
    radius = each(diameter_px / 2 * (1 + diameter_spread * rng.normal(size=count).clip(-1.6, 1.6)))
    stretch = each(np.sqrt(1 + (elongation - 1) * rng.uniform(0.6, 1.4, count)))
    u = (x * np.cos(turn) + y * np.sin(turn)) / stretch
    v = (y * np.cos(turn) - x * np.sin(turn)) * stretch
    angle, distance = np.arctan2(v, u), np.hypot(u, v)
    outline = np.ones_like(angle)
    for wave in (2, 3, 4, 5):
        height = each(rng.normal(size=count) * ruggedness / math.sqrt(wave - 1))
        outline += height * np.cos(wave * angle + each(rng.uniform(0, 2 * math.pi, count)))
    depth = radius * outline.clip(0.55, 1.5) - distance  # px inside the outline
    inside = (depth * 1.2 + 0.5).clip(0, 1)
    clumps = ndimage.gaussian_filter(rng.normal(size=inside.shape).astype(np.float32), (0, 0.9 * _FINER, 0.9 * _FINER))
    clumps /= clumps.std()
    amount = 1 + clumping * clumps
    if nucleoli:
        amount = amount * np.where(depth < 1.6, 1.25, 0.86)
        for _ in range(3):
            shown = rng.random(count) < 0.6
            away = rng.uniform(0, 0.45, count) * radius[:, 0, 0]
            spin = rng.uniform(0, 2 * math.pi, count)
            far = np.hypot(u - each(away * np.cos(spin)), v - each(away * np.sin(spin)))
            amount = amount + each(0.6 * shown) * ((1.5 - far) * 1.5).clip(0, 1)
    dark = each(darkness * (1 + 0.12 * rng.normal(size=count)).clip(0.7, 1.4))
    fine = inside * amount.clip(0.2) * dark
    sprites = fine.reshape(count, 2 * reach, _FINER, 2 * reach, _FINER).mean(axis=(2, 4), dtype=np.float32)
    return list(sprites)


def stamp(layer: Field, sprites: list[Field], points_N2: Points, which_N: npt.NDArray[np.intp]) -> None:
    """Lay sprites on a layer, in place, centred on (x, y) points; where two meet, the darker shows.

    Points whose sprite would cross the layer's edge are left out.
    """
    reach = sprites[0].shape[0] // 2
    corners = np.rint(points_N2).astype(np.int64) - reach
    height, width = layer.shape
    fits = ((corners >= 0) & (corners + 2 * reach <= [width, height])).all(axis=1)
    for (x, y), k in zip(corners[fits].tolist(), which_N[fits].tolist(), strict=True):
        place = layer[y : y + 2 * reach, x : x + 2 * reach]
        np.maximum(place, sprites[k], out=place)


def scattered(
    box: tuple[float, float, float, float], spacing_px: float, rng: np.random.Generator, *, jitter: float = 0.3
) -> Points:
    """(N, 2) points (x, y) over (x0, y0, x1, y1), about `spacing_px` from each other: a shaken hexagonal grid."""
    x0, y0, x1, y1 = box
    xs = np.arange(x0, x1, spacing_px)
    ys = np.arange(y0, y1, spacing_px * math.sqrt(0.75))
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)
    grid[1::2, :, 0] += spacing_px / 2
    points: Points = grid.reshape(-1, 2) + rng.uniform(-jitter, jitter, (grid.size // 2, 2)) * spacing_px
    return points
