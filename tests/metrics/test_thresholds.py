from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.formats.predictions import Predictions
from wsi_dbps.metrics.metrics import MetricsConfig, evaluate, evaluate_folds
from wsi_dbps.metrics.pooling import pool_cases
from wsi_dbps.metrics.reliability import scaled
from wsi_dbps.metrics.thresholds import best_temperature, best_threshold, choose, why_no_temperature

FEW = MetricsConfig(num_bootstrap=100)


@st.composite
def labelled_probabilities(draw, num_classes=3):
    num = draw(st.integers(4, 12))
    p = np.array([[draw(st.integers(1, 9)) for _ in range(num_classes)] for _ in range(num)], float)
    label = np.array([draw(st.integers(0, num_classes - 1)) for _ in range(num)])
    return p / p.sum(axis=1, keepdims=True), label


def renamed(predictions, prefix, split=None):
    """The same rows as other cases."""
    slides = tuple(
        replace(r, slide_id=prefix + r.slide_id, case_id=prefix + r.case_id, split=split or r.split)
        for r in predictions.slides
    )
    return Predictions(predictions.classes, slides, pool_cases(slides, predictions.classes))


def joined(*several):
    return Predictions(several[0].classes, *(sum((getattr(p, of) for p in several), ()) for of in ("slides", "cases")))


# ---- threshold


@settings(deadline=None, max_examples=50)
@given(labelled_probabilities(2))
def test_no_threshold_has_a_higher_youden_index_than_the_best(made):
    p, label = made
    assume(0 < label.sum() < len(label))
    score = p[:, 1]

    def youden(cut):
        return (score >= cut)[label == 1].mean() - (score >= cut)[label == 0].mean()

    every = [youden(cut) for cut in np.linspace(0, 1, 301)]
    found = best_threshold(score, label == 1)
    if found is None:
        assert max(every) == pytest.approx(0)
    else:
        assert youden(found) == pytest.approx(max(every))
        assert not (np.abs(score - found) < 1e-9).any()


def test_of_equal_thresholds_the_one_nearest_to_a_half_is_taken():
    score, positive = np.array([0.1, 0.3, 0.7, 0.8]), np.array([False, True, False, True])
    # above 0.1 both positive ones and one of two others are found, above 0.7 one of two and none: 1/2 either way
    assert best_threshold(score, positive) == pytest.approx(0.75)


def test_two_probabilities_next_to_each_other_are_still_parted():
    low = 0.3
    high = np.nextafter(low, 1)
    assert best_threshold(np.array([low, high]), np.array([False, True])) == high


def test_with_validation_the_threshold_decides_and_without_it_the_most_probable_class(scored):
    validation = renamed(scored(("normal", 0.1), ("normal", 0.2), ("tumor", 0.3), ("tumor", 0.4)), "v")
    test = scored(("normal", 0.1), ("normal", 0.3), ("tumor", 0.4), ("tumor", 0.45))
    without, with_it = evaluate(test, FEW), evaluate(test, FEW, validation=validation)
    assert without.threshold is None
    assert [without.cases.scores[n].value for n in ("sensitivity", "specificity")] == [0, 1]
    assert with_it.threshold.value == pytest.approx(0.25)
    assert with_it.threshold.num_cases == 4
    values = {name: score.value for name, score in with_it.cases.scores.items()}
    assert [values[n] for n in ("sensitivity", "specificity", "accuracy", "balanced_accuracy")] == [1, 0.5, 0.75, 0.75]
    assert (values["f1"], values["kappa"]) == (pytest.approx(4 / 5), pytest.approx(0.5))
    assert with_it.cases.confusion == ((1, 1), (0, 2))
    for name in ("auroc", "auprc", "brier", "log_loss", "ece"):
        assert without.cases.scores[name] == with_it.cases.scores[name]


# ---- temperature


@settings(deadline=None, max_examples=30)
@given(labelled_probabilities())
def test_the_temperature_has_the_lowest_log_loss(made):
    p, label = made
    assume(why_no_temperature(p, label) is None)

    def loss(log_t):
        return -np.log(scaled(p, np.full(len(p), np.exp(log_t)))[np.arange(len(p)), label]).mean()

    found = best_temperature(p, label)
    other = minimize_scalar(loss, bounds=(-12, 12), method="bounded", options={"xatol": 1e-10})
    assert loss(np.log(found)) <= other.fun + 1e-12
    assert loss(np.log(found)) <= loss(np.log(found) + 1e-3)
    assert loss(np.log(found)) <= loss(np.log(found) - 1e-3)


@settings(deadline=None)
@given(labelled_probabilities(), st.floats(0.1, 10))
def test_scaling_keeps_the_order_and_adds_up_to_one_and_one_changes_nothing(made, temperature):
    p, _ = made
    after = scaled(p, np.full(len(p), temperature))
    np.testing.assert_allclose(after.sum(axis=1), 1)
    assert (after.argmax(axis=1) == p.argmax(axis=1)).all()
    np.testing.assert_allclose(scaled(p, np.ones(len(p))), p)


@settings(deadline=None)
@given(labelled_probabilities(), st.floats(0.2, 5))
def test_logits_that_are_too_large_by_a_factor_have_a_temperature_larger_by_it(made, factor):
    p, label = made
    assume(why_no_temperature(p, label) is None)
    assume(0.05 < best_temperature(p, label) < 20)
    sharper = scaled(p, np.full(len(p), 1 / factor))
    assume(sharper.min() > 1e-12)
    assert best_temperature(sharper, label) == pytest.approx(factor * best_temperature(p, label), rel=1e-6)


def test_four_cases_by_hand():
    """Three of four are right, all as sure as odds of 9; they should be of 3, so the temperature is log 9 / log 3."""
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    assert best_temperature(p, np.array([0, 0, 1, 0])) == pytest.approx(2)


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_an_overconfident_model_is_better_calibrated_after_scaling(make_predictions, classes):
    sharp = make_predictions(200, classes)
    slides = tuple(
        replace(r, probabilities=tuple(scaled(np.array([r.probabilities]), np.array([0.3]))[0].tolist()))
        for r in sharp.slides
    )
    sharp = Predictions(classes, slides, pool_cases(slides, classes))
    half = {r.case_id for r in sharp.cases[:100]}
    parted = (
        tuple(replace(r, split="test" if r.case_id in half else "val") for r in rows) for rows in (slides, sharp.cases)
    )
    both = Predictions(classes, *parted)
    metrics = evaluate(both, FEW)
    assert metrics.temperature.value > 1.5
    assert metrics.temperature.num_cases == metrics.cases.num == 100
    for level in (metrics.cases, metrics.slides):
        for name in ("ece", "log_loss"):  # the Brier score may rise: it is not what the temperature minimises
            assert level.calibrated[name].value < level.scores[name].value
        assert sum(b.num for b in level.calibration_scaled) == level.num
        assert level.calibrated["brier"].low < level.calibrated["brier"].value < level.calibrated["brier"].high
        assert level.calibrated["ece"].low is None


# ---- which cases


def test_test_rows_are_evaluated_and_val_rows_are_their_validation(make_predictions):
    splits = ("test", "val", "train")
    test, val, train = (renamed(make_predictions(40, seed=i), f"{i}", split) for i, split in enumerate(splits))
    whole, apart = evaluate(joined(test, val, train), FEW), evaluate(test, FEW, validation=val)
    assert whole == replace(apart, caveats=whole.caveats)
    assert (
        "80 of 120 cases are not of split test and are left out; those of split val set threshold and temperature."
        in (whole.caveats)
    )
    assert evaluate(test, FEW, validation=joined(val, train)).threshold == apart.threshold


def test_without_validation_there_is_nothing_of_it(make_predictions):
    metrics = evaluate(make_predictions(), FEW)
    assert (metrics.threshold, metrics.temperature) == (None, None)
    assert metrics.cases.calibrated == {}
    assert metrics.cases.calibration_scaled == ()


def test_validation_without_a_class_gives_the_reason(scored):
    validation = renamed(scored(("normal", 0.1), ("normal", 0.2)), "v")
    metrics = evaluate(scored(("normal", 0.1), ("tumor", 0.3)), FEW, validation=validation)
    assert (metrics.threshold, metrics.temperature, metrics.cases.calibrated) == (None, None, {})
    for name in ("threshold", "temperature"):
        assert metrics.cases.reasons[name] == "no validation case is labelled tumor"


def test_what_validation_cannot_decide_is_absent_with_its_reason(scored):
    perfect = choose(scored(("normal", 0.1), ("tumor", 0.9)))
    assert perfect.threshold.value == 0.5
    assert perfect.reasons == {
        "temperature": "every validation case is predicted right, so the best temperature would be 0"
    }
    worse = choose(scored(("normal", 0.8), ("tumor", 0.3)))
    assert worse.reasons["threshold"] == "no threshold does better than chance on validation"
    assert "infinite" in worse.reasons["temperature"]


def test_validation_of_other_classes_or_of_evaluated_cases_is_refused(make_predictions):
    test = make_predictions()
    with pytest.raises(PredictionError, match="validation has the classes a, b, the predictions have normal, tumor"):
        evaluate(test, FEW, validation=make_predictions(classes=("a", "b")))
    with pytest.raises(PredictionError, match=r"^40 cases \(case-000, case-001, case-002 ...\) are in validation"):
        evaluate(test, FEW, validation=test)


# ---- folds


def test_folds_are_pooled_and_each_has_its_own_threshold_and_values(scored):
    one = renamed(scored(("normal", 0.1), ("normal", 0.2), ("tumor", 0.3), ("tumor", 0.4)), "1")
    two = renamed(scored(("normal", 0.6), ("normal", 0.7), ("tumor", 0.8), ("tumor", 0.9)), "2")
    alone = [evaluate(fold, FEW, validation=renamed(fold, "v")) for fold in (one, two)]
    metrics = evaluate_folds({"x": one, "y": two}, FEW, validation={"x": renamed(one, "v"), "y": renamed(two, "v")})
    assert list(metrics.folds) == ["x", "y"]
    assert metrics.folds == {"x": alone[0].cases, "y": alone[1].cases}
    assert {name: t.value for name, t in metrics.fold_thresholds.items()} == pytest.approx({"x": 0.25, "y": 0.75})
    assert metrics.threshold is None
    assert metrics.cases.scores["accuracy"].value == 1
    assert metrics.cases.scores["auroc"].value == 12 / 16
    assert metrics.caveats[-1].startswith("Cases of 2 folds are pooled")


def test_a_fold_may_be_another_folds_validation(make_predictions):
    folds = {name: renamed(make_predictions(30, seed=int(name)), name) for name in "012"}
    validation = {"0": folds["1"], "1": folds["2"], "2": folds["0"]}
    metrics = evaluate_folds(folds, FEW, validation=validation)
    assert len(metrics.fold_temperatures) == 3
    assert metrics.cases.num == 90
    assert set(metrics.cases.calibrated) == {"ece", "brier", "log_loss"}


def test_a_case_in_two_folds_is_refused_and_ensembles_are_named(make_predictions):
    with pytest.raises(PredictionError, match=r"^case case-000 is in x and in y; .*predict RUN1 RUN2"):
        evaluate_folds({"x": make_predictions(), "y": make_predictions(seed=1)}, FEW)


def test_folds_of_other_classes_are_refused(make_predictions):
    with pytest.raises(PredictionError, match="x has the classes normal, tumor, y has a, b; folds must have the same"):
        evaluate_folds({"x": make_predictions(), "y": make_predictions(classes=("a", "b"))}, FEW)


# ---- subgroups


def test_a_subgroup_is_evaluated_as_if_alone(make_predictions):
    predictions = make_predictions(40)
    site = {f"case-{i:03d}": "AB"[i // 2 % 2] for i in range(36)}
    metrics = evaluate(predictions, FEW, subgroups={"site": site})
    for value in "AB":
        slides = tuple(r for r in predictions.slides if site.get(r.case_id) == value)
        alone = evaluate(Predictions(predictions.classes, slides, pool_cases(slides, predictions.classes)), FEW)
        assert metrics.subgroups["site"][value] == alone.cases
    assert "4 of 40 cases have no site in the manifest and are in none of its subgroups." in metrics.caveats


def test_validation_that_the_model_learnt_from_is_named_in_the_caveats(make_predictions):
    seen, other = (renamed(make_predictions(), "v-", split) for split in ("train", "val"))
    said = "40 cases of validation are of split train: the model has learnt from them"
    assert any(c.startswith(said) for c in evaluate(make_predictions(), FEW, validation=seen).caveats)
    assert not any("validation" in c for c in evaluate(make_predictions(), FEW, validation=other).caveats)
