import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.core.geometry import Size
from wsi_dbps.drawing.atlas_pictures import draw_curves
from wsi_dbps.drawing.colours import blend
from wsi_dbps.drawing.overlay import draw_overlay
from wsi_dbps.drawing.raster import rasterize
from wsi_dbps.drawing.sheet import draw_sheet
from wsi_dbps.formats.attention import ROLES
from wsi_dbps.formats.predictions import Prediction


def draw(path, scene, **how):
    draw_overlay(path, scene.attention, scene.thumbnail_HWC, **how)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("slide", "picture"),
    [(Size(4001, 3003), Size(401, 301)), (Size(9001, 2003), Size(1024, 228)), (Size(2003, 8001), Size(257, 1024))],
)
def test_the_heat_lies_on_the_tissue_it_was_computed_from_within_a_pixel(make_scene, slide, picture):
    scene = make_scene(slide=slide, picture=picture)
    a = scene.attention
    heatmap = rasterize(a.grid, np.full(9, 1.0), picture)
    heated = blend(scene.thumbnail_HWC, heatmap.values_HW, 1.0)
    coloured = heated.max(axis=2) > heated.min(axis=2)
    tissue = scene.thumbnail_HWC[..., 0] == 0
    for axis in (0, 1):
        ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] for mask in (coloured, tissue)]
        assert np.abs(ends[0] - ends[1]).max() <= 1


def test_pixels_without_a_tile_stay_grey_and_the_highest_hide_the_most():
    thumbnail = np.full((1, 3, 3), 255, np.uint8)
    low, high, none = blend(thumbnail, np.array([[0.0, 1.0, np.nan]], np.float32), 1.0)[0].astype(int)
    assert none.tolist() == [255, 255, 255]
    assert high.sum() < low.sum() < none.sum()


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize(
    ("slide", "picture"),
    [(Size(4001, 3003), Size(401, 301)), (Size(40_001, 2003), Size(1024, 51)), (Size(2003, 40_001), Size(51, 1024))],
)
def test_slides_of_every_shape_and_any_number_of_tiles_are_drawn(tmp_path, make_scene, n, slide, picture):
    scene = make_scene(n, slide, picture, tile_lv0=280.6)
    pixels = draw(tmp_path / "a.png", scene)
    assert min(pixels.shape[:2]) >= 500
    assert (pixels[:4] == 255).all()  # nothing runs over the edge
    assert (pixels[-4:] == 255).all()
    assert (pixels[:, -4:] == 255).all()


def test_the_same_attention_gives_the_same_file(tmp_path, make_scene):
    for name in "ab":
        draw(tmp_path / name, make_scene(evidence_NC=np.eye(9, 2, dtype=np.float32)), smooth_um=50)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("num_classes", "picture"), [(2, Size(401, 301)), (9, Size(1024, 51))])
def test_every_class_shown_has_a_panel_with_its_colours(tmp_path, make_scene, num_classes, picture):
    classes = tuple(f"c{i}" for i in range(num_classes))
    prediction = Prediction("slide-1", "case-1", None, None, 9, (1 / num_classes,) * num_classes)
    evidence = np.zeros((9, num_classes), np.float32)
    evidence[:5], evidence[5:] = -np.arange(1, num_classes + 1), np.arange(1, num_classes + 1)
    slide = Size(picture.width * 10, picture.height * 10)
    scene = make_scene(slide=slide, picture=picture, tile_lv0=50.0, classes=classes, prediction=prediction,
                       origins=np.array([[300 + 60 * i, 200] for i in range(9)]))  # fmt: skip
    without = draw(tmp_path / "a.png", scene)
    shown = draw(tmp_path / "b.png", replace(scene, attention=replace(scene.attention, evidence_NC=evidence)))
    assert shown.size > without.size
    for dark, pale in ((0, 2), (2, 0)):  # deep red and deep blue, of which there were none
        deep = [((p[..., dark] < 60) & (p[..., pale] > 70) & (p[..., 1] < 80)).sum() for p in (without, shown)]
        assert deep[1] > deep[0] + 50
    assert (shown[:, -4:] == 255).all()


def test_a_slide_id_that_looks_like_a_formula_or_is_very_long_fits(tmp_path, make_scene):
    pixels = draw(tmp_path / "a.png", make_scene(slide_id="$\\frac_{x" + "y" * 200))
    assert (pixels[:, -10:] == 255).all()


def test_a_large_slide_takes_less_than_three_seconds(tmp_path, make_scene):
    corners = np.stack(np.meshgrid(np.arange(320), np.arange(200)), -1).reshape(-1, 2) * 300
    weights = np.random.default_rng(0).pareto(1.0, 64_000).astype(np.float32)
    scene = make_scene(
        slide=Size(96_001, 60_001),
        picture=Size(1024, 640),
        tile_lv0=300.0,
        origins=corners,
        weights_N=weights / weights.sum(),
        role_N=np.argsort(np.argsort(-weights)).clip(0, 1000).astype(np.uint8) // 255 % 3,
    )
    start = time.perf_counter()
    draw(tmp_path / "a.png", scene)
    assert time.perf_counter() - start < 3


def test_attention_of_another_slide_is_refused_by_name(tmp_path, make_scene):
    scene = make_scene(origins=np.full((9, 2), 3500))
    with pytest.raises(PredictionError, match=r"slide-1: tile 0 starts at \(3500, 3500\), outside the slide of 4001"):
        draw(tmp_path / "a.png", scene)
    assert not list(tmp_path.iterdir())


def test_attention_that_is_not_a_number_is_refused_by_name(tmp_path, make_scene):
    weights = np.full(9, 0.1, np.float32)
    weights[4] = np.nan
    with pytest.raises(PredictionError, match="slide-1: the attention of tile 4 is nan; the model has diverged"):
        draw(tmp_path / "a.png", make_scene(weights_N=weights))


@pytest.mark.parametrize("name", ["$\\undefined$", "$a_{$", "\\$x\\$", "a$b$c"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_class_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path, make_scene, name, num_classes):
    classes = (name, name + "2", name + "3")[:num_classes]
    prediction = Prediction(name, name, None, name, 9, (1 / num_classes,) * num_classes)
    evidence = np.eye(9, num_classes, dtype=np.float32)
    scene = make_scene(slide_id=name, classes=classes, prediction=prediction, evidence_NC=evidence)
    draw(tmp_path / "a.png", scene)
    draw_sheet(tmp_path / "b.png", scene.attention, lambda rows: np.zeros((len(rows), 8, 8, 3), np.uint8))
    draw_curves(tmp_path / "c.png", [{"epoch": 1, "explored": 0.5}], name)


def test_salient_tiles_are_not_outlined_where_nearly_all_are(tmp_path, make_scene):
    """As with preset full: outlines round every tile would hide the slide, and tell nothing."""

    def num_outlined(num_salient):
        role = np.zeros(100, np.uint8)
        role[:num_salient] = ROLES.index("salient")
        pixels = draw(tmp_path / "a.png", make_scene(10, tile_lv0=200.0, role_N=role)).astype(int)
        slide = pixels[:, : pixels.shape[1] // 3]
        return (slide.max(axis=2) < 40).sum()

    tissue = num_outlined(0)
    assert num_outlined(100) == pytest.approx(tissue, rel=0.02)
    assert num_outlined(95) == pytest.approx(tissue, rel=0.02)
