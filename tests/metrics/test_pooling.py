from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.formats.predictions import Prediction
from wsi_dbps.metrics.pooling import pool_cases

CLASSES = ("normal", "tumor")
probability = st.floats(0, 1)
slides = st.lists(st.tuples(st.sampled_from("abcd"), probability, st.integers(0, 99)), max_size=12)


def predictions(rows):
    return [Prediction(f"s{i}", case, "test", "tumor", n, (1 - p, p)) for i, (case, p, n) in enumerate(rows)]


@settings(deadline=None)
@given(slides)
def test_every_patch_and_every_case_is_kept_and_probabilities_stay_shares_of_one(rows):
    cases = pool_cases(predictions(rows), CLASSES)
    assert sum(case.num_patches for case in cases) == sum(n for *_, n in rows)
    assert [case.case_id for case in cases] == list(dict.fromkeys(case for case, *_ in rows))
    for case in cases:
        assert sum(case.probabilities) == pytest.approx(1)
        inside = [p for name, p, _ in rows if name == case.case_id]
        assert min(inside) - 1e-12 <= case.probabilities[1] <= max(inside) + 1e-12


@settings(deadline=None)
@given(slides, st.randoms(use_true_random=False))
def test_the_order_of_the_slides_changes_the_order_of_the_cases_only(rows, random):
    slides = predictions(rows)
    cases = pool_cases(slides, CLASSES)
    random.shuffle(slides)
    assert sorted(pool_cases(slides, CLASSES), key=lambda case: case.case_id) == sorted(cases, key=lambda c: c.case_id)


@settings(deadline=None)
@given(slides)
def test_cases_of_one_slide_keep_its_prediction(rows):
    slides = [replace(slide, case_id=str(slide.slide_id)) for slide in predictions(rows)]
    assert pool_cases(slides, CLASSES) == tuple(replace(slide, slide_id=None) for slide in slides)


def test_a_case_has_the_mean_probability_and_all_patches_of_its_slides():
    slides = predictions([("b", 0.25, 10), ("a", 1.0, 1), ("b", 0.75, 30)])
    case = pool_cases(slides, CLASSES)[0]
    assert case == Prediction(None, "b", "test", "tumor", 40, (0.5, 0.5))
    assert np.argmax(case.probabilities) == 0


def test_a_slide_without_label_takes_that_of_its_case():
    slides = predictions([("a", 0.5, 1), ("a", 0.5, 1)])
    assert pool_cases([replace(slides[0], label=None), slides[1]], CLASSES)[0].label == "tumor"
    assert pool_cases([replace(slide, label=None) for slide in slides], CLASSES)[0].label is None


def test_slides_of_a_case_with_two_labels_or_splits_are_refused_by_name():
    first, second = predictions([("a", 0.5, 1), ("a", 0.5, 1)])
    message = "case a: its slides differ in label: 'normal' on slide s1, 'tumor' on slide s0; correct the manifest"
    with pytest.raises(PredictionError, match=message):
        pool_cases([first, replace(second, label="normal")], CLASSES)
    with pytest.raises(
        PredictionError, match="case a: its slides differ in split: 'test' on slide s0, 'train' on slide"
    ):
        pool_cases([first, replace(second, split="train")], CLASSES)


def test_a_slide_with_a_probability_too_many_is_refused_by_name():
    with pytest.raises(PredictionError, match="s0: 2 probabilities for the 3 classes a, b, c"):
        pool_cases(predictions([("a", 0.5, 1)]), ("a", "b", "c"))
