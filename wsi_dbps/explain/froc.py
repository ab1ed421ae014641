"""Free-response ROC by the rule of CAMELYON16: which lesions a heatmap's peaks hit, against how many hit nothing.

Source: the challenge's evaluation page (camelyon16.grand-challenge.org/Evaluation) and its published evaluation script;
Ehteshami Bejnordi et al., JAMA 2017;318(22):2199-2210. What is computed:

- Annotated areas grow by half of `MERGE_UM` on every side, so that areas less than `MERGE_UM` apart are one lesion, and
  their holes are filled. The script does so on a raster of 32 level-0 pixels; here the outlines themselves are used.
- A lesion whose longest extent, the major axis of the ellipse of its second moments, is below `ITC_UM` + `MERGE_UM` is
  isolated tumour cells: it need not be found, and a detection in it counts neither as hit nor as false.
- A detection is a point with a confidence. It hits the lesion it lies in; several in one lesion count once, with the
  highest confidence. Every other detection is false, on slides with and without lesions.
- The false positives of a threshold are averaged over all slides. At each of `RATES` the sensitivity is the highest of
  any threshold with at most so many. (The script draws lines between its thresholds; that is the same, unless a hit and
  a false positive share a confidence.) The score is the mean over the six.

L: lesions of a slide, K: its detections, S: slides, T: thresholds, B: bootstrap samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from shapely.geometry.base import BaseGeometry

    from wsi_dbps.core.geometry import TileGrid

MERGE_UM: Final = 75.0
"""Areas closer than this, about five tumour cells, are one lesion."""
ITC_UM: Final = 200.0
"""A lesion of smaller extent is isolated tumour cells."""
_SIMPLER_UM: Final = 0.5
"""How far an outline may be moved to save vertices."""
RATES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Mean false positives per slide at which sensitivity is read."""


@dataclass(frozen=True)
class SlideHits:
    """What became of one slide's lesions and detections."""

    found: npt.NDArray[np.floating]
    """Per lesion that counts, the highest confidence of a detection in it; -inf where there is none."""
    false: npt.NDArray[np.floating]
    """Confidences of the detections that lie in no lesion."""


def peaks(grid: TileGrid, scores_N: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Rows of the tiles that score above all tiles that touch or overlap them; of equals the first row counts more."""
    from scipy.spatial import cKDTree

    if not len(grid):
        return np.zeros(0, np.int64)
    pairs = cKDTree(grid.origins_lv0).query_pairs(grid.tile_lv0 + 1.0, p=np.inf, output_type="ndarray")
    first, second = pairs.min(axis=1), pairs.max(axis=1)
    lower = np.where(scores_N[second] > scores_N[first], first, second)
    is_peak_N = np.ones(len(grid), bool)
    is_peak_N[lower] = False
    return np.flatnonzero(is_peak_N)


def lesion_regions(lesion: BaseGeometry, mpp_lv0_um: float) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The lesions to find, as polygons without holes that do not touch, and which of them are isolated tumour cells."""
    import shapely

    outline = shapely.simplify(_filled(lesion), _SIMPLER_UM / mpp_lv0_um)
    regions = shapely.get_parts(_filled(shapely.buffer(outline, MERGE_UM / 2 / mpp_lv0_um)))
    extent_um = [major_axis(region) * mpp_lv0_um for region in regions]
    return regions, np.array(extent_um) < ITC_UM + MERGE_UM


def _filled(areas: BaseGeometry) -> BaseGeometry:
    import shapely

    return shapely.union_all([shapely.Polygon(part.exterior) for part in shapely.get_parts(areas)])


def major_axis(region: BaseGeometry) -> float:
    """Length of the major axis of the ellipse that has a polygon's second moments; holes are not counted.

    Examples:
        >>> import shapely
        >>> round(major_axis(shapely.Point(5, 5).buffer(10, quad_segs=999)), 3)
        20.0
    """
    import shapely

    points = shapely.get_coordinates(region.exterior)
    x, y = (points - shapely.get_coordinates(shapely.Polygon(region.exterior).centroid)).T
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]

    def moment(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
        mixed = 2 * a[:-1] * b[:-1] + a[:-1] * b[1:] + a[1:] * b[:-1] + 2 * a[1:] * b[1:]
        return float((mixed * cross).sum() / 12 / cross.sum())

    moments = np.array([[moment(x, x), moment(x, y)], [moment(x, y), moment(y, y)]])
    return float(4 * np.sqrt(np.linalg.eigvalsh(moments)[-1]))


def slide_hits(
    points_K2: npt.NDArray[np.floating],
    confidence_K: npt.NDArray[np.floating],
    lesion: BaseGeometry | None,
    mpp_lv0_um: float,
) -> SlideHits:
    """Which detections of a slide hit which lesions.

    Args:
        points_K2: (K, 2) detections (x, y) in level-0 pixels.
        confidence_K: (K,) finite; any scale that is the same on all slides.
        lesion: Annotated areas in level-0 pixels; None or empty for a slide without.
        mpp_lv0_um: µm per level-0 pixel.
    """
    import shapely

    confidence_K = np.asarray(confidence_K, np.float64)
    if lesion is None or lesion.is_empty:
        return SlideHits(np.zeros(0), confidence_K)
    regions, is_itc = lesion_regions(lesion, mpp_lv0_um)
    shapely.prepare(regions)
    inside_LK = np.stack([shapely.intersects_xy(region, *points_K2.T) for region in regions])
    found_L = np.where(inside_LK, confidence_K, -np.inf).max(axis=1, initial=-np.inf)
    return SlideHits(found_L[~is_itc], confidence_K[~inside_LK.any(axis=0)])


def sensitivities(
    slides: Sequence[SlideHits], weights_BS: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """(B, 6) sensitivity at `RATES`; their mean over the last axis is the score.

    Args:
        slides: All slides, those without lesions too; at least one has a lesion that counts.
        weights_BS: (B, S) how often each slide counts; once if None.
    """
    weights_BS = np.ones((1, len(slides))) if weights_BS is None else weights_BS
    confidences = np.unique(np.concatenate([slide.found for slide in slides]))
    thresholds_T = confidences[np.isfinite(confidences)]
    found_ST, false_ST = (
        np.stack([(len(values) - np.searchsorted(np.sort(values), thresholds_T)).astype(np.float64) for values in all_])
        for all_ in ([slide.found for slide in slides], [slide.false for slide in slides])
    )
    lesions_B = weights_BS @ [float(len(slide.found)) for slide in slides]
    sensitivity_BT = weights_BS @ found_ST / lesions_B[:, None]
    false_BT, slides_B1 = weights_BS @ false_ST, weights_BS.sum(axis=1)[:, None]
    at_rates = [np.where(false_BT <= rate * slides_B1, sensitivity_BT, 0.0).max(1, initial=0.0) for rate in RATES]
    return np.stack(at_rates, axis=1)
