"""Does attention lie on the lesion? Patch scores against a known lesion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LESION_SHARE: Final = 0.5
"""A patch with at least this share of lesion is lesion; one with none is not; those between are left out."""


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
