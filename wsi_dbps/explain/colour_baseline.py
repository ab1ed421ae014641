"""What colour alone tells: the baseline to print beside every result.

A logistic regression on the mean and standard deviation of red, green and blue, learnt from the same slides and the
same slide labels as the model. If it does as well, the model may have learnt the stain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_dbps.cohort.annotations import lesion_shares, read_lesion
from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.explain.localisation import patch_auroc
from wsi_dbps.formats.attention import attention_path, read_attention
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.predictions import read_predicted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import SlideRecord

_BATCH = 256


def patch_colours(cache: PatchCache) -> npt.NDArray[np.float64]:
    """(N, 6) mean and standard deviation of each channel, 0 to 255, of every patch."""
    rows = []
    for start in range(0, len(cache), _BATCH):
        pixels = cache.patches(range(start, min(start + _BATCH, len(cache)))).astype(np.float32)
        rows.append(np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], axis=1))
    return np.concatenate(rows).astype(np.float64) if rows else np.zeros((0, 6))


@dataclass(frozen=True)
class ColourBaseline:
    """Two logistic regressions: on a slide's colours, and on a patch's, each patch bearing its slide's label."""

    slide_model: Any
    patch_model: Any

    @classmethod
    def fit(cls, slides: Sequence[npt.NDArray[np.float64]], positive: Sequence[bool]) -> ColourBaseline:
        """Learn from the colours of each training slide's patches, (N, 6) each, and whether the slide is positive."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        patch_labels = np.repeat(np.asarray(positive), [len(colours) for colours in slides])
        models = [make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)) for _ in range(2)]
        models[0].fit(np.stack([_summary(colours) for colours in slides]), np.asarray(positive))
        models[1].fit(np.concatenate(slides), patch_labels)
        return cls(*models)

    def slide_score(self, colours_N6: npt.NDArray[np.float64]) -> float:
        """Probability that a slide is positive."""
        return float(self.slide_model.predict_proba(_summary(colours_N6)[None])[0, 1])

    def patch_scores(self, colours_N6: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(N,) how positive each patch looks."""
        scores: npt.NDArray[np.float64] = self.patch_model.decision_function(colours_N6)
        return scores


def _summary(colours_N6: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.concatenate([colours_N6.mean(0), colours_N6.std(0)])


@dataclass(frozen=True)
class BesideColour:
    """A model on the test slides of a cohort, beside what colour alone tells."""

    slide_auroc: float
    colour_slide_auroc: float
    patch_auroc: float
    """Mean over positive slides of the AUROC of attention against the annotated lesion; NaN where there is none."""
    colour_patch_auroc: float
    num_positive: int
    """Slides in that mean."""


def beside_colour(manifest: Path, caches: Path, predictions: Path) -> BesideColour:
    """Fit the baseline to the training slides of a manifest, and hold predictions of its test slides against it.

    The second class is the positive one; its slides are annotated.

    Raises:
        PredictionError: If predictions or attention cannot be read.
        CacheError: If a cache cannot be read.
    """
    from sklearn.metrics import roc_auc_score

    cohort = read_manifest(manifest)
    positive, training = cohort.classes[1], cohort.part("train").records

    def colours(record: SlideRecord) -> npt.NDArray[np.float64]:
        return patch_colours(PatchCache(caches / f"{record.slide_id}.h5"))

    baseline = ColourBaseline.fit([colours(r) for r in training], [r.label == positive for r in training])
    probability = {row.slide_id: row.probabilities[1] for row in read_predicted(predictions).slides}
    records = [record for record in cohort.part("test").records if record.slide_id in probability]
    of_slide = {record.slide_id: colours(record) for record in records}
    truth = [record.label == positive for record in records]

    def located(record: SlideRecord) -> tuple[float | None, float | None]:
        grid = PatchCache(caches / f"{record.slide_id}.h5").grid
        share_N = lesion_shares(read_lesion(record, grid.slide_lv0), grid)
        weights_N = read_attention(attention_path(predictions, record.slide_id)).weights_N
        return patch_auroc(weights_N, share_N), patch_auroc(baseline.patch_scores(of_slide[record.slide_id]), share_N)

    pairs = [located(record) for record, known in zip(records, truth, strict=True) if known]
    known_P2 = np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)
    attention, colour = known_P2.mean(axis=0) if len(known_P2) else (np.nan, np.nan)
    return BesideColour(
        slide_auroc=float(roc_auc_score(truth, [probability[r.slide_id] for r in records])),
        colour_slide_auroc=float(roc_auc_score(truth, [baseline.slide_score(of_slide[r.slide_id]) for r in records])),
        patch_auroc=float(attention),
        colour_patch_auroc=float(colour),
        num_positive=len(known_P2),
    )
