"""Attention over the thumbnail of its slide, as a picture to look at and to print.

Three panels: the slide; its attention in proportion to the weights, from nothing to the highest; and the order of the
attention, which shows what the few highest weights outshine. Side by side, or one below the other for wide slides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from wsi_dbps.files import written_whole
from wsi_dbps.geometry import Size
from wsi_dbps.heatmaps.placement import check_on_slide, picture_mpp_um, round_length_um, tile_boxes_px
from wsi_dbps.heatmaps.raster import Heatmap, percentile_ranks, rasterize
from wsi_dbps.records import ROLES

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wsi_dbps.records import SlideAttention

DPI: Final = 200
_COLOURS: Final = "YlOrRd"
"""Its lightness falls all the way, so that it reads under every colour blindness and in grey."""
_INK, _GREY = "#1a1a1a", "#666666"
_OUTLINES: Final = {"recycled": ("#00a8e8", 0.7), "salient": ("#000000", 1.0)}
"""Colour and relative thickness per role, drawn in this order."""
_FIRST_ALPHA, _LAST_ALPHA = 0.2, 0.95
"""How much of the tissue the lowest and the highest value hide."""
_GREY_STRENGTH: Final = 0.6
"""Contrast left to the grey tissue, so that dark tissue is not taken for attention."""


def draw_overlay(
    path: Path,
    attention: SlideAttention,
    thumbnail_HWC: npt.NDArray[np.uint8],
    slide_lv0: Size,
    mpp_lv0_um: float,
) -> None:
    """Write a PNG: the thumbnail, and over it the attention as it is and as percentiles.

    Attention is shown as a multiple of an even share: 1 is what every tile would get if all got the same. Salient and
    recycled tiles are outlined on the slide only, where the outlines hide no value however small the tiles.

    Args:
        path: PNG to write.
        attention: What to draw; it may have no tiles.
        thumbnail_HWC: (H, W, 3) RGB picture of the whole slide.
        slide_lv0: Slide size in level-0 pixels.
        mpp_lv0_um: µm per pixel at level 0.

    Raises:
        PredictionError: If a tile starts outside the slide, or a weight is not finite.
        OutputError: If the file cannot be written.
    """
    check_on_slide(attention, slide_lv0)
    picture = Size(thumbnail_HWC.shape[1], thumbnail_HWC.shape[0])
    figure, (slide, raw, ranked) = _figure_of_three(picture)
    _head(figure, attention)
    _show(slide, thumbnail_HWC, "Slide")
    _scale_bar(slide, picture, picture_mpp_um(slide_lv0, picture, mpp_lv0_um))
    shares_N = attention.weights_N.astype(np.float64) * len(attention.weights_N)
    heats = (
        (raw, "Attention", shares_N, max(1.0, shares_N.max(initial=0)), "multiple of an even share"),
        (ranked, "Attention percentile", 100 * percentile_ranks(attention.weights_N), 100.0, "% of tiles with less"),
    )
    for panel, name, values_N, highest, unit in heats:
        heatmap = rasterize(attention.coords_N2, attention.tile_lv0, values_N, slide_lv0, picture, mpp_lv0_um)
        _show(panel, blend(thumbnail_HWC, heatmap, highest), name)
        _colour_bar(panel, highest, unit)
    boxes_N4 = tile_boxes_px(attention.coords_N2, attention.tile_lv0, slide_lv0, picture)
    _outline(slide, boxes_N4, attention.role_N)
    _legend(slide, attention.role_N)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 4})


def blend(thumbnail_HWC: npt.NDArray[np.uint8], heatmap: Heatmap, highest: float) -> npt.NDArray[np.uint8]:
    """The thumbnail in grey with the heatmap over it, the more opaque the higher; untouched pixels stay grey.

    Args:
        thumbnail_HWC: (H, W, 3) RGB.
        heatmap: Values over the same pixels.
        highest: The value of full colour; 0 is the lowest.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    steps = _colours_with_alpha().astype(np.float32)
    step_HW = np.rint(np.nan_to_num(heatmap.values_HW / highest).clip(0, 1) * (len(steps) - 1)).astype(np.intp)
    alpha_HW = np.where(np.isnan(heatmap.values_HW), np.float32(0), steps[step_HW, 3])
    grey_HW = thumbnail_HWC @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    behind_HW = (1 - alpha_HW) * (1 - (1 - grey_HW) * _GREY_STRENGTH)
    mixed_HWC = np.empty(thumbnail_HWC.shape, np.uint8)
    for channel in range(3):
        mixed_HWC[..., channel] = np.rint((alpha_HW * steps[step_HW, channel] + behind_HW) * 255)
    return mixed_HWC


def _colours_with_alpha() -> npt.NDArray[np.float64]:
    """(256, 4) RGBA from the lowest value to the highest, in [0, 1]."""
    import matplotlib

    share = np.linspace(0, 1, 256)
    colours = matplotlib.colormaps[_COLOURS](share)
    colours[:, 3] = _FIRST_ALPHA + (_LAST_ALPHA - _FIRST_ALPHA) * share
    return colours


@dataclass(frozen=True)
class _Layout:
    """Inches. A cell is a panel's name, its picture, and what stands below."""

    head: float = 0.68
    margin: float = 0.25
    gap: float = 0.25
    name: float = 0.28
    foot: float = 0.72
    least_cell_width: float = 3.1


def _figure_of_three(picture: Size) -> tuple[Figure, tuple[Axes, Axes, Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lay, aspect = _Layout(), picture.width / picture.height
    below = aspect > 2
    width = min(9.0 if below else 4.6, 6.2 * aspect)
    height = max(width / aspect, 0.02)
    cell_width, cell_height = max(width, lay.least_cell_width), lay.name + height + lay.foot
    columns, rows = (1, 3) if below else (3, 1)
    total_width = 2 * lay.margin + columns * cell_width + (columns - 1) * lay.gap
    total_height = lay.head + rows * cell_height + lay.margin / 2
    figure = Figure(figsize=(total_width, total_height), facecolor="white")
    FigureCanvasAgg(figure)
    panels = []
    for i in range(3):
        column, row = (0, i) if below else (i, 0)
        left = lay.margin + column * (cell_width + lay.gap) + (cell_width - width) / 2
        top = lay.head + row * cell_height + lay.name
        box = (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
        panels.append(figure.add_axes(box))
    return figure, (panels[0], panels[1], panels[2])


def _head(figure: Figure, attention: SlideAttention) -> None:
    width, height = figure.get_size_inches()
    label = f"label {attention.prediction.label}" if attention.prediction.label else "no label"
    best = int(np.argmax(attention.prediction.probabilities))
    predicted = f"predicted {attention.classes[best]} ({attention.prediction.probabilities[best]:.3f})"
    line = f"{label}  ·  {predicted}  ·  {_counts(attention.role_N)}"
    title = figure.text(0.25 / width, 1 - 0.32 / height, attention.slide_id, fontsize=13, weight="bold", color=_INK)
    below = figure.text(0.25 / width, 1 - 0.56 / height, line, fontsize=9.5, color=_GREY)
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
    panel.set_title(name, fontsize=9.5, color=_INK, pad=4)


def _points_per_px(panel: Axes) -> float:
    figure = panel.get_figure(root=True)
    assert figure is not None
    return float(figure.get_size_inches()[0] * panel.get_position().width * 72 / abs(np.diff(panel.get_xlim())[0]))


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
            fontsize=8, labelcolor=_INK, handletextpad=0.1, columnspacing=1.2, borderpad=0, borderaxespad=0,
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
    name = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    middle, half = picture.width / 2, length_um / mpp_um / 2
    _, y = _below(panel, 0.1)
    where = panel.get_xaxis_transform()
    panel.plot([middle - half, middle + half], [y, y], color=_INK, lw=2, transform=where, clip_on=False,
               solid_capstyle="butt")  # fmt: skip
    panel.text(middle, _below(panel, 0.15)[1], name, fontsize=8, color=_INK, ha="center", va="top", transform=where)


def _colour_bar(panel: Axes, highest: float, unit: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    figure = panel.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    at = panel.get_position()
    middle, bar = (at.x0 + at.x1) / 2, 2.6 / width
    axes = figure.add_axes((middle - bar / 2, at.y0 - 0.2 / height, bar, 0.1 / height))
    colours = ScalarMappable(Normalize(0, highest), ListedColormap(_colours_with_alpha()))
    figure.colorbar(colours, cax=axes, orientation="horizontal", ticks=MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(labelsize=7.5, length=2, width=0.5, color=_GREY, labelcolor=_INK, pad=1.5)
    axes.set_xlabel(unit, fontsize=8, color=_GREY, labelpad=1.5)
    axes.spines[:].set(color="#bbbbbb", linewidth=0.5)
