"""Scores of tiles against drawn lesions, by slide and over a cohort."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.core.geometry import TileGrid
from wsi_dbps.explain.froc import SlideHits
from wsi_dbps.explain.localisation import LocatedSlide, best_percentile, dice, patch_auroc, summarise, tile_scores
from wsi_dbps.formats.attention import SlideAttention
from wsi_dbps.formats.predictions import Prediction


def slide(name: str, scores, shares, found=(), false=(), case=None, label="tumour") -> LocatedSlide:
    hits = SlideHits(np.array(found, float), np.array(false, float))
    return LocatedSlide(name, case or name, label, np.array(scores, float), np.array(shares, float), hits)


GOOD = ([0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1])
BAD = ([0.9, 0.6, 0.2, 0.1], [0, 0, 1, 1])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30), st.floats(0, 1))
def test_dice_is_a_share_and_follows_the_order_of_scores_alone(tiles, percentile: float) -> None:
    scores, shares = np.array(tiles).T
    if (value := dice(scores, shares, percentile)) is None:
        assert not shares.any()
        return
    assert 0 <= value <= 1
    ranks = np.unique(scores, return_inverse=True)[1]
    assert dice(ranks * 7 - 3, shares, percentile) == value


def test_dice_by_hand() -> None:
    scores, shares = np.arange(10.0), np.array([0] * 8 + [1.0, 1])
    assert dice(scores, shares, 0.8) == 1  # the two highest of ten are the lesion
    assert dice(-scores, shares, 0.8) == 0
    assert dice(scores, shares, 0.0) == pytest.approx(2 * 2 / (10 + 2))
    assert dice(scores, np.zeros(10), 0.5) is None


def test_the_best_percentile_is_found_on_the_slides_given() -> None:
    scores = np.arange(100.0)
    assert best_percentile([slide("a", scores, scores >= 75)]) == 0.75
    assert best_percentile([slide("a", scores, np.zeros(100))]) is None


def attention(**changes) -> SlideAttention:
    fields = {
        "slide_id": "s1",
        "prediction": Prediction("s1", "c1", "test", "b", 2, (0.2, 0.5, 0.3)),
        "classes": ("a", "b", "c"),
        "grid": TileGrid(np.array([[0, 0], [10, 0]]), 10.0),
        "logits_NR": np.zeros((2, 1), np.float32),
        "weights_N": np.array([0.75, 0.25], np.float32),
        "role_N": np.zeros(2, np.uint8),
        "cache_fingerprint": "c",
        "checkpoint_fingerprint": "k",
    }
    return SlideAttention(**fields | changes)


def test_confidence_is_the_probability_of_disease_for_the_tile_of_highest_weight() -> None:
    scores, confidence = tile_scores(attention(), "attention")
    assert scores.tolist() == [0.75, 0.25]
    assert confidence == pytest.approx([0.8, 0.8 / 3])


def test_evidence_is_what_speaks_for_the_other_classes_against_the_first() -> None:
    evidence = np.array([[-1, 2, 4], [1, 0, 0]], np.float32)
    scores, confidence = tile_scores(attention(evidence_NC=evidence), "evidence")
    assert scores.tolist() == confidence.tolist() == [4, -1]


def test_the_mean_is_over_slides_and_the_interval_over_cases() -> None:
    slides = [
        slide("a", *GOOD, found=[0.9]),
        slide("b", *BAD, found=[0.1], false=[0.5]),
        slide("n", [1.0, 2.0], [0, 0], label="normal", false=[0.7]),
        slide("m", [1.0, 2.0], [0, 0], label="normal"),
    ]
    found = summarise(slides, [], "attention")
    assert [row["patch_auroc"] for row in found["slides"]] == [1, 0, None, None]
    assert found["patch_auroc"] == {"value": 0.5, "low": 0, "high": 1}
    assert found["dice"]["threshold"] == 0.9
    assert "dice_fixed" not in found
    # 0.9 is found before any false positive; 0.1 after two of them on four slides, a rate of 1/2
    assert found["froc"]["sensitivity"] == [0.5, 1, 1, 1, 1, 1]
    assert found["froc"]["false_positives_per_slide"] == [0.25, 0.5, 1, 2, 4, 8]
    assert found["froc"]["score"] == pytest.approx(5.5 / 6)
    assert found["froc"]["low"] <= found["froc"]["score"] <= found["froc"]["high"]
    assert (found["num_slides"], found["reasons"]) == (4, {})
    assert summarise(slides, [], "attention") == found


def test_a_threshold_from_validation_stands_beside_the_fixed_one() -> None:
    scores = np.arange(10.0)
    slides = [slide(name, scores, scores >= 5, found=[1.0]) for name in "ab"]
    found = summarise(slides, [], "attention", percentile=0.5)
    assert (found["dice"]["value"], found["dice"]["threshold"]) == (1, 0.5)
    assert found["dice_fixed"]["threshold"] == 0.9
    assert found["dice_fixed"]["value"] == pytest.approx(2 / 6)


def test_slides_of_one_case_come_and_go_together() -> None:
    slides = [slide("a", *GOOD, found=[0.9], case="x"), slide("b", *BAD, found=[0.1], case="x")]
    slides += [slide("c", *GOOD, found=[0.9], case="y"), slide("d", *BAD, found=[0.1], case="y")]
    found = summarise(slides, [], "attention")
    assert found["patch_auroc"] == {"value": 0.5}  # the cases do not differ
    assert found["reasons"]["intervals"].startswith("patch_auroc, ")


def test_what_does_not_exist_is_absent_and_has_its_reason() -> None:
    found = summarise([slide("n", [1.0], [0], label="normal")], ["u", "v"], "attention")
    assert not {"patch_auroc", "dice", "dice_fixed", "froc"} & set(found)
    assert found["reasons"] == {
        "slides": "2 predicted slides are not annotated and left out: u, v",
        "patch_auroc": "no slide has both a tile that is at least half lesion and one without",
        "dice": "no tile has lesion",
        "froc": "no slide has a lesion that counts; those of isolated tumour cells do not",
    }
    json.dumps(found, allow_nan=False)
    alone = summarise([slide("a", *GOOD, found=[0.9])], [], "attention")
    assert alone["patch_auroc"] == {"value": 1}
    assert "low" not in alone["froc"]
    assert alone["reasons"] == {
        "intervals": "patch_auroc, dice: an interval needs two cases or more that differ; "
        "froc: an interval needs two cases or more with a lesion that counts, and so without, that differ"
    }


@pytest.mark.parametrize(("num", "low"), [(2, 0.158), (5, 0.478), (20, 0.832)])
def test_a_froc_score_without_error_has_an_interval_that_does_not_end_at_certainty(num, low) -> None:
    """Resampling shows no spread; of two cases that were both found, 95 % leaves 0.025 ** (1 / 2) = 0.158."""
    slides = [slide(f"a{i}", *GOOD, found=[0.9]) for i in range(num)]
    slides += [slide(f"n{i}", [1.0, 2.0], [0, 0], label="normal") for i in range(2)]
    froc = summarise(slides, [], "attention")["froc"]
    assert (froc["score"], round(froc["low"], 3), froc["high"]) == (1, low, 1)


def test_one_case_of_isolated_tumour_cells_takes_no_interval_from_the_means() -> None:
    slides = [slide("a", *GOOD, found=[0.9]), slide("b", *BAD, found=[0.1]), slide("itc", *GOOD)]
    found = summarise(slides, [], "attention")
    assert {"value", "low", "high"} == set(found["patch_auroc"])
    assert "low" not in found["froc"]
    assert found["reasons"]["intervals"].startswith("froc: ")


def test_patches_between_lesion_and_none_are_left_out() -> None:
    scores = np.array([3.0, 2, 1])
    assert patch_auroc(scores, np.array([1, 0.3, 0])) == 1
    assert patch_auroc(scores, np.array([0.4, 0.3, 0])) is None
