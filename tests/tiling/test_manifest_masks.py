import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.errors import SlideError
from wsi_dbps.core.geometry import Size
from wsi_dbps.formats.spec import CacheSpec, TilingSpec
from wsi_dbps.tiling.doubts import slide_notes
from wsi_dbps.tiling.masks import MAX_POINTS, read_mask
from wsi_dbps.tiling.slide_plan import plan_slide

SLIDE, GRID = Size(4000, 2000), Size(200, 100)


def square(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def polygon(*rings: list[list[float]]) -> dict:
    return {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": list(rings)}}


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def read_geojson(folder: Path, value: object) -> np.ndarray:
    return read_mask(write(folder / "a.geojson", value), SLIDE, GRID).mask_HW


@settings(deadline=None)
@given(st.integers(0, 150), st.integers(0, 60), st.integers(5, 50), st.integers(5, 40))
def test_a_rectangle_covers_its_area_to_within_a_grid_pixel(tmp_path_factory, x: int, y: int, w: int, h: int) -> None:
    mask_HW = read_geojson(tmp_path_factory.getbasetemp(), polygon(square(20 * x, 20 * y, 20 * (x + w), 20 * (y + h))))
    inner = np.zeros((100, 200), np.bool_)
    inner[y + 1 : y + h - 1, x + 1 : x + w - 1] = True
    outer = np.zeros_like(inner)
    outer[max(0, y - 1) : y + h + 1, max(0, x - 1) : x + w + 1] = True
    assert (mask_HW[inner]).all()
    assert not mask_HW[~outer].any()


def test_a_hole_is_no_tissue(tmp_path: Path) -> None:
    mask_HW = read_geojson(tmp_path, polygon(square(400, 400, 2400, 1600), square(800, 800, 1600, 1200)))
    assert mask_HW[30, 50]
    assert not mask_HW[50, 60]
    assert not mask_HW[50, 10]


@pytest.mark.parametrize("island_first", [False, True])
def test_a_hole_is_its_own_polygons_only(tmp_path: Path, island_first: bool) -> None:
    around = polygon(square(400, 400, 2400, 1600), square(800, 800, 1600, 1200))
    island = polygon(square(1000, 900, 1400, 1100))
    features = [island, around] if island_first else [around, island]
    mask_HW = read_geojson(tmp_path, {"type": "FeatureCollection", "features": features})
    assert mask_HW[50, 60]
    assert not mask_HW[50, 45]


def test_every_shape_of_geojson_is_read(tmp_path: Path) -> None:
    one, other = square(400, 400, 800, 800), square(2000, 400, 2400, 800)
    both = [{"type": "Polygon", "coordinates": [one]}, {"type": "Polygon", "coordinates": [other]}]
    empty = {"type": "Feature", "properties": {}, "geometry": None}
    point = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [1, 1]}}
    shapes = [
        {"type": "MultiPolygon", "coordinates": [[one], [other]]},
        {"type": "GeometryCollection", "geometries": both},
        {"type": "FeatureCollection", "features": [empty, point, polygon(one), polygon(other)]},
        [polygon(one), polygon(other)],
        {"type": "MultiPolygon", "coordinates": [[[[x, y, 0] for x, y in one]], [other]]},
    ]
    found = [read_geojson(tmp_path, shape) for shape in shapes]
    assert found[0][30, 30]
    assert found[0][30, 110]
    assert not found[0][30, 70]
    for mask_HW in found[1:]:
        np.testing.assert_array_equal(mask_HW, found[0])


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(polygon(square(400, 400, 800, 800))), encoding="utf-8-sig")
    assert read_mask(path, SLIDE, GRID).mask_HW[30, 30]


EXPECTED = np.zeros((50, 100), np.bool_)
EXPECTED[10:20, 30:60] = True


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "I", "F", "RGB", "RGBA", "P"])
def test_an_image_of_any_mode_is_tissue_where_it_is_not_0(tmp_path: Path, mode: str) -> None:
    if mode in ("RGB", "RGBA"):
        image = Image.fromarray(np.dstack([EXPECTED * np.uint8(0)] * 2 + [EXPECTED * np.uint8(1)])).convert(mode)
    elif mode == "P":
        image = Image.fromarray(EXPECTED.astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 9, 0, 0])
    else:
        types = {"1": np.bool_, "L": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray(EXPECTED.astype(types[mode]) * types[mode](1 if mode != "F" else 0.25))
    assert image.mode == mode
    path = tmp_path / ("a.tif" if mode in ("I", "F") else "a.png")
    image.save(path)
    mask = read_mask(path, SLIDE, GRID)
    assert mask.slide_lv0 == SLIDE
    np.testing.assert_array_equal(mask.mask_HW, EXPECTED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not GeoJSON: JSONDecodeError("),
        ("3", "not GeoJSON: TypeError("),
        ('{"a": 1}', "not GeoJSON: KeyError('type')"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1]]]}', "not GeoJSON: ValueError("),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1], [2, 2]]]}', "not GeoJSON: ValueError("),
        ('{"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [2, 2]]]}', "not GeoJSON: ValueError("),
        ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
        ('{"type": "Point", "coordinates": [1, 1]}', "holds no polygon"),
    ],
)
def test_geojson_without_usable_polygons_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(content)
    with pytest.raises(SlideError) as caught:
        read_mask(path, SLIDE, GRID)
    assert str(caught.value).startswith(f"mask {path}: {message}")
    assert "\n" not in str(caught.value)


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.geojson"):
        with pytest.raises(SlideError, match=rf"^mask {tmp_path}/{name}: .*No such file"):
            read_mask(tmp_path / name, SLIDE, GRID)
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(SlideError, match=rf"^mask {tmp_path}/a.png: neither an image nor GeoJSON: "):
        read_mask(tmp_path / "a.png", SLIDE, GRID)


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    Image.new("L", (100, 60), 255).save(tmp_path / "a.png")
    said = f"mask {tmp_path}/a.png: 100 x 60 px, which is not the shape of the slide (4000 x 2000)"
    with pytest.raises(SlideError, match=f"^{re.escape(said)}$"):
        read_mask(tmp_path / "a.png", SLIDE, GRID)
    Image.new("L", (101, 50), 255).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", SLIDE, GRID).mask_HW.all()


def test_a_mask_too_large_for_memory_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    Image.new("L", (100, 50), 255).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(SlideError, match="too large to hold in memory") as caught:
        read_mask(tmp_path / "a.png", SLIDE, GRID)
    assert str(caught.value).endswith(
        "(above 4000 px, twice Pillow's MAX_IMAGE_PIXELS); shrink it, a few µm per pixel will do"
    )


def test_a_colour_picture_is_no_mask_and_a_painted_one_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = np.full((100, 200, 3), 240, np.uint8)
    picture[20:60, 30:90] = np.clip(rng.normal((190, 110, 160), 12, (40, 60, 3)), 0, 255)  # tissue, with CLAM's outline
    picture[20:60, 30:32] = (0, 255, 0)
    for name in ("clam.jpg", "clam.png"):
        Image.fromarray(picture).save(tmp_path / name)
        with pytest.raises(
            SlideError, match=rf"^mask {tmp_path}/{name}: a colour picture, not a mask: every pixel but"
        ):
            read_mask(tmp_path / name, SLIDE, GRID)
    painted = np.zeros((100, 200, 3), np.uint8)
    painted[20:60, 30:90] = (255, 0, 0)
    painted[20:60, 60:90] = (0, 255, 0)
    grey = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 100, 0).repeat(3, 2)
    Image.fromarray(painted).save(tmp_path / "painted.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "painted.png", SLIDE, GRID).mask_HW.sum() == 40 * 60
    assert read_mask(tmp_path / "grey.png", SLIDE, GRID).mask_HW.sum() == 199 * 100


def test_edges_that_cross_are_drawn_in_bounded_time_and_too_many_points_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    crossing = (rng.random((20_000, 2)) * [4000, 2000]).tolist()
    assert read_geojson(tmp_path, polygon([*crossing, crossing[0]])).mean() > 0.8
    many = [*([x, 0] for x in range(MAX_POINTS - 1)), [0, 0]]
    said = f"mask {tmp_path}/a.geojson: {MAX_POINTS + 4} points, more than are drawn (MAX_POINTS is {MAX_POINTS});"
    with pytest.raises(SlideError, match=f"^{re.escape(said)} simplify its outlines$"):
        read_geojson(tmp_path, [polygon(many), polygon([[0, 0], [9, 0], [9, 9], [0, 0]])])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e300", "1" + "0" * 400])
def test_a_coordinate_that_is_no_place_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.geojson").write_text(f'{{"type": "Polygon", "coordinates": [[[0, 0], [{value}, 1], [2, 2]]]}}')
    with pytest.raises(SlideError, match=r": not GeoJSON: (ValueError|OverflowError)\("):
        read_mask(tmp_path / "a.geojson", SLIDE, GRID)


def test_brackets_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text("[" * 100_000)
    with pytest.raises(SlideError, match=r": not GeoJSON: RecursionError\("):
        read_mask(tmp_path / "a.geojson", SLIDE, GRID)


def test_a_mask_that_is_tissue_everywhere_is_said(tmp_path: Path) -> None:
    picture = np.full((256, 512, 3), 240, np.uint8)
    picture[64:192, 64:192] = (200, 120, 170)
    Image.fromarray(picture).save(tmp_path / "slide.png")
    spec = CacheSpec(tiling=TilingSpec(size_px=64))
    for value, said in (
        (255, ["its mask takes the whole slide for tissue; is it the mask, and not a picture"]),
        (0, []),
    ):
        mask = np.full((256, 512), 255, np.uint8)
        mask[:100] = value
        Image.fromarray(mask).save(tmp_path / "mask.png")
        record = SlideRecord("a", "a", tmp_path / "slide.png", mpp_um=0.5, mask=tmp_path / "mask.png")
        found = [note for note in slide_notes(plan_slide(record, spec)) if "mask" in note]
        assert [note.partition(" of the slide?")[0] for note in found] == said
    everything = SlideRecord("a", "a", tmp_path / "slide.png", mpp_um=0.5, extra={"tissue": "none"})
    assert list(slide_notes(plan_slide(everything, spec))) == []  # it has no mask to mistake
