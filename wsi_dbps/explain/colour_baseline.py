"""What colour alone tells: the baseline to print beside every result.

A logistic regression on the mean and standard deviation of red, green and blue, learnt from the same slides and the
same slide labels as the model. If it does as well, the model may have learnt the stain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from wsi_dbps.formats.patch_cache import PatchCache

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
