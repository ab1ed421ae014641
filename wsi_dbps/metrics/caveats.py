"""What a reader of metrics has to know about the cases that they were computed from."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wsi_dbps.formats.predictions import Predictions

FEW_CASES: Final = 20
"""A class with fewer cases than this is named in the caveats."""


def caveats_of_parts(
    folds: Mapping[str, Predictions],
    evaluated: Mapping[str, Predictions],
    subgroups: Mapping[str, Mapping[str, str]],
    *,
    validated: bool,
    num_learnt_from: int,
) -> Iterator[str]:
    """What a reader has to know about the parts that predictions were divided into, in sentences.

    Args:
        folds: All predictions, by fold.
        evaluated: Those of them that are evaluated, by fold.
        subgroups: Names of columns to the value of each case.
        validated: Whether threshold and temperature come from other predictions.
        num_learnt_from: How many cases of validation the model was trained on.
    """
    whole, rest = (sum(len(fold.cases) for fold in of.values()) for of in (folds, evaluated))
    if rest < whole:
        use = "" if validated else "; those of split val set threshold and temperature"
        yield f"{whole - rest} of {whole} cases are not of split test and are left out{use}."
    if num_learnt_from:
        yield (
            f"{num_learnt_from} cases of validation are of split train: the model has learnt from them, so threshold "
            "and temperature may not hold for others."
        )
    if len(folds) > 1:
        yield (
            f"Cases of {len(folds)} folds are pooled: probabilities of different models are ranked together. "
            "Each fold is also given alone."
        )
    for column, of in subgroups.items():
        if num := sum(row.case_id not in of for fold in evaluated.values() for row in fold.cases):
            yield f"{num} of {rest} cases have no {column} in the manifest and are in none of its subgroups."


def caveats(predictions: Predictions) -> tuple[str, ...]:
    """What a reader has to know about the splits and the labels of the cases, in sentences."""
    rows, found = predictions.cases, []
    splits = Counter(row.split for row in rows)
    for split, why in (("train", "the model has learnt from them"), ("val", "the checkpoint was chosen on them")):
        if splits[split]:
            found.append(
                f"{splits[split]} of {len(rows)} cases are of split {split}: {why}, so the results flatter it."
            )
    counts = Counter(row.label for row in rows)
    if counts[None]:
        found.append(f"{counts[None]} of {len(rows)} cases have no label and are left out.")
    for name in predictions.classes:
        if 0 < counts[name] < FEW_CASES:
            cases = "1 case is" if counts[name] == 1 else f"{counts[name]} cases are"
            found.append(f"Only {cases} labelled {name}: every number is uncertain, and so are the intervals.")
    return tuple(found)
