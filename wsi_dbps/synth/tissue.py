"""One synthetic H&E slide: stroma, glands, lymphocytes, blood, fat, and on a positive slide a lesion.

Painted as two amounts per pixel, of haematoxylin and of eosin, at `WORKING_UM` per pixel; these become light by
Beer's law with the slide's own stain colours, are enlarged to level 0, and get camera noise there.

The lesion differs from its look-alikes by the size and shape of its nuclei, not by how much stain there is: a SHEET
has the same nests, the same cytoplasm and the same share of its area under nuclei, only more and smaller ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import ndimage

from wsi_dbps.synth.layout import COARSE_UM, WORKING_UM, Kind, Layout, plan_layout, smooth_noise
from wsi_dbps.synth.nuclei import nucleus_sprites, scattered, stamp
from wsi_dbps.synth.spec import TissueSpec
from wsi_dbps.synth.stain import at_level_0, light_through

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.core.geometry import Size

    Field = npt.NDArray[np.float32]
    Points = npt.NDArray[np.float64]

__all__ = ["TissueSlide", "TissueSpec", "render_slide"]


@dataclass(frozen=True)
class TissueSlide:
    """A rendered slide and the truth about it."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3) uint8, RGB, level 0."""
    lesion_lv0: npt.NDArray[np.int64]
    """(M, 4) int64 of (x0, y0, x1, y1), level-0 pixels: rectangles that do not overlap; none on a negative slide."""
    tissue_share: float
    """Share of the slide's area that is tissue."""


def render_slide(
    size: Size, *, mpp_um: float, has_lesion: bool, spec: TissueSpec, rng: np.random.Generator
) -> TissueSlide:
    """Render one slide; the same generator state gives the same pixels.

    Raises:
        ValueError: If the slide is smaller than 16 squares of the spec's `cell_um` a side.
    """
    layout = plan_layout(size, mpp_um=mpp_um, has_lesion=has_lesion, spec=spec, rng=rng)
    canvas = _Canvas(layout, size, mpp_um, spec, rng)
    canvas.paint_stroma()
    canvas.paint_fat()
    canvas.paint_blood()
    canvas.paint_nests()
    canvas.paint_glands()
    canvas.paint_stromal_nuclei()
    canvas.paint_lymphoid()
    light = light_through(canvas.haematoxylin(), canvas.eosin, spec, rng)
    return TissueSlide(
        image=at_level_0(light, size, mpp_um, spec, rng),
        lesion_lv0=layout.lesion_lv0,
        tissue_share=float((layout.outline > 0).mean()),
    )


class _Canvas:
    """The amounts of stain on one slide while it is being painted."""

    def __init__(self, layout: Layout, size: Size, mpp_um: float, spec: TissueSpec, rng: np.random.Generator) -> None:
        self.layout, self.spec, self.rng = layout, spec, rng
        self.shape = (math.ceil(size.height * mpp_um / WORKING_UM), math.ceil(size.width * mpp_um / WORKING_UM))
        self.cell_px = layout.cell_lv0 * mpp_um / WORKING_UM
        self.coarse_shape = layout.outline.shape
        self.tissue = self.full((layout.outline * 120 + 0.5).clip(0, 1))
        self.gland_field = smooth_noise(self.coarse_shape, 350 / COARSE_UM, rng)
        self.nest_field = smooth_noise(self.coarse_shape, 70 / COARSE_UM, rng)
        self.fibre_angle = np.zeros(self.coarse_shape, np.float32)
        self.background = np.zeros(self.shape, np.float32)  # haematoxylin outside nuclei
        self.nuclei = np.zeros(self.shape, np.float32)
        self.eosin = np.zeros(self.shape, np.float32)

    def full(self, coarse: Field) -> Field:
        """A coarse field at working resolution."""
        height, width = self.shape
        box = (0, 0, width * WORKING_UM / COARSE_UM, height * WORKING_UM / COARSE_UM)
        box = (0, 0, min(box[2], coarse.shape[1]), min(box[3], coarse.shape[0]))
        return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR, box=box))

    def at(self, coarse: Field, points: Points) -> Field:
        """A coarse field at working points."""
        x, y = (points.T * WORKING_UM / COARSE_UM).astype(np.int64)
        height, width = coarse.shape
        values: Field = coarse[y.clip(0, height - 1), x.clip(0, width - 1)]
        return values

    def under(self, layer: Field, points: Points) -> Field:
        """A working layer at working points."""
        x, y = points.astype(np.int64).T
        values: Field = layer[y.clip(0, self.shape[0] - 1), x.clip(0, self.shape[1] - 1)]
        return values

    def kind_at(self, points: Points) -> npt.NDArray[np.uint8]:
        """The kind of the square each working point lies in; beyond the last square, ordinary."""
        x, y = (points.T // self.cell_px).astype(np.int64)
        rows, columns = self.layout.kinds.shape
        known = (x >= 0) & (y >= 0) & (x < columns) & (y < rows)
        kinds = np.zeros(len(points), np.uint8)
        kinds[known] = self.layout.kinds[y[known], x[known]]
        return kinds

    def points(
        self, spacing_um: float, kind: Kind, *, jitter: float = 0.3, depth: float = 0.01, fray_um: float = 0.0
    ) -> Points:
        """Scattered working points on tissue of a kind, which frays at its edge."""
        rows, columns = np.nonzero(self.layout.kinds == kind)
        if not len(rows):
            return np.empty((0, 2))
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        if kind == Kind.ORDINARY:
            box = (0, 0, self.shape[1] / self.cell_px, self.shape[0] / self.cell_px)
        x0, y0, x1, y1 = (float(edge) * self.cell_px for edge in box)
        spots = scattered((x0, y0, x1, y1), spacing_um / WORKING_UM, self.rng, jitter=jitter)
        looked_up = spots + self.rng.normal(0, fray_um / WORKING_UM, spots.shape) if fray_um else spots
        kept: Points = spots[(self.kind_at(looked_up) == kind) & (self.at(self.layout.outline, spots) > depth)]
        return kept

    def window(self, kind: Kind) -> tuple[slice, slice]:
        """The smallest part of the canvas that holds all squares of a kind, with one square around them."""
        rows, columns = np.nonzero(self.layout.kinds == kind)
        y0, x0 = (max(0, int((low - 1) * self.cell_px)) for low in (rows.min(), columns.min()))
        y1, x1 = (math.ceil((high + 2) * self.cell_px) for high in (rows.max(), columns.max()))
        return slice(y0, y1), slice(x0, x1)

    def kind_mask(self, kind: Kind) -> Field:
        """(H, W): 1 on squares of a kind, soft at their edges."""
        mask = (self.layout.kinds == kind).astype(np.float32)
        rows, columns = mask.shape
        height, width = round(rows * self.cell_px), round(columns * self.cell_px)
        whole = np.zeros(self.shape, np.float32)
        whole[:height, :width] = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))[
            : self.shape[0], : self.shape[1]
        ]
        return whole

    def paint_stroma(self) -> None:
        """Eosin everywhere there is tissue, in wavy fibres."""
        rng, (height, width) = self.rng, self.shape
        period = 1024
        grain = rng.normal(size=(period, period)).astype(np.float32)
        fibres = ndimage.uniform_filter1d(grain, 41, axis=1, mode="wrap")
        fibres = ndimage.gaussian_filter1d(fibres, 1.4, axis=0, mode="wrap")
        fibres = fibres / fibres.std() + 0.35 * ndimage.gaussian_filter(grain, 1.0, mode="wrap") / 0.28
        bend = 220 / WORKING_UM
        u = self.full(smooth_noise(self.coarse_shape, 420 / COARSE_UM, rng)) * bend
        across = smooth_noise(self.coarse_shape, 320 / COARSE_UM, rng) * np.float32(bend)
        v = self.full(across)
        slope_y, slope_x = np.gradient(across, COARSE_UM / WORKING_UM)
        self.fibre_angle = np.arctan2(-slope_x, 1 + slope_y).astype(np.float32)
        u += np.arange(width, dtype=np.float32)
        v += np.arange(height, dtype=np.float32)[:, None]
        place = (v.astype(np.int32) % period) * period + u.astype(np.int32) % period
        thickness = 1 + 0.13 * self.full(smooth_noise(self.coarse_shape, 300 / COARSE_UM, rng))
        self.thickness = thickness
        self.eosin += self.tissue * (0.42 + 0.11 * fibres.ravel().take(place)).clip(0.04, None)
        self.background += self.tissue * 0.05

    def paint_fat(self) -> None:
        """Round empty holes between thin walls."""
        for x, y in self.points(46, Kind.FAT, jitter=0.2):
            self._hole(x, y, self.rng.uniform(17, 23))

    def paint_blood(self) -> None:
        """Red cells: much eosin, no nuclei."""
        spots = self.points(6.2, Kind.BLOOD, fray_um=12)
        discs = nucleus_sprites(
            24,
            diameter_px=6.5,
            diameter_spread=0.08,
            elongation=1.15,
            ruggedness=0.04,
            darkness=0.95,
            clumping=0.05,
            rng=self.rng,
        )
        stamp(self.eosin, discs, spots, self.rng.integers(24, size=len(spots)))

    def paint_nests(self) -> None:
        """Lesion and sheet: nests in stroma, alike in all but their nuclei."""
        spec, rng = self.spec, self.rng
        mottle = self.full(smooth_noise(self.coarse_shape, 22 / COARSE_UM, rng))
        field = self.full(self.nest_field) + 0.4 * mottle
        stroma_share = rng.uniform(0.1, 0.4)  # of a lesion's or sheet's squares
        coverage = rng.uniform(0.18, 0.40)  # share of a nest under nuclei
        large = nucleus_sprites(
            72,
            diameter_px=spec.lesion_nucleus_um / WORKING_UM,
            diameter_spread=0.17,
            elongation=1.35,
            ruggedness=0.09,
            darkness=1.2,
            clumping=0.22,
            nucleoli=True,
            rng=rng,
        )
        small = nucleus_sprites(
            72,
            diameter_px=spec.epithelium_um / WORKING_UM,
            diameter_spread=0.12,
            elongation=1.25,
            ruggedness=0.04,
            darkness=1.2,
            clumping=0.15,
            rng=rng,
        )
        for kind, sprites, diameter_um in (
            (Kind.LESION, large, spec.lesion_nucleus_um),
            (Kind.SHEET, small, spec.epithelium_um),
        ):
            if not (self.layout.kinds == kind).any():
                continue
            window = self.window(kind)
            mask = self.kind_mask(kind)[window]
            # a nest keeps away from the edge of its squares, or the squares would show
            height = field[window] - 4 * (1 - mask)
            height -= np.quantile(height[mask >= 0.5], stroma_share)
            inside = (height * 3 + 0.5).clip(0, 1) * (4 * mask).clip(0, 1) * self.tissue[window]
            pink = (0.28 + 0.13 * mottle[window]).clip(0.02, None)
            self.eosin[window] += inside * (pink - 0.5 * self.eosin[window])
            self.background[window] += inside * 0.09
            body = np.zeros(self.shape, np.float32)
            body[window] = inside
            clefts = self.points(46, kind)
            for x, y in clefts[(self.under(body, clefts) > 0.5) & (rng.random(len(clefts)) < 0.5)]:
                self._hole(x, y, rng.uniform(4, 10))
            spacing = diameter_um * math.sqrt(math.pi / 4 / coverage / math.sqrt(0.75))
            spots = self.points(spacing, kind)
            spots = spots[(self.under(body, spots) > 0.5) & (self.under(self.background, spots) > 0.03)]
            stamp(self.nuclei, sprites, spots, rng.integers(72, size=len(spots)))

    def paint_glands(self) -> None:
        """Rings of epithelium around a lumen, where the gland field is high."""
        spec, rng = self.spec, self.rng
        count = 96
        sprites = nucleus_sprites(
            count,
            diameter_px=spec.epithelium_um / WORKING_UM,
            diameter_spread=0.1,
            elongation=1.5,
            ruggedness=0.04,
            darkness=1.0,
            clumping=0.14,
            rng=rng,
        )
        centres = self.points(90, Kind.ORDINARY, jitter=0.14, depth=0.12)
        centres = centres[self.at(self.gland_field, centres) > -0.9]
        for centre in centres:
            radius = rng.uniform(26, 44) / WORKING_UM
            rim = centre + radius * 1.1 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
            if (self.kind_at(rim) != Kind.ORDINARY).any() or (self.at(self.layout.outline, rim) < 0.02).any():
                continue
            self._gland(centre, radius, sprites)

    def _gland(self, centre: Points, radius: float, sprites: list[Field]) -> None:
        rng = self.rng
        reach = math.ceil(radius * 1.5)
        x0, y0 = (round(float(value)) - reach for value in centre)
        if x0 < 0 or y0 < 0 or x0 + 2 * reach > self.shape[1] or y0 + 2 * reach > self.shape[0]:
            return
        window = np.s_[y0 : y0 + 2 * reach, x0 : x0 + 2 * reach]
        axis = np.arange(2 * reach, dtype=np.float32) - reach + 0.5
        phases, heights = rng.uniform(0, 2 * math.pi, 3), rng.normal(size=3) * (0.13, 0.07, 0.05)

        def edge(angle: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
            waves = (
                height * np.cos(k * angle + phase) for k, height, phase in zip((2, 3, 4), heights, phases, strict=True)
            )
            result: npt.NDArray[np.floating] = 1 + np.clip(sum(waves), -0.3, 0.35)
            return result

        angle = np.arctan2(axis[:, None], axis[None, :])
        distance = np.hypot(axis[:, None], axis[None, :])
        outer = (radius * edge(angle)).astype(np.float32)
        lumen = outer * rng.uniform(0.25, 0.5)
        ring = ((outer - distance) * 0.7).clip(0, 1)
        hole = ((lumen - distance) * 0.5).clip(0, 1)
        self.eosin[window] += ring * (0.36 - 0.7 * self.eosin[window])
        self.background[window] += ring * 0.10
        self.eosin[window] *= 1 - 0.9 * hole
        self.background[window] *= 1 - hole
        rows = 2 if rng.random() < 0.6 else 1
        for row in range(rows):
            ring_radius = radius - (6.0 + 7.5 * row)
            number = int(2 * math.pi * ring_radius / rng.uniform(6.6, 8.0))
            around = (np.arange(number) + rng.uniform(-0.25, 0.25, number)) * 2 * math.pi / number
            away = edge(around) * ring_radius + rng.normal(0, 1.2, number)
            spots = centre + np.stack([np.cos(around), np.sin(around)], axis=1) * away[:, None]
            kinds = np.rint(around / math.pi * len(sprites)).astype(np.intp) % len(sprites)
            stamp(self.nuclei, sprites, spots, kinds)

    def paint_stromal_nuclei(self) -> None:
        """Spindle-shaped fibroblasts and single lymphocytes."""
        rng = self.rng
        spindles = nucleus_sprites(
            64,
            diameter_px=7.0 / WORKING_UM,
            diameter_spread=0.12,
            elongation=2.8,
            ruggedness=0.04,
            darkness=0.85,
            clumping=0.15,
            rng=rng,
        )
        for kind in Kind:
            if kind in (Kind.BLOOD, Kind.FAT, Kind.LYMPHOID):
                continue
            spots = self._in_stroma(self.points(19, kind))
            angle = self.at(self.fibre_angle, spots) + rng.normal(0, 0.25, len(spots))
            stamp(self.nuclei, spindles, spots, np.rint(angle / math.pi * 64).astype(np.intp) % 64)
        lymphocytes = self._lymphocytes()
        busy = smooth_noise(self.coarse_shape, 120 / COARSE_UM, rng)
        for kind in (Kind.ORDINARY, Kind.LESION, Kind.SHEET):
            spots = self._in_stroma(self.points(11, kind))
            spots = spots[self.at(busy, spots) + rng.normal(0, 0.5, len(spots)) > 0.1]
            stamp(self.nuclei, lymphocytes, spots, rng.integers(len(lymphocytes), size=len(spots)))

    def _in_stroma(self, spots: Points) -> Points:
        """Leave out points in nests and glands, which have more haematoxylin between their nuclei than stroma."""
        return spots[(self.under(self.background, spots) < 0.09) & (self.under(self.eosin, spots) > 0.15)]

    def _lymphocytes(self) -> list[Field]:
        return nucleus_sprites(
            32,
            diameter_px=self.spec.lymphocyte_um / WORKING_UM,
            diameter_spread=0.08,
            elongation=1.08,
            ruggedness=0.03,
            darkness=1.3,
            clumping=0.16,
            rng=self.rng,
        )

    def paint_lymphoid(self) -> None:
        """Pockets of lymphocytes: small, round, very dark, dense."""
        spots = self.points(8.2, Kind.LYMPHOID, fray_um=14)
        sprites = self._lymphocytes()
        stamp(self.nuclei, sprites, spots, self.rng.integers(len(sprites), size=len(spots)))

    def _hole(self, x: float, y: float, radius: float) -> None:
        reach = math.ceil(radius) + 3
        x0, y0 = round(x) - reach, round(y) - reach
        if x0 < 0 or y0 < 0 or x0 + 2 * reach > self.shape[1] or y0 + 2 * reach > self.shape[0]:
            return
        axis = np.arange(2 * reach, dtype=np.float32) - reach + 0.5
        squash = self.rng.uniform(0.85, 1.15)
        distance = np.hypot(axis[:, None] * squash, axis[None, :] / squash)
        left = (distance - radius).clip(0, 1)
        self.eosin[y0 : y0 + 2 * reach, x0 : x0 + 2 * reach] *= left
        self.background[y0 : y0 + 2 * reach, x0 : x0 + 2 * reach] *= left

    def haematoxylin(self) -> Field:
        """All of it; and what is under a nucleus is no longer eosin."""
        self.eosin *= 1 - 0.6 * self.nuclei.clip(0, 1)
        self.eosin *= self.thickness
        return (self.background + self.nuclei) * self.thickness
