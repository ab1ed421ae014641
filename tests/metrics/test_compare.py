from dataclasses import replace

import pytest
from scipy import stats

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.formats.predictions import Predictions
from wsi_dbps.metrics.compare import compare
from wsi_dbps.metrics.metrics import MetricsConfig, evaluate
from wsi_dbps.metrics.pooling import pool_cases

FEW = MetricsConfig(num_bootstrap=200)


def without(predictions, *case_ids):
    kept = (tuple(r for r in rows if r.case_id not in case_ids) for rows in (predictions.slides, predictions.cases))
    return Predictions(predictions.classes, *kept)


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_values_are_those_of_evaluate_and_differences_are_b_less_a(make_predictions, classes):
    a, b = (make_predictions(60, classes, skill=skill, seed=seed) for seed, skill in enumerate((0.5, 2)))
    found = compare(a, b, FEW)
    alone = [evaluate(of, FEW).cases for of in (a, b)]
    every = [
        level.scores
        | {f"class_auroc.{n}": e for n, e in level.class_auroc.items()}
        | {f"class_auprc.{n}": e for n, e in level.class_auprc.items()}
        for level in alone
    ]
    assert set(found.scores) == set(every[0])
    for name, score in found.scores.items():
        assert (score.a, score.b) == (every[0][name].value, every[1][name].value)
        assert score.difference.value == score.b - score.a
        if score.difference.low is not None:
            assert score.difference.low <= score.difference.value <= score.difference.high
        else:
            assert name == "ece" or f"interval.{name}" in found.reasons
    assert {name: test.b for name, test in found.delong.items()} == pytest.approx(
        {name: estimate.value for name, estimate in alone[1].delong.items()}
    )


def test_a_model_compared_with_itself_does_not_differ(make_predictions):
    found = compare(make_predictions(), make_predictions(), FEW)
    for name, score in found.scores.items():
        ends = (score.difference.low, score.difference.value, score.difference.high)
        assert ends == (None, 0, None)
        why = "every bootstrap sample of these cases gives the same value"
        assert name == "ece" or found.reasons[f"interval.{name}"] == why
    assert (found.mcnemar.only_a_right, found.mcnemar.only_b_right, found.mcnemar.p) == (0, 0, 1)
    assert found.delong["auroc"].p is None
    assert "no variance" in found.reasons["delong"]
    assert "null" not in str(found.to_dict()).lower()


def test_the_same_cases_come_and_go_in_both(make_predictions):
    """Nearly equal models: their difference is far more certain than either."""
    a = make_predictions(80)
    cases = tuple(replace(r, probabilities=(p := r.probabilities[0] ** 1.1, 1 - p)) for r in a.cases)
    found = compare(a, replace(a, cases=cases), FEW).scores["brier"].difference
    alone = evaluate(a, FEW).cases.scores["brier"]
    assert found.high - found.low < 0.3 * (alone.high - alone.low)


def test_mcnemar_counts_the_cases_that_one_alone_gets_right(scored):
    truth = ["tumor", "normal"] * 6
    a = scored(*((label, 0.9 if label == "tumor" else 0.1) for label in truth))
    b = scored(*((label, 0.9 if (label == "tumor") == (i > 4) else 0.1) for i, label in enumerate(truth)))
    found = compare(a, b, FEW).mcnemar
    assert (found.only_a_right, found.only_b_right) == (5, 0)
    assert found.p == pytest.approx(2 * 0.5**5)
    assert compare(b, a, FEW).mcnemar.p == found.p


def test_each_model_is_judged_at_its_own_threshold(scored):
    def with_val(low, high):
        rows = scored(*(("normal", low), ("tumor", high)) * 4)
        parts = [
            tuple(replace(r, split="val" if int(r.case_id[1:]) < 4 else "test") for r in of)
            for of in (rows.slides, rows.cases)
        ]
        return Predictions(rows.classes, *parts)

    found = compare(with_val(0.1, 0.3), with_val(0.6, 0.8), FEW)
    assert (found.threshold_a.value, found.threshold_b.value) == pytest.approx((0.2, 0.7))
    assert found.num == 4
    assert found.scores["accuracy"].a == found.scores["accuracy"].b == 1


def test_cases_that_one_lacks_are_named_or_left_out_and_counted(make_predictions):
    a, b = make_predictions(30), without(make_predictions(30, seed=1), "case-007", "case-011")
    with pytest.raises(PredictionError, match=r"^the cases differ: B lacks 2 \(case-007, case-011\); .*--common$"):
        compare(a, b, FEW)
    found = compare(a, b, FEW, common=True)
    assert (found.num, found.num_left_out) == (28, 2)
    assert found == replace(compare(without(a, "case-007", "case-011"), b, FEW), num_left_out=2)


def test_other_labels_or_classes_are_refused(make_predictions):
    a = make_predictions(30)
    other = replace(a, cases=(replace(a.cases[0], label="tumor"), *a.cases[1:]))
    with pytest.raises(PredictionError, match=r"^case case-000: label normal in A, tumor in B; "):
        compare(a, other, FEW)
    with pytest.raises(PredictionError, match=r"^A has the classes normal, tumor, B has tumor, normal; "):
        compare(a, replace(a, classes=("tumor", "normal")), FEW)
    with pytest.raises(PredictionError, match="no case in common"):
        compare(a, without(a, *(r.case_id for r in a.cases)), FEW, common=True)


def test_with_one_class_what_does_not_exist_has_its_reason(scored):
    found = compare(scored(("tumor", 0.9), ("tumor", 0.2)), scored(("tumor", 0.9), ("tumor", 0.8)), FEW)
    assert found.reasons["auroc"] == "no row is labelled normal"
    assert found.delong == {}
    assert found.scores["sensitivity"].difference.value == 0.5
    assert found.mcnemar.p == stats.binomtest(1, 1).pvalue


def test_without_labels_nothing_is_compared(make_predictions):
    found = compare(make_predictions(6, num_unlabelled=6), make_predictions(6, num_unlabelled=6), FEW)
    assert (found.num, found.num_unlabelled, found.scores, found.mcnemar) == (0, 6, {}, None)


def test_a_threshold_of_one_model_alone_is_told(make_predictions):
    a, b = make_predictions(60, seed=0), make_predictions(60, seed=1)
    slides = tuple(
        replace(r, slide_id=f"v{r.slide_id}", case_id=f"v{r.case_id}") for r in make_predictions(40, seed=2).slides
    )
    validation = Predictions(a.classes, slides, pool_cases(slides, a.classes))
    found = compare(a, b, FEW, validation_a=validation)
    assert (found.threshold_a is None, found.threshold_b) == (False, None)
    assert found.reasons["threshold_b"].startswith("it has no validation")
    of_one_class = tuple(row for row in slides if row.label == a.classes[1])
    blind = Predictions(a.classes, of_one_class, pool_cases(of_one_class, a.classes))
    found = compare(a, b, FEW, validation_a=validation, validation_b=blind)
    assert found.reasons["threshold_b"] == f"no validation case is labelled {a.classes[0]}"
    assert not {"threshold_a", "threshold_b"} & set(compare(a, b, FEW).reasons)
