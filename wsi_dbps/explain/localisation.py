"""Does a heatmap lie on the lesion? Scores of tiles against what a person has drawn, by slide and over a cohort.

Documented in docs/formats/localisation.md. N: tiles of a slide, S: slides, B: bootstrap samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from wsi_dbps.cohort.annotations import lesion_shares, read_lesion
from wsi_dbps.cohort.each_slide import each_slide
from wsi_dbps.core.errors import PredictionError, SlideError
from wsi_dbps.core.geometry import TileGrid
from wsi_dbps.explain import froc
from wsi_dbps.formats.attention import attention_path, read_attention
from wsi_dbps.formats.features import open_bag
from wsi_dbps.metrics.bootstrap import TWO_CASES, Estimate, MetricsConfig, estimates, mean_estimate
from wsi_dbps.metrics.perfect import share_interval
from wsi_dbps.slides.open import open_slide
from wsi_dbps.tiling.plan import resolve_mpp

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.formats.attention import SlideAttention
    from wsi_dbps.formats.predictions import Prediction, Predictions

Score = Literal["attention", "evidence"]
LESION_SHARE: Final = 0.5
"""A patch with at least this share of lesion is lesion; one with none is not; those between are left out."""
FIXED_PERCENTILE: Final = 0.9
"""The share of a slide's tiles left out of its predicted lesion, where no validation slides say better."""
_GRID: Final = np.arange(50, 100) / 100
FORMAT: Final = "wsi-dbps localisation"
FORMAT_VERSION: Final = 1


def patch_auroc(scores_N: npt.NDArray[np.floating], lesion_share_N: npt.NDArray[np.floating]) -> float | None:
    """Chance that a lesion patch scores above a patch without lesion; None where a slide has not both.

    Examples:
        >>> import numpy as np
        >>> patch_auroc(np.array([0.1, 0.7, 0.2]), np.array([0.0, 1.0, 0.0]))
        1.0
    """
    from sklearn.metrics import roc_auc_score

    clear_N = (lesion_share_N == 0) | (lesion_share_N >= LESION_SHARE)
    lesion_n = lesion_share_N[clear_N] >= LESION_SHARE
    if lesion_n.all() or not lesion_n.any():
        return None
    return float(roc_auc_score(lesion_n, scores_N[clear_N]))


def dice(
    scores_N: npt.NDArray[np.floating], lesion_share_N: npt.NDArray[np.floating], percentile: float
) -> float | None:
    """Dice coefficient, by area, of the tiles from a percentile of the slide's scores up and the lesion in all tiles.

    A tile that is half lesion is half right. None where no tile has lesion.

    Examples:
        >>> import numpy as np
        >>> dice(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.0, 0.5, 1.0]), 0.75)
        0.8
    """
    if not lesion_share_N.any():
        return None
    called_N = scores_N >= np.quantile(scores_N, percentile, method="higher")
    return float(2 * lesion_share_N[called_N].sum() / (called_N.sum() + lesion_share_N.sum()))


@dataclass(frozen=True)
class LocatedSlide:
    """One slide's tiles beside its lesion."""

    slide_id: str
    case_id: str
    label: str | None
    scores_N: npt.NDArray[np.float64]
    lesion_share_N: npt.NDArray[np.float64]
    hits: froc.SlideHits


def tile_scores(attention: SlideAttention, score: Score) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(N,) what ranks the tiles within their slide, and (N,) their confidence, which is comparable between slides.

    Attention says where a slide was looked at, not whether anything is there. Its confidence is the probability of
    anything but the first class, for the tile of highest weight, and in proportion for the others. Evidence is a tile's
    contribution to the mean logit of the other classes minus that to the first class's, and its own confidence.

    Raises:
        PredictionError: If evidence is asked for and was not written, or a score is not finite.
    """
    if score == "evidence":
        if attention.evidence_NC is None:
            raise PredictionError(
                f"{attention.slide_id}: its attention file holds no evidence; predict again, or use --score attention"
            )
        scores_N = attention.evidence_NC[:, 1:].mean(axis=1, dtype=np.float64) - attention.evidence_NC[:, 0]
        confidence_N = scores_N
    else:
        scores_N = attention.weights_N.astype(np.float64)
        confidence_N = (1 - attention.prediction.probabilities[0]) * scores_N / scores_N.max(initial=1e-300)
    if not np.isfinite(scores_N).all():
        raise PredictionError(f"{attention.slide_id}: {score} is not finite everywhere; the model has diverged")
    return scores_N, confidence_N


@dataclass(frozen=True)
class Located:
    """What became of the predicted slides of a cohort."""

    slides: tuple[LocatedSlide, ...]
    """Those whose lesion is known."""
    unknown: tuple[str, ...] = ()
    """Ids of slides that are neither annotated nor of the first class."""
    failed: tuple[str, ...] = ()
    """One line for each slide whose attention or annotations cannot be used, beginning with its id."""


def locate_slides(
    predictions: Predictions,
    folder: Path,
    cohort: Cohort,
    score: Score = "attention",
    names: Collection[str] = (),
    *,
    caches: Path | None = None,
) -> Located:
    """Lay the tiles of every predicted slide on its lesion; a slide with which it cannot be done is named.

    A slide's lesion is known by its annotations, or by its label if that is the model's first class: there is none.

    Args:
        predictions: Which slides.
        folder: Where their attention is.
        cohort: Their labels and annotations.
        score: What tiles are scored by.
        names: As in `read_lesion`.
        caches: Where attention files do not say size and mpp of their slides: `slide_grid`.

    Raises:
        PredictionError: If a predicted slide is not in the cohort, or all slides failed, or all that are annotated.
    """
    of_cohort, rows = {record.slide_id: record for record in cohort.records}, predictions.slides
    if strange := [row.slide_id for row in rows if row.slide_id not in of_cohort]:
        raise PredictionError(f"{folder}: predicts {strange[0]}, which is not in the cohort; give its own manifest")
    free, of_id = predictions.classes[0], {str(row.slide_id): row for row in rows}
    records = [of_cohort[slide_id] for slide_id in of_id]
    known = [record for record in records if record.annotations is not None or record.label == free]
    slides: list[LocatedSlide] = []

    def one(record: SlideRecord) -> None:
        path = attention_path(folder, record.slide_id)
        attention = _attention_of(of_id[record.slide_id], predictions.classes, path)
        if not attention.grid.knows("slide_lv0", "mpp_lv0_um"):
            attention = attention.with_slide(slide_grid(record, caches))
        slides.append(_located(record, attention, score, names, is_free=record.label == free))

    failed = each_slide("localising", known, one)
    needed = {record.slide_id for record in known if record.annotations is not None} or {r.slide_id for r in known}
    if failed and not needed & {slide.slide_id for slide in slides}:
        raise PredictionError(f"no slide could be laid on its annotations; {failed[0]}")
    unknown = tuple(record.slide_id for record in records if record not in known)
    return Located(tuple(slides), unknown, failed)


def _attention_of(row: Prediction, classes: tuple[str, ...], path: Path) -> SlideAttention:
    """The attention behind a row of predictions, of tiles whose size is known."""
    attention = read_attention(path)
    if attention.slide_id != row.slide_id:
        raise PredictionError(f"{path}: holds slide {attention.slide_id!r}; predict again")
    found = attention.prediction.probabilities
    if attention.classes != classes or not np.allclose(found, row.probabilities, rtol=0, atol=1e-6):
        raise PredictionError(f"{path}: is not of the prediction in predictions.csv; predict again")
    if not attention.grid.tile_lv0 > 0:
        raise PredictionError(
            f"{path}: the features do not say how large a tile is, so none can be laid on annotations; make them with "
            "`wsi-dbps embed`"
        )
    return attention


def slide_grid(record: SlideRecord, caches: Path | None) -> TileGrid:
    """A slide's size and mpp, from its cache or features, or else from the slide file itself, which then has no tiles.

    Raises:
        CacheError: If the folder has no such cache, or features that do not say.
        SlideError: If the slide cannot be opened.
        MissingMppError: If nothing says how large a pixel is.
    """
    if caches is not None:
        return open_bag(caches, record.slide_id, mpp_lv0_um=record.mpp_um, slide=record.file).grid
    if record.file is None:
        raise SlideError(f"{record.slide_id}: neither --caches nor a path in the manifest say how large the slide is")
    with open_slide(record.file) as slide:
        mpp_um = resolve_mpp(record.slide_id, record.mpp_um, slide.info.mpp_um)[0]
        return TileGrid(np.empty((0, 2), np.int64), np.nan, slide.info.size_lv0, mpp_um)


def _located(
    record: SlideRecord, attention: SlideAttention, score: Score, names: Collection[str], *, is_free: bool
) -> LocatedSlide:
    grid = attention.grid
    lesion = read_lesion(record, grid.slide_lv0, names) if record.annotations is not None else None
    if lesion is not None and lesion.is_empty and not is_free:
        raise PredictionError(
            f"{record.slide_id}: {record.annotations} holds no area of lesion, though the slide is labelled "
            f"{record.label}; empty its cell in the manifest if it was not annotated"
        )
    scores_N, confidence_N = tile_scores(attention, score)
    if not 0 < grid.tile_lv0 < np.inf:
        raise PredictionError(
            f"{record.slide_id}: its features do not say how large a tile is; make them with `wsi-dbps embed`"
        )
    if ((grid.origins_lv0 < 0) | (grid.origins_lv0 >= (grid.slide_lv0.width, grid.slide_lv0.height))).any():
        raise PredictionError(
            f"{record.slide_id}: tiles lie outside the slide of {grid.slide_lv0} px; its attention is of another slide"
        )
    shares_N = np.zeros(len(grid)) if lesion is None else lesion_shares(lesion, grid)
    rows = froc.peaks(grid, confidence_N)
    hits = froc.slide_hits(grid.origins_lv0[rows] + grid.tile_lv0 / 2, confidence_N[rows], lesion, grid.mpp_lv0_um)
    return LocatedSlide(record.slide_id, record.case_id, record.label, scores_N, shares_N, hits)


def best_percentile(slides: Sequence[LocatedSlide]) -> float | None:
    """The percentile of highest mean Dice, of 50, 51 ... 99 %; None if no slide has lesion."""
    with_lesion = [slide for slide in slides if slide.lesion_share_N.any()]
    if not with_lesion:
        return None
    means = [np.mean([dice(s.scores_N, s.lesion_share_N, p) or 0.0 for s in with_lesion]) for p in _GRID]
    return float(_GRID[int(np.argmax(means))])


def summarise(
    slides: Sequence[LocatedSlide],
    unknown: Sequence[str],
    score: Score,
    *,
    percentile: float | None = None,
    config: MetricsConfig | None = None,
) -> dict[str, Any]:
    """The content of localisation.json; what does not exist is absent, and `reasons` says why.

    Args:
        slides: Of `locate_slides`.
        unknown: Likewise.
        score: What the slides were scored by.
        percentile: The threshold of Dice as chosen on validation slides; None for `FIXED_PERCENTILE` alone.
        config: Samples of cases behind each interval, its confidence, and the seed.
    """
    config = config or MetricsConfig()
    threshold = FIXED_PERCENTILE if percentile is None else percentile
    aurocs, dices, fixed = (
        [patch_auroc(slide.scores_N, slide.lesion_share_N) for slide in slides],
        *([dice(s.scores_N, s.lesion_share_N, at) for s in slides] for at in (threshold, FIXED_PERCENTILE)),
    )
    found: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "score": score,
        "slides": [
            {
                "slide_id": slide.slide_id,
                "case_id": slide.case_id,
                "label": slide.label,
                "patch_auroc": auroc,
                "dice": overlap,
                "lesion_share": float(slide.lesion_share_N.mean()) if len(slide.lesion_share_N) else 0.0,
            }
            for slide, auroc, overlap in zip(slides, aurocs, dices, strict=True)
        ],
        "num_slides": len(slides),
    }
    reasons = {}
    if unknown:
        reasons["slides"] = f"{len(unknown)} predicted slides are not annotated and left out: {', '.join(unknown)}"
    if auroc := _mean_of(slides, aurocs, config):
        found["patch_auroc"] = auroc
    else:
        reasons["patch_auroc"] = "no slide has both a tile that is at least half lesion and one without"
    if overlap := _mean_of(slides, dices, config):
        found["dice"] = overlap | {"threshold": threshold}
        if percentile is not None:
            found["dice_fixed"] = _mean_of(slides, fixed, config) | {"threshold": FIXED_PERCENTILE}
    else:
        reasons["dice"] = "no tile has lesion"
    if curve := _froc(slides, config):
        found["froc"] = curve
    else:
        reasons["froc"] = "no slide has a lesion that counts; those of isolated tumour cells do not"
    return found | {"reasons": reasons | _no_intervals(found)}


def _mean_of(slides: Sequence[LocatedSlide], values: Sequence[float | None], config: MetricsConfig) -> dict[str, float]:
    """The mean over the slides that have a value, with its interval; empty where none has."""
    known = [(slide.case_id, value) for slide, value in zip(slides, values, strict=True) if value is not None]
    if not known:
        return {}
    case_ids, some = zip(*known, strict=True)
    return mean_estimate(some, case_ids, config).to_dict()


def _froc(slides: Sequence[LocatedSlide], config: MetricsConfig) -> dict[str, Any]:
    """Score and curve; cases with a lesion that counts and others are drawn apart, so that every sample has one."""
    hits = [slide.hits for slide in slides]
    if not any(len(hit.found) for hit in hits):
        return {}
    cases, case_S = np.unique([slide.case_id for slide in slides], return_inverse=True)
    has_lesion_K = np.bincount(case_S, [len(hit.found) for hit in hits], len(cases)) > 0
    mean = {"score": lambda weights_BS: froc.sensitivities(hits, weights_BS).mean(axis=1)}
    estimate = estimates(mean, case_S, has_lesion_K.astype(np.intp), config)["score"]
    num_with_lesion = int(has_lesion_K.sum())
    enough = 1 not in (num_with_lesion, len(cases) - num_with_lesion)
    if enough and (all_or_none := round(estimate.value, 12)) in (0, 1):
        # Resampling cases that were all found, or all missed, shows no spread; other cases would still differ.
        estimate = Estimate(all_or_none, *share_interval(all_or_none, num_with_lesion, config.confidence))
    found = estimate.to_dict()
    return {"score": found.pop("value"), **found} | {
        "false_positives_per_slide": list(froc.RATES),
        "sensitivity": froc.sensitivities(hits)[0].tolist(),
    }


def _no_intervals(found: dict[str, Any]) -> dict[str, str]:
    needs = {
        "patch_auroc": TWO_CASES,
        "dice": TWO_CASES,
        "froc": "an interval needs two cases or more with a lesion that counts, and so without, that differ",
    }
    lacking = {name: why for name, why in needs.items() if name in found and "low" not in found[name]}
    said = [
        f"{', '.join(name for name in lacking if lacking[name] == why)}: {why}"
        for why in dict.fromkeys(lacking.values())
    ]
    return {"intervals": "; ".join(said)} if said else {}
