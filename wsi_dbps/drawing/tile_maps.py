"""What is drawn of a slide's attention: a number per tile, its name, its unit, and its colour scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.drawing.raster import percentile_ranks

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsi_dbps.formats.attention import SlideAttention

Values = Literal["percentile", "raw", "evidence"]
MAX_CLASSES: Final = 6
"""Most classes whose evidence a picture shows."""
EVIDENCE_SCALE: Final = 1.0
"""Evidence of full colour, in log-odds, where no other is asked for: a tile that alone takes a probability of 50 % to
73 %. It is the same for every slide, so that pictures can be compared whether they are drawn together or one by one."""


@dataclass(frozen=True)
class TileMap:
    """One number per tile, and how it is coloured."""

    name: str
    unit: str
    values_N: npt.NDArray[np.float64]
    highest: float
    """The value of full colour; above 0."""
    signed: bool = False
    """Whether colours run from -`highest` over none at 0, by the square root of the value, or from 0 in proportion."""
    beyond: bool = False
    """Whether values lie outside the scale."""


def chosen_map(attention: SlideAttention, values: Values, scale: float = EVIDENCE_SCALE) -> TileMap:
    """The map to draw where only one can be; of evidence, that for the predicted class, on the scale given.

    Raises:
        PredictionError: If evidence is asked for and there is none, or it cannot be drawn.
    """
    if values == "percentile":
        return percentile_map(attention)
    if values == "raw":
        return raw_map(attention)
    if attention.evidence_NC is None:
        raise PredictionError(
            f"{attention.slide_id}: its attention file holds no evidence by class; predict again, or ask for --values "
            "raw or percentile"
        )
    shown = shown_evidence(attention, scale)
    assert shown is not None
    return shown


def shown_evidence(attention: SlideAttention, scale: float = EVIDENCE_SCALE) -> TileMap | None:
    """The one map of evidence to show where only one can be: for the predicted class, of two classes for the second.

    Raises:
        PredictionError: If the evidence does not fit tiles and classes, or is not finite.
    """
    maps = evidence_maps(attention, scale)
    best = attention.classes[int(np.argmax(attention.prediction.probabilities))]
    return next((one for one in maps if one.name == f"Evidence for {best}"), maps[0] if maps else None)


def scale_text(one: TileMap, between: str = "; ") -> str:
    """A map's unit, and whether some tiles lie beyond its colours."""
    return one.unit + f"{between}some tiles lie beyond ±{one.highest:g}" * one.beyond


def ranks(weights_N: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """(N,) 1 for the highest; equals in row order.

    Examples:
        >>> ranks(np.array([0.1, 0.7, 0.1])).tolist()
        [2, 1, 3]
    """
    ranks_N = np.empty(len(weights_N), np.int64)
    ranks_N[np.argsort(-weights_N, kind="stable")] = np.arange(1, len(weights_N) + 1)
    return ranks_N


def raw_map(attention: SlideAttention) -> TileMap:
    """Attention as a multiple of an even share: 1 is what every tile would get if all got the same.

    The scale reaches 2 at least, so that even attention does not look like attention to everything.
    """
    shares_N = attention.weights_N.astype(np.float64) * len(attention.weights_N)
    return TileMap("Attention", "multiple of an even share", shares_N, max(2.0, shares_N.max(initial=0)))


def percentile_map(attention: SlideAttention) -> TileMap:
    """The order of the attention, which shows what the few highest weights outshine."""
    return TileMap("Attention percentile", "% of tiles with less", 100 * percentile_ranks(attention.weights_N), 100.0)


def evidence_maps(attention: SlideAttention, scale: float = EVIDENCE_SCALE) -> tuple[TileMap, ...]:
    """What each patch says for and against each class; none where the attention file holds no evidence.

    Of two classes one map: for the second, less that for the first, which is what moves the prediction. Of more, the
    contribution to each class's logit less the mean over all classes, because a number added to every logit changes no
    probability; for the most probable `MAX_CLASSES` in their order.

    Args:
        attention: Of a slide.
        scale: Evidence of full colour; what lies beyond has the full colour too, and `beyond` says so.

    Raises:
        PredictionError: If the evidence does not fit tiles and classes, or is not finite.
    """
    evidence_NC = checked_evidence(attention)
    if evidence_NC is None:
        return ()
    if len(attention.classes) == 2:
        named = {attention.classes[1]: evidence_NC[:, 1] - evidence_NC[:, 0]}
        unit = f"contribution to the log-odds against {attention.classes[0]}"
    else:
        centred_NC = evidence_NC - evidence_NC.mean(axis=1, keepdims=True)
        probable = np.argsort(attention.prediction.probabilities)[::-1][:MAX_CLASSES]
        named = {attention.classes[c]: centred_NC[:, c] for c in sorted(probable)}
        unit = "contribution to the logit, less the mean of all classes"
    return tuple(
        TileMap(f"Evidence for {name}", unit, values_N, scale, True, bool(np.abs(values_N).max(initial=0) > scale))
        for name, values_N in named.items()
    )


def checked_evidence(attention: SlideAttention) -> npt.NDArray[np.float64] | None:
    """(N, C) contribution of each patch to each class's logit, if the attention file holds it.

    Raises:
        PredictionError: If it does not fit tiles and classes, or is not finite.
    """
    found = attention.evidence_NC
    if found is None:
        return None
    if found.shape != (len(attention.grid), len(attention.classes)) or not np.isfinite(found).all():
        raise PredictionError(
            f"{attention.slide_id}: its attention file holds evidence of shape {found.shape} for "
            f"{len(attention.grid)} tiles and {len(attention.classes)} classes, or some that is not finite; "
            "predict again"
        )
    return found.astype(np.float64)
