"""The predictions of a case from those of its slides, and of a cohort from those of its folds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.formats.predictions import Prediction, Predictions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def pool_cases(slides: Sequence[Prediction], classes: Sequence[str]) -> tuple[Prediction, ...]:
    """One prediction per case: the mean of its slides' probabilities, every slide counting the same.

    A label belongs to the case, so the slides of a case that have one must agree, and a slide without takes theirs; the
    same holds for the split.

    Args:
        slides: Predictions of slides, in any order.
        classes: Class names in the order of the probabilities.

    Returns:
        The cases in the order in which they first appear; `slide_id` is None, `num_patches` the sum.

    Raises:
        PredictionError: If the slides of a case differ in label or split, or a slide does not have one probability per
            class.
    """
    of_case: dict[str, list[Prediction]] = {}
    for slide in slides:
        if len(slide.probabilities) != len(classes):
            raise PredictionError(
                f"{slide.slide_id}: {len(slide.probabilities)} probabilities for the {len(classes)} classes "
                f"{', '.join(classes)}"
            )
        of_case.setdefault(slide.case_id, []).append(slide)
    return tuple(_pooled(case_id, members) for case_id, members in of_case.items())


def _pooled(case_id: str, slides: Sequence[Prediction]) -> Prediction:
    columns = zip(*(slide.probabilities for slide in slides), strict=True)
    return Prediction(
        slide_id=None,
        case_id=case_id,
        split=common_value(case_id, "split", {slide.slide_id: slide.split for slide in slides}),
        label=common_value(case_id, "label", {slide.slide_id: slide.label for slide in slides}),
        num_patches=sum(slide.num_patches for slide in slides),
        probabilities=tuple(math.fsum(column) / len(slides) for column in columns),
    )


def common_value(case_id: str, what: str, of_slide: Mapping[str | None, str | None]) -> str | None:
    """What the slides of a case agree on; None if none has a value.

    Raises:
        PredictionError: If two differ.
    """
    known = {value: slide_id for slide_id, value in of_slide.items() if value is not None}
    if len(known) > 1:
        found = ", ".join(f"{value!r} on slide {slide_id}" for value, slide_id in sorted(known.items()))
        raise PredictionError(f"case {case_id}: its slides differ in {what}: {found}; correct the manifest")
    return next(iter(known), None)


def pool_folds(folds: Mapping[str, Predictions]) -> Predictions:
    """All rows of the folds, in their order.

    Raises:
        PredictionError: If two folds have different classes, or share a case or a slide.
    """
    first_name, first = next(iter(folds.items()))
    fold_of: dict[tuple[str, str | None], str] = {}
    for name, fold in folds.items():
        if fold.classes != first.classes:
            raise PredictionError(
                f"{first_name} has the classes {', '.join(first.classes)}, {name} has {', '.join(fold.classes)}; folds "
                "must have the same, in the same order"
            )
        for kind, row_id in [("case", row.case_id) for row in fold.cases] + [
            ("slide", r.slide_id) for r in fold.slides
        ]:
            if (other := fold_of.setdefault((kind, row_id), name)) != name:
                raise PredictionError(
                    f"{kind} {row_id} is in {other} and in {name}; folds have disjoint cases. For an ensemble of "
                    "several models, predict with all of them: `wsi-dbps predict RUN1 RUN2 ...`"
                )
    slides, cases = (tuple(row for fold in folds.values() for row in getattr(fold, of)) for of in ("slides", "cases"))
    return Predictions(first.classes, slides, cases)
