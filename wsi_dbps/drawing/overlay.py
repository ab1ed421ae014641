"""Attention over the thumbnail of its slide, as a picture to look at and to print.

Panels: the slide, with the selection outlined; its attention in proportion to the weights, from nothing to the highest;
the order of the attention, which shows what the few highest weights outshine; and, where the attention file holds it,
the evidence for each class. They are laid out in rows so that the whole is about as wide as a page is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from wsi_dbps.core.files import written_whole
from wsi_dbps.core.geometry import Size
from wsi_dbps.drawing.colours import GREY, INK, blend, colours_with_alpha, signed_share, signed_value
from wsi_dbps.drawing.placement import check_on_slide, length_text, picture_mpp_um, round_length_um, tile_boxes_px
from wsi_dbps.drawing.raster import rasterize
from wsi_dbps.drawing.tile_maps import EVIDENCE_SCALE, evidence_maps, percentile_map, raw_map, scale_text
from wsi_dbps.formats.attention import ROLES

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wsi_dbps.drawing.tile_maps import TileMap
    from wsi_dbps.formats.attention import SlideAttention

DPI: Final = 200
_NEARLY_ALL: Final = 0.9
"""A role of more than this share of the tiles is not outlined."""
_OUTLINES: Final = {"recycled": ("#00a8e8", 0.7), "salient": ("#000000", 1.0)}
"""Colour and relative thickness per role, drawn in this order."""


def draw_overlay(
    path: Path,
    attention: SlideAttention,
    thumbnail_HWC: npt.NDArray[np.uint8],
    *,
    smooth_um: float = 0.0,
    scale: float = EVIDENCE_SCALE,
) -> None:
    """Write the picture of `overlay_figure` as a PNG.

    Raises:
        PredictionError: As `overlay_figure`.
        OutputError: If the file cannot be written.
    """
    figure = overlay_figure(attention, thumbnail_HWC, smooth_um=smooth_um, scale=scale)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 2})


def overlay_figure(
    attention: SlideAttention,
    thumbnail_HWC: npt.NDArray[np.uint8],
    *,
    smooth_um: float = 0.0,
    scale: float = EVIDENCE_SCALE,
) -> Figure:
    """The thumbnail, and over it the attention as it is, as percentiles, and the attribution by class.

    Attention is shown as a multiple of an even share: 1 is what every tile would get if all got the same. Salient and
    sub-salient tiles are outlined on the slide only, where the outlines hide no value however small the tiles.

    Args:
        attention: What to draw; it may have no tiles.
        thumbnail_HWC: (H, W, 3) RGB picture of the whole slide.
        smooth_um: See `rasterize`.
        scale: Attribution of full colour, in log-odds; the same for all slides that are to be compared.

    Raises:
        PredictionError: If a tile starts outside the slide, or a value is not finite.
    """
    check_on_slide(attention)
    picture = Size(thumbnail_HWC.shape[1], thumbnail_HWC.shape[0])
    maps = (raw_map(attention), percentile_map(attention), *evidence_maps(attention, scale))
    figure, (slide, *panels) = _figure_of(1 + len(maps), picture)
    write_head(figure, attention, smooth_um)
    _show(slide, thumbnail_HWC, "Slide")
    _scale_bar(slide, picture, picture_mpp_um(attention.grid, picture))
    for panel, one in zip(panels, maps, strict=True):
        heatmap = rasterize(attention.grid, one.values_N, picture, smooth_um=smooth_um)
        _show(panel, blend(thumbnail_HWC, heatmap.values_HW, one.highest, signed=one.signed), one.name)
        _colour_bar(panel, one)
    boxes_N4 = tile_boxes_px(attention.grid, picture)
    outlined_N = _outlined(attention.role_N)
    _outline(slide, boxes_N4, outlined_N)
    _legend(slide, outlined_N)
    return figure


@dataclass(frozen=True)
class _Layout:
    """Inches. A cell is a panel's name, its picture, and what stands below."""

    head: float = 0.68
    margin: float = 0.25
    gap: float = 0.25
    name: float = 0.28
    foot: float = 0.72
    least_cell_width: float = 3.1


def _figure_of(num_panels: int, picture: Size) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lay, aspect = _Layout(), picture.width / picture.height
    width = min(9.0 if aspect > 2 else 4.6, 6.2 * aspect)
    height = max(width / aspect, 0.02)
    cell = (max(width, lay.least_cell_width) + lay.gap, lay.name + height + lay.foot)
    columns = _num_columns(num_panels, *cell)
    rows = math.ceil(num_panels / columns)
    total_width = 2 * lay.margin + columns * cell[0] - lay.gap
    total_height = lay.head + rows * cell[1] + lay.margin / 2
    figure = Figure(figsize=(total_width, total_height), facecolor="white")
    FigureCanvasAgg(figure)
    panels = []
    for i in range(num_panels):
        row, column = divmod(i, columns)
        left = lay.margin + column * cell[0] + (cell[0] - lay.gap - width) / 2
        top = lay.head + row * cell[1] + lay.name
        box = (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
        panels.append(figure.add_axes(box))
    return figure, panels


def _num_columns(num_panels: int, width: float, height: float) -> int:
    """Columns of cells that make the whole nearest to 16:9, with no row left empty."""

    def far(columns: int) -> float:
        rows = math.ceil(num_panels / columns)
        empty = rows * columns - num_panels
        return abs(math.log(columns * width / (rows * height) / (16 / 9))) + 0.3 * empty

    return min(range(1, num_panels + 1), key=far)


def write_head(figure: Figure, attention: SlideAttention, smooth_um: float = 0.0) -> None:
    """The slide's name, label, prediction and counts at the top of a figure, small enough to fit."""
    width, height = figure.get_size_inches()
    label = f"label {attention.prediction.label}" if attention.prediction.label else "no label"
    best = int(np.argmax(attention.prediction.probabilities))
    predicted = f"predicted {attention.classes[best]} ({attention.prediction.probabilities[best]:.3f})"
    said = [label, predicted, _counts(attention.role_N)] + [f"smoothed by {smooth_um:g} µm"] * bool(smooth_um)
    line = "  ·  ".join(said)
    title = figure.text(0.25 / width, 1 - 0.32 / height, attention.slide_id, fontsize=13, weight="bold", color=INK)
    below = figure.text(0.25 / width, 1 - 0.56 / height, line, fontsize=9.5, color=GREY)
    for text in (title, below):
        text.set_parse_math(False)
        too_wide = text.get_window_extent().width / figure.bbox.width / (1 - 0.5 / width)
        text.set_fontsize(text.get_fontsize() / max(1.0, too_wide * 1.02))


def _counts(role_N: npt.NDArray[np.uint8]) -> str:
    if not len(role_N):
        return "no tiles"
    return f"{len(role_N):,} tile{'s' if len(role_N) > 1 else ''}: " + ", ".join(
        f"{(role_N == ROLES.index(name)).sum():,} {name}" for name in ("salient", "recycled")
    )


def _show(panel: Axes, image_HWC: npt.NDArray[np.uint8], name: str) -> None:
    """The image from edge to edge: data coordinates are the edges of the thumbnail's pixels."""
    height, width = image_HWC.shape[:2]
    panel.imshow(image_HWC, extent=(0, width, height, 0), aspect="auto")
    panel.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    panel.spines[:].set(color="#bbbbbb", linewidth=0.5)
    # Centred, so that a name wider than a narrow slide stays in its cell.
    panel.set_title(name, fontsize=9.5, color=INK, pad=4, parse_math=False)


def _points_per_px(panel: Axes) -> float:
    figure = panel.get_figure(root=True)
    assert figure is not None
    return float(figure.get_size_inches()[0] * panel.get_position().width * 72 / abs(np.diff(panel.get_xlim())[0]))


def _outlined(role_N: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Roles as they are outlined. A role of nearly all tiles (preset full) is not: it would only hide the slide."""
    shown_N = role_N.copy()
    for name in _OUTLINES:
        of_role_N = role_N == ROLES.index(name)
        if of_role_N.mean() > _NEARLY_ALL if len(role_N) else False:
            shown_N[of_role_N] = ROLES.index("other")
    return shown_N


def _outline(panel: Axes, boxes_N4: npt.NDArray[np.float64], role_N: npt.NDArray[np.uint8]) -> None:
    from matplotlib.collections import LineCollection

    for name, (colour, thickness) in _OUTLINES.items():
        boxes = boxes_N4[role_N == ROLES.index(name)]
        if not len(boxes):
            continue
        side_pt = _points_per_px(panel) * float(np.mean(boxes[:, 2] - boxes[:, 0]))
        line_pt = thickness * float(np.clip(0.12 * side_pt, 0.4, 1.4))
        rings = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3, 0, 1]].reshape(-1, 5, 2)
        panel.add_collection(LineCollection(list(rings), colors=colour, linewidths=line_pt, capstyle="projecting"))


def _legend(panel: Axes, role_N: npt.NDArray[np.uint8]) -> None:
    from matplotlib.lines import Line2D

    shown = [name for name in reversed(_OUTLINES) if (role_N == ROLES.index(name)).any()]
    handles = [
        Line2D([], [], marker="s", ls="", ms=6, mfc="none", mec=_OUTLINES[name][0], mew=_OUTLINES[name][1], label=name)
        for name in shown
    ]
    if handles:
        panel.legend(
            handles=handles, loc="upper center", bbox_to_anchor=_below(panel, 0.38), ncols=2, frameon=False,
            fontsize=8, labelcolor=INK, handletextpad=0.1, columnspacing=1.2, borderpad=0, borderaxespad=0,
        )  # fmt: skip


def _below(panel: Axes, inches: float) -> tuple[float, float]:
    """The middle of a panel's width, so far below its picture, in the panel's own coordinates."""
    figure = panel.get_figure(root=True)
    assert figure is not None
    return 0.5, -inches / float(figure.get_size_inches()[1] * panel.get_position().height)


def _scale_bar(panel: Axes, picture: Size, mpp_um: float) -> None:
    """A bar of round length under the middle of the picture, at most half as long as a cell is wide."""
    room_px = min(picture.width / 3, 1.5 * 72 / _points_per_px(panel))
    room_px = max(room_px, 0.5 * 72 / _points_per_px(panel))
    length_um = round_length_um(room_px * mpp_um)
    middle, half = picture.width / 2, length_um / mpp_um / 2
    _, y = _below(panel, 0.1)
    where = panel.get_xaxis_transform()
    panel.plot([middle - half, middle + half], [y, y], color=INK, lw=2, transform=where, clip_on=False,
               solid_capstyle="butt")  # fmt: skip
    panel.text(
        middle,
        _below(panel, 0.15)[1],
        length_text(length_um),
        fontsize=8,
        color=INK,
        ha="center",
        va="top",
        transform=where,
    )


def _colour_bar(panel: Axes, one: TileMap) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import FuncNorm, ListedColormap, Normalize
    from matplotlib.ticker import FixedLocator, Locator, MaxNLocator

    figure = panel.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    at = panel.get_position()
    middle, bar = (at.x0 + at.x1) / 2, 2.6 / width
    axes = figure.add_axes((middle - bar / 2, at.y0 - 0.2 / height, bar, 0.1 / height))
    norm: Normalize = Normalize(0, one.highest)
    ticks: Locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    if one.signed:
        there = partial(signed_share, highest=one.highest)
        norm = FuncNorm((there, partial(signed_value, highest=one.highest)), -one.highest, one.highest)
        ticks = FixedLocator([one.highest * share for share in (-1, -0.25, 0, 0.25, 1)])
    colours = ScalarMappable(norm, ListedColormap(colours_with_alpha(signed=one.signed)))
    pointed = "both" if one.beyond else "neither"
    figure.colorbar(colours, cax=axes, orientation="horizontal", ticks=ticks, extend=pointed, format="%g")
    axes.tick_params(labelsize=7.5, length=2, width=0.5, color=GREY, labelcolor=INK, pad=1.5)
    axes.set_xlabel(scale_text(one, "\n"), fontsize=8, color=GREY, labelpad=1.5, parse_math=False)
    axes.spines[:].set(color="#bbbbbb", linewidth=0.5)
