"""FROC by the rule of CAMELYON16, beside an implementation of its own and by hand."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.core.geometry import TileGrid
from wsi_dbps.explain.froc import RATES, SlideHits, lesion_regions, major_axis, peaks, sensitivities, slide_hits


def independent(slides, *, interpolate: bool = False) -> list[float]:
    """Sensitivity at each rate by trying every threshold; or read off lines between them."""
    every = sorted({c for s in slides for c in (*s.found, *s.false) if np.isfinite(c)}, reverse=True)
    num_lesions = sum(len(s.found) for s in slides)
    curve = [(0.0, 0.0)]
    for threshold in every:
        false = sum(c >= threshold for s in slides for c in s.false)
        hit = sum(c >= threshold for s in slides for c in s.found)
        curve.append((false / len(slides), hit / num_lesions))
    if interpolate:
        return np.interp(RATES, *zip(*curve, strict=True)).tolist()
    return [max(hit for false, hit in curve if false <= rate) for rate in RATES]


@st.composite
def cohorts(draw, *, distinct: bool) -> list[SlideHits]:
    lesions = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6).filter(any))
    falses = [draw(st.integers(0, 12)) for _ in lesions]
    num = sum(lesions) + sum(falses)
    if distinct:
        values = np.array(draw(st.permutations(range(num))), float)
    else:
        values = np.array(draw(st.lists(st.integers(0, 5), min_size=num, max_size=num)), float)
    parts = np.split(values, np.cumsum([*lesions, *falses])[:-1])
    missed = draw(st.integers(0, 2))
    found = [np.where(np.arange(len(part)) < missed, -np.inf, part) for part in parts[: len(lesions)]]
    return [SlideHits(hit, false) for hit, false in zip(found, parts[len(lesions) :], strict=True)]


@given(cohorts(distinct=False))
def test_it_equals_trying_every_threshold(slides) -> None:
    assert sensitivities(slides)[0] == pytest.approx(independent(slides), abs=1e-6)


@given(cohorts(distinct=True))
def test_it_equals_lines_between_thresholds_where_no_confidence_is_shared(slides) -> None:
    assert sensitivities(slides)[0] == pytest.approx(independent(slides, interpolate=True), abs=1e-6)


@given(cohorts(distinct=False), st.data())
def test_a_weight_is_so_many_copies_of_a_slide(slides, data) -> None:
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(slides), max_size=len(slides)))
    copies = [slide for slide, weight in zip(slides, weights, strict=True) for _ in range(weight)]
    if any(len(slide.found) for slide in copies):
        weighted = sensitivities(slides, np.array([weights, weights], float))
        assert weighted[0] == pytest.approx(sensitivities(copies)[0], abs=1e-6)
        assert (weighted[0] == weighted[1]).all()


def test_a_worked_example() -> None:
    """Four slides, three lesions, of which one is missed."""
    slides = [
        SlideHits(np.array([0.9, -np.inf]), np.array([0.8])),
        SlideHits(np.array([0.7]), np.array([0.6, 0.5])),
        SlideHits(np.zeros(0), np.array([0.4, 0.3])),
        SlideHits(np.zeros(0), np.zeros(0)),
    ]
    # one false positive on four slides is a rate of 1/4: at it, both 0.9 and 0.7 are found
    assert sensitivities(slides)[0] == pytest.approx([2 / 3] * 6, abs=1e-6)
    slides[2] = SlideHits(np.zeros(0), np.array([0.85, 0.84, 0.75]))
    # now four false positives come before the second hit: 1 a slide
    assert sensitivities(slides)[0] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3], abs=1e-6)


def test_a_perfect_detector_has_1_and_none_has_0() -> None:
    none = SlideHits(np.zeros(0), np.zeros(0))
    assert sensitivities([SlideHits(np.array([0.9, 0.2]), np.zeros(0)), none]).mean() == 1
    assert sensitivities([SlideHits(np.array([-np.inf]), np.zeros(0)), none]).mean() == 0


# ---- from outlines and points to hits; 1 µm is 1 px here


def square(x: float, y: float, side: float) -> shapely.Polygon:
    return shapely.box(x, y, x + side, y + side)


def test_a_lesion_found_twice_counts_once_with_the_higher_confidence() -> None:
    points = np.array([[50, 50], [350, 350], [1000, 1000]])
    hits = slide_hits(points, np.array([0.3, 0.8, 0.5]), square(0, 0, 400), 1.0)
    assert (hits.found.tolist(), hits.false.tolist()) == ([0.8], [0.5])


def test_a_point_up_to_37_5_um_beside_the_lesion_hits_it() -> None:
    points = np.array([[437.0, 200], [438.0, 200]])
    hits = slide_hits(points, np.array([0.9, 0.6]), square(0, 0, 400), 1.0)
    assert (hits.found.tolist(), hits.false.tolist()) == ([0.9], [0.6])
    both = slide_hits(points, np.array([0.9, 0.6]), square(0, 0, 400), 0.5)  # pixels of half the size
    assert (both.found.tolist(), both.false.tolist()) == ([0.9], [])


def test_areas_closer_than_75_um_are_one_lesion_and_holes_are_filled() -> None:
    near = shapely.union_all([square(0, 0, 300), square(374, 0, 300)])
    far = shapely.union_all([square(0, 0, 300), square(376, 0, 300)])
    assert [len(lesion_regions(shape, 1.0)[0]) for shape in (near, far)] == [1, 2]
    ring = square(0, 0, 900) - square(100, 100, 700)
    assert slide_hits(np.array([[450, 450]]), np.array([0.4]), ring, 1.0).found.tolist() == [0.4]


def test_isolated_tumour_cells_are_neither_hit_nor_false() -> None:
    """Grown by 37.5 µm a disc of 190 µm has an axis of 265 µm and one of 210 µm has 285 µm; 275 µm is the bound."""
    small, large = (shapely.Point(500, 500).buffer(extent / 2, quad_segs=64) for extent in (190, 210))
    at, confidence = np.array([[500, 500], [2000, 2000]]), np.array([0.9, 0.1])
    hits = slide_hits(at, confidence, small, 1.0)
    assert (hits.found.tolist(), hits.false.tolist()) == ([], [0.1])
    hits = slide_hits(at, confidence, large, 1.0)
    assert (hits.found.tolist(), hits.false.tolist()) == ([0.9], [0.1])


def test_a_slide_without_lesion_or_without_detections() -> None:
    assert slide_hits(np.array([[5, 5]]), np.array([0.4]), None, 1.0).false.tolist() == [0.4]
    assert slide_hits(np.zeros((0, 2)), np.zeros(0), square(0, 0, 400), 1.0).found.tolist() == [-np.inf]


@settings(max_examples=25, deadline=None)
@given(st.floats(1, 50), st.floats(1, 50), st.floats(0, 3))
def test_the_major_axis_of_a_rectangle_is_that_of_its_moments(width: float, height: float, turn: float) -> None:
    """The moment of a side a is a² / 12, and that of an ellipse of axis d is d² / 16."""
    shape = shapely.box(100, 7, 100 + width, 7 + height)
    turned = shapely.transform(shape, lambda xy: xy @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    assert major_axis(turned) == pytest.approx(max(width, height) * np.sqrt(16 / 12), rel=1e-6)


# ---- peaks


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_a_peak_scores_above_its_eight_neighbours(columns: int, rows: int, seed: int) -> None:
    scores_HW = np.random.default_rng(seed).permutation(rows * columns).reshape(rows, columns).astype(float)
    coords = np.stack(np.meshgrid(np.arange(columns) * 100, np.arange(rows) * 100), axis=-1).reshape(-1, 2)
    padded = np.pad(scores_HW, 1, constant_values=-1)
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).max(axis=(2, 3))
    assert peaks(TileGrid(coords, 100.0), scores_HW.ravel()).tolist() == np.flatnonzero(scores_HW == around).tolist()


def test_of_equal_neighbours_the_first_is_the_peak() -> None:
    coords = np.array([[0, 0], [10, 0], [20, 0], [300, 0]])
    assert peaks(TileGrid(coords, 10.0), np.ones(4)).tolist() == [0, 3]
    assert peaks(TileGrid(np.zeros((0, 2), int), 10.0), np.zeros(0)).tolist() == []
