"""What the model took for most and for least: patches of a slide side by side, all of the same size in µm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from wsi_dbps.core.files import written_whole
from wsi_dbps.drawing.colours import GREY, INK
from wsi_dbps.drawing.overlay import DPI, write_head
from wsi_dbps.drawing.placement import length_text, round_length_um
from wsi_dbps.drawing.tile_maps import percentile_map, ranks, raw_map, shown_evidence
from wsi_dbps.formats.attention import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.axes import Axes

    from wsi_dbps.formats.attention import SlideAttention

PER_KIND: Final = 8
"""Patches of each kind, in one row."""
_CELL, _TEXT, _GAP, _MARGIN, _HEAD, _NAME = 1.45, 0.62, 0.12, 0.25, 0.72, 0.28
"""Inches: a patch, what stands below it, between two, around all, the title, the name of a row."""


def sheet_rows(attention: SlideAttention) -> dict[str, npt.NDArray[np.int64]]:
    """Rows of the patches to show: the highest salient, the highest recycled, and the lowest of all, best first.

    Patches of equal attention come in row order.
    """
    falling = np.argsort(-attention.weights_N, kind="stable")
    shown = {
        f"Highest {name}": falling[attention.role_N[falling] == ROLES.index(name)][:PER_KIND]
        for name in ("salient", "recycled")
    }
    return shown | {"Lowest": np.argsort(attention.weights_N, kind="stable")[:PER_KIND]}


def draw_sheet(
    path: Path,
    attention: SlideAttention,
    patches: Callable[[Sequence[int]], npt.NDArray[np.uint8]],
) -> None:
    """Write a PNG with up to `PER_KIND` patches of each kind, and below each its scores and its corner at level 0.

    Args:
        path: PNG to write.
        attention: Whose patches.
        patches: Gives (n, P, P, 3) RGB pixels of the rows asked for.

    Raises:
        PredictionError: If evidence does not fit, or is not finite.
        OutputError: If the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = {name: rows for name, rows in sheet_rows(attention).items() if len(rows)}
    columns, step = max([4, *map(len, kinds.values())]), _CELL + _GAP
    width = 2 * _MARGIN + columns * step - _GAP
    height = _HEAD + len(kinds) * (_NAME + _CELL + _TEXT) + _MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    write_head(figure, attention)
    legend, caption = _captions(attention)
    pixels = patches([int(row) for rows in kinds.values() for row in rows])
    top, shown = _HEAD, 0
    for name, rows in kinds.items():
        figure.text(_MARGIN / width, 1 - (top + 0.18) / height, name, fontsize=9.5, weight="bold", color=INK)
        for column, row in enumerate(rows):
            left, bottom = _MARGIN + column * step, height - top - _NAME - _CELL
            panel = figure.add_axes((left / width, bottom / height, _CELL / width, _CELL / height))
            panel.imshow(pixels[shown], interpolation="lanczos")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(color="#bbbbbb", linewidth=0.5)
            panel.text(0, -0.04, caption(int(row)), fontsize=7.2, color=INK, va="top", linespacing=1.35,
                       transform=panel.transAxes, parse_math=False)  # fmt: skip
            if shown == 0:
                _scale_bar(panel, pixels.shape[2], attention.grid.tile_lv0 * attention.grid.mpp_lv0_um)
            shown += 1
        top += _NAME + _CELL + _TEXT
    figure.text(_MARGIN / width, 0.12 / height, legend, fontsize=7.2, color=GREY, parse_math=False)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 4})


def _captions(attention: SlideAttention) -> tuple[str, Callable[[int], str]]:
    """What the numbers below a patch are, and those of a row."""
    percentile_N, shares_N = percentile_map(attention).values_N, raw_map(attention).values_N
    evidence = shown_evidence(attention)
    said = "# rank by attention · multiple of an even share  |  percentile"
    if evidence is not None:
        said += f" · {evidence.name[0].lower()}{evidence.name[1:]}"

    def caption(row: int) -> str:
        second = f"{percentile_N[row]:.2f} %" + (f" · {evidence.values_N[row]:+.2g}" if evidence is not None else "")
        x, y = attention.grid.origins_lv0[row].tolist()
        return f"#{rank_N[row]:,} · {shares_N[row]:.2g}×\n{second}\n({x}, {y})"

    rank_N = ranks(attention.weights_N)
    return f"{said}  |  corner at level 0", caption


def _scale_bar(panel: Axes, side_px: int, side_um: float) -> None:
    length_um = round_length_um(side_um / 2.5)
    length_px, edge = length_um / side_um * side_px, 0.05 * side_px
    for colour, thickness in (("white", 4.0), (INK, 2.0)):
        panel.plot([edge, edge + length_px], [side_px - edge] * 2, color=colour, lw=thickness, solid_capstyle="butt")
    panel.text(edge, side_px - 1.6 * edge, length_text(length_um), fontsize=7, color=INK, va="bottom",
               bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0})  # fmt: skip
