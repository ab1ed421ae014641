import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.core.geometry import TileGrid
from wsi_dbps.drawing.colours import blend, colours_with_alpha, signed_share, signed_value
from wsi_dbps.drawing.tile_maps import EVIDENCE_SCALE, MAX_CLASSES, chosen_map, evidence_maps, ranks
from wsi_dbps.formats.attention import SlideAttention
from wsi_dbps.formats.predictions import Prediction

number = st.floats(-1e3, 1e3, allow_subnormal=False, width=32)


def test_of_two_classes_the_evidence_is_what_moves_the_log_odds(make_scene) -> None:
    evidence = np.arange(18, dtype=np.float32).reshape(9, 2) ** 2
    (one,) = evidence_maps(make_scene(evidence_NC=evidence).attention)
    assert (one.name, one.signed) == ("Evidence for tumor", True)
    assert one.unit == "contribution to the log-odds against normal"
    np.testing.assert_array_equal(one.values_N, evidence[:, 1] - evidence[:, 0])


def of_classes(make_scene, num_classes: int, evidence: np.ndarray):
    classes = tuple(f"c{i}" for i in range(num_classes))
    weights = np.arange(1, num_classes + 1) / sum(range(1, num_classes + 1))
    prediction = Prediction("slide-1", "case-1", None, "c0", 9, tuple(weights.tolist()))
    return make_scene(classes=classes, prediction=prediction, evidence_NC=evidence).attention


def bare_attention(evidence_NC: np.ndarray) -> SlideAttention:
    n, c = evidence_NC.shape
    return SlideAttention(
        slide_id="s",
        prediction=Prediction("s", "c", None, None, n, (1 / c,) * c),
        classes=tuple(f"c{i}" for i in range(c)),
        grid=TileGrid(np.zeros((n, 2), np.int64), 1.0),
        logits_NR=np.zeros((n, 1), np.float32),
        weights_N=np.full(n, 1 / n, np.float32),
        role_N=np.ones(n, np.uint8),
        cache_fingerprint="",
        checkpoint_fingerprint="",
        evidence_NC=evidence_NC,
    )


@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_the_maps_of_a_slide_add_up_to_its_centred_logits(num_classes, seed) -> None:
    """Patches in the buffers add up to the logits; a number added to all logits changes neither softmax nor map."""
    random = np.random.default_rng(seed)
    evidence = random.normal(size=(9, num_classes))
    attention = bare_attention(evidence + random.normal(size=(9, 1)))
    classes = attention.classes
    logits = evidence.sum(axis=0)
    expected = logits - logits.mean() if num_classes > 2 else [logits[1] - logits[0]]
    found = {one.name.removeprefix("Evidence for "): one.values_N.sum() for one in evidence_maps(attention)}
    shown = classes if num_classes > 2 else classes[1:]
    assert len(found) == min(len(shown), MAX_CLASSES)
    for name, value in found.items():
        assert value == pytest.approx(expected[shown.index(name)], abs=1e-9)


def test_of_more_classes_each_has_its_map_on_one_scale_and_the_most_probable_are_shown(make_scene) -> None:
    evidence = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    maps = evidence_maps(of_classes(make_scene, 8, evidence))
    assert [one.name for one in maps] == [f"Evidence for c{i}" for i in range(8 - MAX_CLASSES, 8)]
    centred = evidence.astype(np.float64) - evidence.astype(np.float64).mean(axis=1, keepdims=True)
    for i, one in enumerate(maps):
        np.testing.assert_allclose(one.values_N, centred[:, i + 8 - MAX_CLASSES])
    assert chosen_map(of_classes(make_scene, 8, evidence), "evidence").name == "Evidence for c7"


@given(st.floats(0.01, 100), number)
def test_the_scale_is_the_same_for_every_slide_and_says_what_lies_beyond(scale, value) -> None:
    """0.05 log-odds on one slide are never as red as 3 on another."""
    evidence = np.zeros((9, 2), np.float32)
    evidence[3, 1] = value
    (one,) = evidence_maps(bare_attention(evidence), scale)
    assert one.highest == scale
    assert one.beyond == (abs(value) > scale)
    (usual,) = evidence_maps(bare_attention(evidence))
    assert usual.highest == EVIDENCE_SCALE == 1


def test_weak_evidence_is_pale_and_strong_evidence_full() -> None:
    white = np.full((1, 4, 3), 255, np.uint8)
    weak, middle, strong, more = blend(white, np.array([[0.05, 0.5, 3, 30]]), 3.0, signed=True)[0].astype(int)
    assert (strong == more).all()
    assert np.ptp(weak) < 0.25 * np.ptp(strong) < np.ptp(middle)


@given(st.lists(number, min_size=1, max_size=9), st.floats(0.1, 10))
def test_a_value_is_found_again_from_its_colour(values, highest) -> None:
    inside = np.clip(values, -highest, highest)
    np.testing.assert_allclose(signed_value(signed_share(inside, highest), highest), inside, atol=1e-6 * highest)


def test_of_a_slide_without_evidence_there_is_no_map(make_scene) -> None:
    assert evidence_maps(make_scene().attention) == ()
    assert len(evidence_maps(make_scene(0, evidence_NC=np.zeros((0, 2), np.float32)).attention)) == 1


def test_evidence_that_does_not_fit_or_is_missing_is_refused_by_name(make_scene) -> None:
    with pytest.raises(PredictionError, match=r"slide-1: .* evidence of shape \(9, 3\) for 9 tiles and 2 classes"):
        evidence_maps(make_scene(evidence_NC=np.zeros((9, 3), np.float32)).attention)
    with pytest.raises(PredictionError, match="or some that is not finite; predict again"):
        evidence_maps(make_scene(evidence_NC=np.full((9, 2), np.nan, np.float32)).attention)
    with pytest.raises(PredictionError, match="slide-1: its attention file holds no evidence by class; predict again"):
        chosen_map(make_scene().attention, "evidence")


@given(st.lists(number, min_size=1, max_size=20))
def test_ranks_count_from_the_highest(values) -> None:
    found = ranks(np.array(values))
    assert sorted(found) == list(range(1, len(values) + 1))
    assert (np.diff(np.array(values)[np.argsort(found)]) <= 0).all()


@given(number.filter(lambda v: abs(v) > 1e-3), st.floats(0.1, 1))
def test_signed_colours_are_symmetric_and_pale_at_zero(value, strength) -> None:
    grey = np.full((1, 3, 3), 128, np.uint8)
    values = np.array([[value, 0, -value]], np.float32)
    for_it, none, against = blend(grey, values, abs(value), signed=True, strength=strength)[0].astype(int)
    if value < 0:
        for_it, against = against, for_it
    assert for_it[0] > for_it[2]  # red
    assert against[2] > against[0]  # blue
    assert np.ptp(none) <= 3
    alpha = colours_with_alpha(signed=True)[:, 3]
    np.testing.assert_allclose(alpha, alpha[::-1])
    assert alpha[127:129].max() < 0.21
