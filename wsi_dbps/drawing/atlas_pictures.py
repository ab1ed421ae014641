"""Pictures of the selection atlas: curves over training, and where on a slide the buffers were, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.core.files import written_whole
from wsi_dbps.core.geometry import Size
from wsi_dbps.drawing.colours import GREY, INK
from wsi_dbps.drawing.placement import length_text, picture_mpp_um, round_length_um
from wsi_dbps.drawing.raster import rasterize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wsi_dbps.core.geometry import TileGrid

DPI: Final = 150
_SALIENT, _RECYCLED = "#b30000", "#0072b2"


def draw_curves(path: Path, epochs: Sequence[Mapping[str, Any]], title: str) -> None:
    """Write a PNG: churn and entropy over the epochs, as the median over the slides with a band of the quartiles.

    Args:
        path: PNG to write.
        epochs: `epoch`, `explored`, and by curve `q1`, `median` and `q3`, as `atlas.json` has them.
        title: What the run is called.

    Raises:
        OutputError: If the file cannot be written.
    """
    figure = _figure(9.0, 3.9)
    left, right = figure.subplots(1, 2)
    text = figure.suptitle(title, fontsize=12, weight="bold", color=INK, x=0.01, ha="left")
    text.set_parse_math(False)
    at = [row["epoch"] for row in epochs]
    _band(left, epochs, "churn", _SALIENT, "salient")
    _band(left, epochs, "recycled_churn", _RECYCLED, "recycled")
    left.plot(at, [row["explored"] for row in epochs], color=GREY, lw=1, ls=":", label="slides explored at random")
    left.set(title="Churn: share replaced since the last visit", ylim=(0, 1.02))
    left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    _band(right, epochs, "entropy", INK, "")
    right.set(title="Entropy of attention over the chosen (1: even)", ylim=(0, 1.02))
    if not right.lines:
        right.text(0.5, 0.5, "nothing was scored", transform=right.transAxes, ha="center", color=GREY)
    for panel in (left, right):
        panel.set_xlim(min(at) - 0.5, max(at) + 0.5)
        panel.set_xlabel("epoch", color=GREY)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.title.set(fontsize=9.5, color=INK)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    _save(path, figure)


def draw_maps(
    path: Path,
    title: str,
    thumbnail_HWC: npt.NDArray[np.uint8],
    grid: TileGrid,
    first_N: npt.NDArray[np.int64],
    last_N: npt.NDArray[np.int64],
    times_N: npt.NDArray[np.int64],
    num_epochs: int,
) -> None:
    """Write a PNG: the slide, how often each tile was salient, and when for the first and the last time.

    Tiles that never were show the slide in grey; where tiles overlap, a pixel shows their mean.

    Args:
        path: PNG to write.
        title: What the slide is called, and its class.
        thumbnail_HWC: (H, W, 3) RGB picture of the whole slide.
        grid: Where the tiles lie.
        first_N: (N,) epoch of first choice, from 1; 0 for never.
        last_N: (N,) likewise the last.
        times_N: (N,) number of visits at which a tile was salient.
        num_epochs: The last epoch of the run.

    Raises:
        OutputError: If the file cannot be written.
    """
    picture = Size(thumbnail_HWC.shape[1], thumbnail_HWC.shape[0])
    aspect = picture.width / picture.height
    columns = 4 if aspect < 1.3 else 2 if aspect < 4 else 1
    rows = 4 // columns
    width = min({4: 3.4, 2: 5.5, 1: 9.0}[columns], max(6.2 * aspect, 1.6))
    figure = _figure(columns * (width + 0.1), rows * (min(max(width / aspect, 0.4), 6.2) + 0.95) + 0.4)
    slide, often, early, late = figure.subplots(rows, columns).flat
    text = figure.suptitle(title, fontsize=12, weight="bold", color=INK, x=0.01, ha="left")
    text.set_parse_math(False)
    edges = (0, picture.width, picture.height, 0)
    slide.imshow(thumbnail_HWC, extent=edges)
    _scale_bar(slide, picture, picture_mpp_um(grid, picture))
    grey_HW = thumbnail_HWC @ np.array([0.299, 0.587, 0.114]) / 255
    ever_N = times_N > 0
    for panel, values_N, highest, colours, name, unit in (
        (often, times_N, max(1, int(times_N.max(initial=1))), "YlOrRd", "How often salient", "visits"),
        (early, first_N, num_epochs, "viridis", "First salient", "epoch"),
        (late, last_N, num_epochs, "viridis", "Last salient", "epoch"),
    ):
        heatmap = rasterize(grid.take(ever_N), values_N[ever_N].astype(np.float64), picture)
        panel.imshow(0.45 + 0.55 * grey_HW, extent=edges, cmap="gray", vmin=0, vmax=1)
        shown = panel.imshow(heatmap.values_HW, extent=edges, cmap=colours, vmin=1, vmax=max(highest, 2), alpha=0.9,
                             interpolation="nearest")  # fmt: skip
        panel.set_title(name, fontsize=9.5, color=INK)
        _colour_bar(figure, panel, shown, unit)
    slide.set_title("Slide", fontsize=9.5, color=INK)
    for panel in (slide, often, early, late):
        panel.set(xticks=[], yticks=[], xlim=(0, picture.width), ylim=(picture.height, 0), anchor="N")
        panel.spines[:].set(color="#bbbbbb", linewidth=0.5)
    _save(path, figure)


def _colour_bar(figure: Figure, panel: Axes, shown: Any, unit: str) -> None:
    bar = figure.colorbar(shown, ax=panel, location="bottom", fraction=0.05, pad=0.03, aspect=30)
    bar.locator = _whole_numbers()
    bar.update_ticks()
    bar.set_label(unit, fontsize=8, color=GREY)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set(linewidth=0.5, edgecolor="#bbbbbb")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(path: Path, figure: Figure) -> None:
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})


def _band(panel: Axes, epochs: Sequence[Mapping[str, Any]], name: str, colour: str, label: str) -> None:
    rows = [(row["epoch"], *(row[name][key] for key in ("q1", "median", "q3"))) for row in epochs if name in row]
    if rows:
        at, low, middle, high = np.array(rows).T
        panel.fill_between(at, low, high, color=colour, alpha=0.2, lw=0)
        panel.plot(at, middle, color=colour, lw=1.6, marker="o" if len(at) < 30 else None, ms=3, label=label)


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(6, integer=True)


def _scale_bar(panel: Axes, picture: Size, mpp_um: float) -> None:
    from matplotlib.transforms import offset_copy

    length_um = round_length_um(picture.width / 3 * mpp_um)
    panel.set_xlabel(length_text(length_um), fontsize=8, labelpad=7)
    half = length_um / mpp_um / picture.width / 2
    below = offset_copy(panel.transAxes, panel.get_figure(root=True), y=-4, units="points")
    panel.plot([0.5 - half, 0.5 + half], [0, 0], color=INK, lw=2, transform=below, clip_on=False, solid_capstyle="butt")
