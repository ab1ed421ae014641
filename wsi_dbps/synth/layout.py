"""Where on a synthetic slide there is tissue, and of which kind.

Two rasters here: the tissue's outline on a coarse raster of `COARSE_UM` per pixel, its kinds on squares of the spec's
`cell_um`, whose edges are whole level-0 pixels, so that a lesion's outline is exact.
The stains are painted on a third, of `WORKING_UM` per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.core.geometry import Size
    from wsi_dbps.synth.spec import TissueSpec

    Field = npt.NDArray[np.float32]

COARSE_UM = 4.0
WORKING_UM = 1.0


class Kind(IntEnum):
    """What a square of tissue is."""

    ORDINARY = 0
    """Stroma, with glands where the gland field is high."""
    LESION = 1
    SHEET = 2
    """Benign look-alike: small dark nuclei in sheets, as dense and as blue as a lesion."""
    LYMPHOID = 3
    BLOOD = 4
    FAT = 5


@dataclass(frozen=True)
class Layout:
    """The plan of one slide."""

    outline: Field
    """(h, w) at `COARSE_UM`: above 0 inside the tissue, below outside, 1 deep inside."""
    kinds: npt.NDArray[np.uint8]
    """(rows, columns) of `Kind`, one per square."""
    cell_lv0: int
    """Side of a square in level-0 pixels."""

    @property
    def lesion_lv0(self) -> npt.NDArray[np.int64]:
        """(M, 4) int64 of (x0, y0, x1, y1), level-0 pixels: the lesion as rectangles that do not overlap."""
        return row_rectangles(self.kinds == Kind.LESION) * self.cell_lv0


def plan_layout(size: Size, *, mpp_um: float, has_lesion: bool, spec: TissueSpec, rng: np.random.Generator) -> Layout:
    """Draw islands of tissue and the kinds of its squares.

    Both classes draw the same spots of two sorts. One is SHEET on every slide; the other is LESION on a positive slide
    and SHEET on a negative one. So as much tissue is dense and dark in both, and nothing but the nuclei differs; and as
    every slide has look-alikes in plenty, their absence tells no more about a slide than their presence.

    Raises:
        ValueError: If the slide is smaller than 16 squares a side.
    """
    cell_lv0 = max(1, round(spec.cell_um / mpp_um))
    columns, rows = size.width // cell_lv0, size.height // cell_lv0
    if min(columns, rows) < 16:
        raise ValueError(f"a slide of {size} px has fewer than 16 squares of {cell_lv0} px a side; make it larger")
    outline = _islands((size.width * mpp_um, size.height * mpp_um), rng)
    whole_squares = (0, 0, columns * cell_lv0 * mpp_um / COARSE_UM, rows * cell_lv0 * mpp_um / COARSE_UM)
    inside = Image.fromarray((outline > 0).astype(np.float32))
    cover = np.asarray(inside.resize((columns, rows), Image.Resampling.BOX, box=whole_squares))
    kinds = np.zeros((rows, columns), np.uint8)
    free = cover > 0.97
    tissue_cells = float(cover.sum())

    def claim(kind: Kind, share: float) -> None:
        spot = _spot(free, max(2, round(share * tissue_cells)), rng)
        kinds[spot] = kind
        free[spot] = False

    for kind, low, high in (
        (Kind.LESION if has_lesion else Kind.SHEET, spec.lesion_share_min, spec.lesion_share_max),
        (Kind.SHEET, spec.lookalike_share_min, spec.lookalike_share_max),
    ):
        share = rng.uniform(low, high)
        for part in rng.dirichlet([8.0] * int(rng.integers(1, 3))):
            claim(kind, share * part)
    for kind, most, largest in (
        (Kind.LYMPHOID, 3, 0.05),
        (Kind.BLOOD, 2, 0.04),
        (Kind.FAT, 1, 0.04),
    ):
        for _ in range(int(rng.integers(kind != Kind.FAT, most + 1))):
            claim(kind, largest * rng.uniform(0.5, 1.0))
    return Layout(outline=outline, kinds=kinds, cell_lv0=cell_lv0)


def smooth_noise(shape: tuple[int, int], wavelength_px: float, rng: np.random.Generator) -> Field:
    """(H, W) float32 of about unit variance that changes over about `wavelength_px`."""
    height, width = shape
    knots = rng.normal(size=(math.ceil(height / wavelength_px) + 3, math.ceil(width / wavelength_px) + 3))
    x, y = rng.uniform(0.5, 1.5, 2)
    box = (x, y, x + width / wavelength_px, y + height / wavelength_px)
    picture = Image.fromarray(knots.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(picture) * np.float32(1.3)


def row_rectangles(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """(M, 4) int64 of (x0, y0, x1, y1): runs of true cells, those alike in neighbouring rows joined."""
    rectangles: list[list[int]] = []
    open_runs: dict[tuple[int, int], list[int]] = {}
    for y, row in enumerate(cells):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        runs = {(int(x0), int(x1)) for x0, x1 in edges.reshape(-1, 2)}
        open_runs = {run: rectangle for run, rectangle in open_runs.items() if run in runs}
        for x0, x1 in sorted(runs):
            if (x0, x1) in open_runs:
                open_runs[x0, x1][3] = y + 1
            else:
                rectangles.append([x0, y, x1, y + 1])
                open_runs[x0, x1] = rectangles[-1]
    return np.array(rectangles, np.int64).reshape(-1, 4)


def _islands(size_um: tuple[float, float], rng: np.random.Generator) -> Field:
    """One to three rounded islands that leave a margin of glass all round."""
    width, height = (math.ceil(side / COARSE_UM) for side in size_um)
    x, y = np.arange(width, dtype=np.float32) / width, np.arange(height, dtype=np.float32)[:, None] / height
    num_islands = int(rng.integers(1, 4))
    radius = (0.39, 0.26, 0.21)[num_islands - 1]
    start = rng.uniform(0, 2 * math.pi)
    outline = np.full((height, width), -1, np.float32)
    for i in range(num_islands):
        angle = start + 2 * math.pi * i / num_islands
        away = 0.0 if num_islands == 1 else 0.2
        cx, cy = (
            0.5 + away * math.cos(angle) + rng.normal(0, 0.015),
            0.5 + away * math.sin(angle) + rng.normal(0, 0.015),
        )
        stretch, turn = rng.uniform(0.85, 1.18), rng.uniform(0, math.pi)
        u = ((x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)) / (radius * stretch)
        v = ((y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)) / (radius / stretch)
        np.maximum(outline, 1 - np.sqrt(u * u + v * v), out=outline)
    shape, short = (height, width), min(width, height)
    margin = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    outline = np.minimum(outline, (margin - 0.07) * 5)
    outline += 0.06 * smooth_noise(shape, short / 5, rng) + 0.02 * smooth_noise(shape, short / 25, rng)
    return np.minimum(outline, (margin - 0.02) * 5).astype(np.float32)


def _spot(free: npt.NDArray[np.bool_], num_cells: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A compact, uneven group of at most `num_cells` free cells around one of them."""
    spot = np.zeros_like(free)
    cells = np.argwhere(free)
    if not len(cells):
        return spot
    # a centre with room around it, so that a spot is not a thin rim
    tries = cells[rng.integers(len(cells), size=12)]
    distances = ((cells[None] - tries[:, None]) ** 2).sum(axis=2)
    near = np.sort(distances, axis=1)[:, : min(num_cells, len(cells))]
    best = int(near.mean(axis=1).argmin())
    uneven = 1 + 0.25 * smooth_noise(free.shape, 4.0, rng)[tuple(cells.T)]
    chosen = np.argsort(np.sqrt(distances[best]) * uneven.clip(0.4), kind="stable")[:num_cells]
    spot[tuple(cells[chosen].T)] = True
    return spot
