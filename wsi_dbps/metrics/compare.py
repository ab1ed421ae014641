"""Two models on the same cases: is one better?

N: cases, B: samples. Every difference is B's value less A's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.metrics.bootstrap import Estimate, MetricsConfig, estimates, plain
from wsi_dbps.metrics.delong import AurocTest, paired_test, reason_key, testable_classes
from wsi_dbps.metrics.perfect import why_no_interval
from wsi_dbps.metrics.scores import NO_INTERVAL, Rows, Score, rows_of, scores_of, why_absent
from wsi_dbps.metrics.thresholds import Chosen, check_validation, choose, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from wsi_dbps.formats.predictions import Predictions
    from wsi_dbps.metrics.thresholds import Threshold

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreDifference:
    """A score of both models."""

    a: float
    b: float
    difference: Estimate
    """b less a, its interval from samples in which both models have the same cases."""


@dataclass(frozen=True)
class McNemar:
    """Cases that one model alone predicts right."""

    only_a_right: int
    only_b_right: int
    p: float
    """Two-sided, exact: of the cases on which the models part, each is as likely to be right."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same labelled cases. What does not exist is absent and has its reason in `reasons`."""

    classes: tuple[str, ...]
    config: MetricsConfig
    num: int
    """Labelled cases that both have."""
    num_unlabelled: int
    """Cases that both have, left out."""
    num_left_out: int
    """Cases that only one has, left out."""
    class_counts: Mapping[str, int]
    threshold_a: Threshold | None
    """None where no validation set it: the most probable class is the predicted one."""
    threshold_b: Threshold | None
    scores: Mapping[str, ScoreDifference]
    """As `LevelMetrics.scores`; also one against the rest by class (`class_auroc.<class>`, `class_auprc.<class>`)."""
    delong: Mapping[str, AurocTest]
    """`auroc` for two classes, else one against the rest by class."""
    mcnemar: McNemar | None
    reasons: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is None is left out."""
        return plain(self)


def compare(
    a: Predictions,
    b: Predictions,
    config: MetricsConfig | None = None,
    *,
    validation_a: Predictions | None = None,
    validation_b: Predictions | None = None,
    common: bool = False,
) -> Comparison:
    """Differences by case of every score, DeLong's paired test of the AUROC, and McNemar's of the predicted classes.

    What is evaluated, and each model's threshold, are as in `evaluate`.

    Args:
        a: The model to compare with.
        b: The model in question.
        config: How.
        validation_a: What a's threshold is chosen on.
        validation_b: What b's threshold is chosen on.
        common: Leave out cases that only one of the two has.

    Raises:
        PredictionError: If classes or labels differ, or one has cases that the other lacks and `common` is not set.
    """
    config = config or MetricsConfig()
    if a.classes != b.classes:
        raise PredictionError(
            f"A has the classes {', '.join(a.classes)}, B has {', '.join(b.classes)}; they must be the same, in order"
        )
    (a, chosen_a), (b, chosen_b) = _prepared(a, validation_a), _prepared(b, validation_b)
    shared = _shared_cases(a, b, common=common)
    rows_a, rows_b = _rows(a, chosen_a, shared), _rows(b, chosen_b, shared)
    counts = np.bincount(rows_a.label_N, minlength=len(a.classes)).tolist()
    scores = scores_of(a.classes, config.num_calibration_bins)
    reasons = {name: why for name, score in scores.items() if (why := why_absent(score, counts, a.classes))}
    there = {name: score for name, score in scores.items() if name not in reasons}
    differences = _differences(there, rows_a, rows_b, config)
    if 1 in counts:
        reasons["intervals"] = "a class has a single case; an interval needs two or more in each class"
    else:
        reasons |= why_no_interval({name: score.difference for name, score in differences.items()})
    delong, why_not = _delong(rows_a, rows_b, a.classes, config)
    return Comparison(
        classes=a.classes,
        config=config,
        num=len(rows_a.label_N),
        num_unlabelled=len(shared) - len(rows_a.label_N),
        num_left_out=len({row.case_id for row in (*a.cases, *b.cases)}) - len(shared),
        class_counts=dict(zip(a.classes, counts, strict=True)),
        threshold_a=chosen_a.threshold,
        threshold_b=chosen_b.threshold,
        scores=differences,
        delong=delong,
        mcnemar=_mcnemar(rows_a, rows_b),
        reasons={**reasons, **why_not, **_no_threshold(chosen_a, chosen_b)},
    )


def _prepared(predictions: Predictions, validation: Predictions | None) -> tuple[Predictions, Chosen]:
    evaluated, validation = parts(predictions, validation)
    if validation is None:
        return evaluated, Chosen()
    check_validation(evaluated, validation)
    return evaluated, choose(validation)


def _no_threshold(a: Chosen, b: Chosen) -> dict[str, str]:
    """Why a model has no threshold, where that is not because neither has validation."""
    found = {}
    for key, own, other in (("threshold_a", a, b), ("threshold_b", b, a)):
        if why := own.reasons.get("threshold"):
            found[key] = why
        elif other.threshold and not own.threshold:
            found[key] = "it has no validation, so its most probable class is held against the other's by threshold"
    return found


def _shared_cases(a: Predictions, b: Predictions, *, common: bool) -> set[str]:
    label_a, label_b = ({row.case_id: row.label for row in of.cases} for of in (a, b))
    missing = {
        name: sorted(has - lacks) for name, has, lacks in (("B", {*label_a}, {*label_b}), ("A", {*label_b}, {*label_a}))
    }
    if not common and any(missing.values()):
        said = "; ".join(
            f"{name} lacks {len(ids)} ({', '.join(ids[:5])}{' ...' if len(ids) > 5 else ''})"
            for name, ids in missing.items()
            if ids
        )
        raise PredictionError(
            f"the cases differ: {said}; predict the same cases, or compare those of both with --common"
        )
    shared = {*label_a} & {*label_b}
    if not shared:
        raise PredictionError("A and B have no case in common")
    for case_id in sorted(shared):
        if label_a[case_id] != label_b[case_id]:
            raise PredictionError(
                f"case {case_id}: label {label_a[case_id] or 'unknown'} in A, {label_b[case_id] or 'unknown'} in B; "
                "predict both with the same manifest"
            )
    return shared


def _rows(predictions: Predictions, chosen: Chosen, shared: set[str]) -> Rows:
    rows = [row for row in predictions.cases if row.case_id in shared]
    return rows_of(rows, predictions.classes, dict.fromkeys(shared, Chosen(chosen.threshold)))


def _differences(
    scores: Mapping[str, Score], rows_a: Rows, rows_b: Rows, config: MetricsConfig
) -> dict[str, ScoreDifference]:
    def less(of_a: Callable[[Floats], Floats], of_b: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
        return lambda weights_BN: of_b(weights_BN) - of_a(weights_BN)

    once = np.ones((1, len(rows_a.label_N)))
    a, b = ({name: score.on(rows) for name, score in scores.items()} for rows in (rows_a, rows_b))
    compute = {name: less(a[name], b[name]) for name in scores}
    found = estimates(compute, rows_a.case_N, rows_a.case_label_K, config, no_interval=NO_INTERVAL)
    return {
        name: ScoreDifference(float(a[name](once)[0]), float(b[name](once)[0]), difference)
        for name, difference in found.items()
    }


def _delong(
    rows_a: Rows, rows_b: Rows, classes: tuple[str, ...], config: MetricsConfig
) -> tuple[dict[str, AurocTest], dict[str, str]]:
    testable, reasons = testable_classes(rows_a.label_N, classes)
    found = {}
    for name, (c, positive_N) in testable.items():
        found[name] = paired_test(
            rows_a.probability_NC[:, c], rows_b.probability_NC[:, c], positive_N, config.confidence
        )
        if found[name].p is None:
            reasons[reason_key(name)] = "the difference has no variance: both rank every case alike, or without error"
    return found, reasons


def _mcnemar(rows_a: Rows, rows_b: Rows) -> McNemar | None:
    from scipy.stats import binomtest

    if not len(rows_a.label_N):
        return None
    right_a_N, right_b_N = (rows.predicted_N == rows.label_N for rows in (rows_a, rows_b))
    only_a, only_b = int((right_a_N & ~right_b_N).sum()), int((right_b_N & ~right_a_N).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)
