import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from wsi_dbps.core.errors import ConfigError, PredictionError
from wsi_dbps.core.settings import build
from wsi_dbps.formats.predictions import Prediction, Predictions
from wsi_dbps.metrics.metrics import MetricsConfig, evaluate
from wsi_dbps.metrics.pooling import pool_cases
from wsi_dbps.metrics.scores import Rows, auprc, auroc, scores_of

FEW = MetricsConfig(num_bootstrap=200)
grid = st.integers(0, 6).map(lambda i: i / 6)  # few distinct scores, so that ties are common


@st.composite
def cohorts(draw, classes=("normal", "tumor")):
    """Two or more cases of each class, some with several slides."""
    rows = []
    for case in range(draw(st.integers(2, 6)) * len(classes)):
        for slide in range(draw(st.integers(1, 2))):
            scores = np.array([draw(grid) + 0.01 for _ in classes])
            p = tuple((scores / scores.sum()).tolist())
            rows.append(Prediction(f"s{case}-{slide}", f"c{case:02d}", "test", classes[case % len(classes)], 1, p))
    return Predictions(classes, tuple(rows), pool_cases(rows, classes))


def levels(predictions, settings=FEW):
    metrics = evaluate(predictions, settings)
    return [(metrics.cases, predictions.cases), (metrics.slides, predictions.slides)]


def arrays(predictions, rows):
    return (
        np.array([predictions.classes.index(row.label) for row in rows]),
        np.array([row.probabilities for row in rows]),
    )


def naive_ece(told, seen, num_bins=10):
    """Row by row from the definition."""
    bins = {}
    for p, right in zip(told.tolist(), seen.tolist(), strict=True):
        bins.setdefault(min(int(p * num_bins), num_bins - 1), []).append((p, right))
    return sum(abs(sum(p for p, _ in rows) - sum(right for _, right in rows)) for rows in bins.values()) / len(told)


@settings(deadline=None, max_examples=30)
@given(cohorts())
def test_with_two_classes_every_value_is_that_of_scikit_learn(predictions):
    for level, rows in levels(predictions, MetricsConfig(num_bootstrap=2)):
        y, p = arrays(predictions, rows)
        predicted = p.argmax(axis=1)
        expected = {
            "auroc": sk.roc_auc_score(y, p[:, 1]),
            "auprc": sk.average_precision_score(y, p[:, 1]),
            "accuracy": sk.accuracy_score(y, predicted),
            "balanced_accuracy": sk.recall_score(y, predicted, average="macro", labels=[0, 1]),
            "f1": sk.f1_score(y, predicted, zero_division=0),
            "brier": sk.brier_score_loss(y, p[:, 1]),
            "sensitivity": sk.recall_score(y, predicted),
            "specificity": sk.recall_score(y, predicted, pos_label=0),
            "kappa": sk.cohen_kappa_score(y, predicted),
            "log_loss": sk.log_loss(y, p),
            "ece": naive_ece(p[:, 1], y == 1),
        }
        assert {name: found.value for name, found in level.scores.items()} == pytest.approx(expected)
        assert level.confusion == tuple(map(tuple, sk.confusion_matrix(y, predicted, labels=[0, 1]).tolist()))
        curve = level.roc["tumor"]
        assert sk.auc(curve.false_positive_rate, curve.true_positive_rate) == pytest.approx(expected["auroc"])


@settings(deadline=None, max_examples=20)
@given(cohorts(("a", "b", "c")))
def test_with_more_classes_every_value_is_that_of_scikit_learn(predictions):
    for level, rows in levels(predictions, MetricsConfig(num_bootstrap=2)):
        y, p = arrays(predictions, rows)
        predicted, hot = p.argmax(axis=1), np.eye(3)[y]
        expected = {
            "auroc": sk.roc_auc_score(hot, p, average="macro"),
            "auprc": sk.average_precision_score(hot, p, average="macro"),
            "accuracy": sk.accuracy_score(y, predicted),
            "balanced_accuracy": sk.recall_score(y, predicted, average="macro"),
            "f1": sk.f1_score(y, predicted, average="macro"),
            "brier": ((p - hot) ** 2).sum(axis=1).mean(),
            "kappa": sk.cohen_kappa_score(y, predicted),
            "kappa_linear": sk.cohen_kappa_score(y, predicted, weights="linear", labels=[0, 1, 2]),
            "kappa_quadratic": sk.cohen_kappa_score(y, predicted, weights="quadratic", labels=[0, 1, 2]),
            "log_loss": sk.log_loss(y, p),
            "ece": naive_ece(p.max(axis=1), predicted == y),
        }
        assert {name: found.value for name, found in level.scores.items()} == pytest.approx(expected)
        for c, name in enumerate(predictions.classes):
            assert level.class_auroc[name].value == pytest.approx(sk.roc_auc_score(y == c, p[:, c]))
            assert level.class_auprc[name].value == pytest.approx(sk.average_precision_score(y == c, p[:, c]))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), grid, st.integers(0, 3)), min_size=2, max_size=12))
def test_a_weight_counts_like_that_many_rows(rows):
    y, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    repeated_y, repeated_score = np.repeat(y, weight), np.repeat(score, weight)
    if len(set(repeated_y.tolist())) < 2:
        return
    predicted = (score > 0.5).astype(np.intp)
    table = Rows(y.astype(np.intp), np.stack([1 - score, score], 1), predicted, y, y)
    weights = weight[None].astype(float)
    scores = scores_of(("normal", "tumor"), 10)
    expected = {
        "kappa": sk.cohen_kappa_score(repeated_y, np.repeat(predicted, weight)),
        "log_loss": sk.log_loss(repeated_y, repeated_score, labels=[False, True]),
        "ece": naive_ece(repeated_score, repeated_y),
    }
    for name, value in expected.items():
        assert scores[name].compute(weights, table)[0] == pytest.approx(value)
    assert auroc(weights, table, 1)[0] == pytest.approx(sk.roc_auc_score(repeated_y, repeated_score))
    assert auprc(weights, table, 1)[0] == pytest.approx(sk.average_precision_score(repeated_y, repeated_score))


@settings(deadline=None, max_examples=50)
@given(cohorts())
def test_the_interval_of_the_auroc_contains_it(predictions):
    for level, _ in levels(predictions, MetricsConfig(num_bootstrap=500)):
        auroc = level.scores["auroc"]
        if auroc.low is None:
            assert "interval.auroc" in level.reasons
            continue
        assert 0 <= auroc.low <= auroc.value + 1e-12
        assert auroc.value - 1e-12 <= auroc.high <= 1


@settings(deadline=None, max_examples=20)
@given(cohorts(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(predictions, random):
    shuffled = [list(predictions.cases), list(predictions.slides)]
    for rows in shuffled:
        random.shuffle(rows)
    other = Predictions(predictions.classes, tuple(shuffled[1]), tuple(shuffled[0]))
    assert evaluate(other, FEW) == evaluate(predictions, FEW)


@settings(deadline=None, max_examples=20)
@given(cohorts())
def test_slides_that_repeat_their_case_add_no_certainty(predictions):
    slides = [replace(case, slide_id=f"{case.case_id}-{i}") for case in predictions.cases for i in range(3)]
    metrics = evaluate(Predictions(predictions.classes, tuple(slides), predictions.cases), FEW)
    for name in ("auroc", "accuracy", "brier", "f1"):
        by_case, by_slide = metrics.cases.scores[name], metrics.slides.scores[name]
        assert [by_slide.low, by_slide.high] == pytest.approx([by_case.low, by_case.high])


def test_better_scores_give_a_better_and_tighter_auroc(make_predictions):
    weak, strong = (evaluate(make_predictions(80, skill=s)).cases.scores["auroc"] for s in (0.5, 3.0))
    assert weak.value < strong.value
    assert weak.high - weak.low > strong.high - strong.low


def test_the_calibration_bins_hold_every_row_and_its_label(make_predictions):
    for classes in (("a", "b"), ("a", "b", "c")):
        for level, rows in levels(make_predictions(50, classes)):
            assert sum(b.num for b in level.calibration) == len(rows)
            observed = sum(b.num * b.observed_share for b in level.calibration) / len(rows)
            expected = level.class_counts["b"] / len(rows) if len(classes) == 2 else level.scores["accuracy"].value
            assert observed == pytest.approx(expected)


def test_five_cases_by_hand(scored):
    metrics = evaluate(scored(("normal", 0.1), ("normal", 0.6), ("tumor", 0.4), ("tumor", 0.8), ("tumor", 0.9)), FEW)
    values = {name: found.value for name, found in metrics.cases.scores.items()}
    assert values == pytest.approx(
        {
            "auroc": 5 / 6,  # of six pairs one is in the wrong order
            "auprc": (1 + 1 + 3 / 4) / 3,
            "accuracy": 3 / 5,
            "balanced_accuracy": (1 / 2 + 2 / 3) / 2,
            "f1": 2 * 2 / (3 + 3),
            "brier": (0.01 + 0.36 + 0.36 + 0.04 + 0.01) / 5,
            "sensitivity": 2 / 3,
            "specificity": 1 / 2,
            "kappa": 1 - (2 / 5) / (12 / 25),  # by chance 2/5 x 3/5 twice
            "log_loss": -np.log([0.9, 0.4, 0.4, 0.8, 0.9]).sum() / 5,
            "ece": (0.1 + 0.6 + 0.6 + 0.2 + 0.1) / 5,  # each in a bin of its own
        }
    )
    assert metrics.cases.confusion == ((1, 1), (1, 2))
    assert metrics.cases.class_counts == {"normal": 2, "tumor": 3}


def test_equal_probabilities_count_as_the_first_class(scored):
    predictions = scored(("normal", 0.5), ("tumor", 0.5))
    assert evaluate(predictions, FEW).cases.confusion == ((1, 0), (1, 0))
    assert predictions.predicted(predictions.cases[0]) == "normal"


def test_rows_without_label_are_counted_and_left_out(make_predictions):
    predictions = make_predictions(30, num_unlabelled=4)
    with_them = evaluate(predictions, FEW)
    labelled = [tuple(r for r in rows if r.label) for rows in (predictions.slides, predictions.cases)]
    without = evaluate(Predictions(predictions.classes, *labelled), FEW)
    assert with_them.cases.scores == without.cases.scores
    assert (with_them.cases.num, with_them.cases.num_unlabelled) == (26, 4)
    assert "4 of 30 cases have no label and are left out." in with_them.caveats


def test_without_any_label_nothing_exists_and_the_reason_is_given(make_predictions):
    for level, _ in levels(make_predictions(5, num_unlabelled=5)):
        assert level.scores == {}
        assert set(level.reasons.values()) == {"no row has a label"}
        assert level.roc == {}
        assert level.calibration == ()


def test_no_rows_at_all_are_no_error():
    metrics = evaluate(Predictions(("a", "b", "c"), (), ()))
    assert metrics.cases.num == 0
    assert metrics.cases.reasons["class_auroc.b"] == "no row has a label"


def test_with_one_class_only_what_needs_both_is_absent_with_its_reason(scored):
    level = evaluate(scored(("tumor", 0.9), ("tumor", 0.2)), FEW).cases
    assert set(level.scores) == {"accuracy", "brier", "sensitivity", "log_loss", "ece"}
    assert level.reasons == {
        **dict.fromkeys(("auroc", "auprc", "balanced_accuracy", "f1", "specificity"), "no row is labelled normal"),
        "kappa": "every row is labelled tumor",
        "delong": "two or more cases of tumor and two or more of the rest are needed",
    }
    assert level.roc == {}


def test_of_three_classes_one_may_lack_rows(make_predictions):
    predictions = replace(make_predictions(20, ("a", "b")), classes=("a", "b", "c"))
    slides = tuple(replace(row, probabilities=(*row.probabilities, 0.0)) for row in predictions.slides)
    level = evaluate(Predictions(("a", "b", "c"), slides, pool_cases(slides, "abc")), FEW).cases
    assert set(level.class_auroc) == {"a", "b"}
    assert level.reasons["class_auroc.c"] == level.reasons["auroc"] == "no row is labelled c"


def test_a_class_of_one_case_has_values_but_no_intervals(scored):
    metrics = evaluate(scored(("normal", 0.1), ("normal", 0.2), ("tumor", 0.9)), FEW)
    assert metrics.cases.scores["auroc"].value == 1
    assert metrics.cases.scores["auroc"].low is None
    assert metrics.cases.reasons["intervals"].startswith("tumor: a single case")
    assert "Only 1 case is labelled tumor: every number is uncertain, and so are the intervals." in metrics.caveats


def test_results_that_hold_training_cases_say_so(make_predictions):
    caveats = evaluate(make_predictions(60, splits=("train", "val", "val")), FEW).caveats
    assert caveats == (
        "20 of 60 cases are of split train: the model has learnt from them, so the results flatter it.",
        "40 of 60 cases are of split val: the checkpoint was chosen on them, so the results flatter it.",
    )


@pytest.mark.parametrize("num_unlabelled", [0, 12])
@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_as_plain_values_they_are_json_without_nulls(make_predictions, classes, num_unlabelled):
    metrics = evaluate(make_predictions(12, classes, num_unlabelled=num_unlabelled), FEW)
    text = json.dumps(metrics.to_dict(), allow_nan=False)
    assert not {"null", "NaN", "Infinity"} & set(re.findall(r"\w+", text))
    assert json.loads(text)["cases"]["class_counts"] == metrics.cases.class_counts


def test_two_hundred_cases_take_less_than_three_seconds(make_predictions):
    predictions = make_predictions(200)
    start = time.perf_counter()
    evaluate(predictions)
    assert time.perf_counter() - start < 3


def test_a_label_that_is_no_class_is_refused_by_name(scored):
    with pytest.raises(PredictionError, match="c0: label 'benign' is not one of the classes normal, tumor"):
        evaluate(scored(("benign", 0.5)))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="confidence between 0 and 1"):
        MetricsConfig(confidence=95)


def test_settings_from_outside_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^evaluate: .*num_bootstrap and num_calibration_bins are at least 1"):
        build(MetricsConfig, {"num_bootstrap": 0}, "evaluate")
