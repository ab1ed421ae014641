import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.errors import PredictionError
from wsi_dbps.heatmaps.colours import blend, colours_with_alpha
from wsi_dbps.heatmaps.tile_maps import MAX_CLASSES, chosen_map, evidence_maps, ranks
from wsi_dbps.records import Prediction

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


def test_of_more_classes_each_has_its_map_on_one_scale_and_the_most_probable_are_shown(make_scene) -> None:
    evidence = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    maps = evidence_maps(of_classes(make_scene, 8, evidence))
    assert [one.name for one in maps] == [f"Evidence for c{i}" for i in range(8 - MAX_CLASSES, 8)]
    assert len({one.highest for one in maps}) == 1
    for i, one in enumerate(maps):
        np.testing.assert_array_equal(one.values_N, evidence[:, i + 8 - MAX_CLASSES])
    assert chosen_map(of_classes(make_scene, 8, evidence), "evidence").name == "Evidence for c7"


def test_one_extreme_tile_does_not_bleach_the_rest(make_scene) -> None:
    scene = make_scene(40)
    evidence = np.zeros((1600, 2), np.float32)
    evidence[:, 1] = np.linspace(-1, 1, 1600)
    evidence[7, 1] = 1e6
    (one,) = evidence_maps(make_scene(40, evidence_NC=evidence).attention)
    assert one.highest <= 1
    assert one.beyond
    assert scene.attention.evidence_NC is None
    assert evidence_maps(scene.attention) == ()


@pytest.mark.parametrize("n", [0, 1])
def test_few_tiles_or_no_evidence_at_all_still_have_a_scale(make_scene, n) -> None:
    (one,) = evidence_maps(make_scene(n, evidence_NC=np.zeros((n, 2), np.float32)).attention)
    assert (one.highest, one.beyond) == (1.0, False)


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
