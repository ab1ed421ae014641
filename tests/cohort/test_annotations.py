"""What a person has drawn: read from both formats, cut to the slide, and shared out over tiles."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.cohort.annotations import lesion_shares, read_annotations, read_lesion
from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.errors import SlideError
from wsi_dbps.core.geometry import Size, TileGrid

SLIDE = Size(1000, 800)
SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]


def feature(rings, name="Tumor", kind="Polygon", **properties):
    about = {"objectType": "annotation", "classification": {"name": name}} | properties
    return {"type": "Feature", "properties": about, "geometry": {"type": kind, "coordinates": rings}}


def xml(*areas) -> str:
    """ASAP's XML of (group, type, points); the points are written in reverse, with their order."""
    drawn = ""
    for group, kind, points in areas:
        at = [f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points)]
        inside = "".join(reversed(at))
        drawn += (
            f'<Annotation Name="A" Type="{kind}" PartOfGroup="{group}"><Coordinates>{inside}</Coordinates></Annotation>'
        )
    return f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{drawn}</Annotations></ASAP_Annotations>'


@pytest.fixture
def written(tmp_path):
    def write(content, name="a.geojson") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def lesion(path: Path, names=(), slide: Size = SLIDE):
    return read_lesion(SlideRecord("s1", "c1", annotations=path), slide, names)


def blob(seed: int, num: int = 40) -> shapely.Polygon:
    """A star-shaped outline with a hole, within 100 x 100."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False)

    def ring(low, high):
        radius = rng.uniform(low, high, num)
        return np.stack([50 + radius * np.cos(angle), 50 + radius * np.sin(angle)], axis=1)

    return shapely.Polygon(ring(20, 49), [ring(5, 15)])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(3, 40), st.floats(-5, 0))
def test_shares_of_covering_tiles_sum_to_the_lesion(seed: int, tile: float, offset: float) -> None:
    drawn = shapely.MultiPolygon([blob(seed), shapely.transform(blob(seed + 1), lambda xy: xy + np.array([120, 30]))])
    at = np.arange(offset, 230, tile)
    tiles = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    shares = lesion_shares(drawn, TileGrid(tiles, tile))
    assert shares.sum() * tile**2 == pytest.approx(drawn.area)
    assert 0 <= shares.min() <= shares.max() <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 300))
def test_a_share_is_that_of_the_tile_alone_in_any_order_and_overlap(seed: int, num: int) -> None:
    rng, drawn = np.random.default_rng(seed), blob(seed, 200)
    tiles = rng.uniform(-10, 100, (num, 2))
    boxes = shapely.box(*tiles.T, *(tiles + 12.5).T)
    alone = [drawn.intersection(box).area / 12.5**2 for box in boxes]
    assert lesion_shares(drawn, TileGrid(tiles, 12.5)) == pytest.approx(alone)


def test_a_share_by_hand() -> None:
    drawn = shapely.union(shapely.box(10, 0, 20, 10), shapely.box(0, 10, 20, 20))
    assert lesion_shares(drawn, TileGrid(np.array([[0, 0], [0, 10], [15, 5], [20, 0]]), 10)).tolist() == [0, 1, 0.5, 0]
    assert lesion_shares(drawn, TileGrid(np.empty((0, 2)), 10)).tolist() == []
    assert lesion_shares(shapely.MultiPolygon(), TileGrid(np.array([[0, 0]]), 10)).tolist() == [0]


def test_geojson_may_be_a_collection_a_list_or_one_feature_or_geometry(written) -> None:
    one = feature([SQUARE])
    for content in ({"type": "FeatureCollection", "features": [one]}, [one], one, one["geometry"]):
        assert lesion(written(content)).area == 100


def test_polygons_have_holes_and_keep_their_class(written) -> None:
    hole = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]
    far = [[[50, 50], [60, 50], [60, 60], [50, 50]]]
    path = written(
        [feature([SQUARE, hole], name="Tumor"), feature([[SQUARE], far], name="Stroma", kind="MultiPolygon")]
    )
    areas = read_annotations(path)
    assert [(area.name, area.shape.area) for area in areas] == [("Tumor", 96), ("Stroma", 150)]
    assert lesion(path).area == 150  # the square of both counts once
    assert lesion(path, ["Tumor"]).area == 96
    with pytest.raises(SlideError, match=r"s1: .*a.geojson: nothing is classified Necrosis; found: Stroma, Tumor"):
        lesion(path, ["Necrosis"])


def test_what_has_no_area_or_is_no_annotation_is_left_out(written) -> None:
    point = feature([5, 5], kind="Point")
    line = feature([[0, 0], [5, 5]], kind="LineString")
    cell = feature([SQUARE], objectType="detection")
    assert read_annotations(written([point, line, cell])) == ()
    assert lesion(written({"type": "FeatureCollection", "features": []})).is_empty


def test_a_ring_that_crosses_itself_encloses_both_its_loops(written) -> None:
    bow_tie = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
    assert lesion(written(feature([bow_tie]))).area == 50


def test_asap_groups_of_exclusion_are_taken_out(written) -> None:
    square, inner = SQUARE[:4], [(2, 2), (4, 2), (4, 4), (2, 4)]
    for tumour, out in (("_0", "_2"), ("Tumor", "Exclusion"), ("metastases", "normal"), ("None", "exclusion")):
        path = written(xml((tumour, "Polygon", square), (out, "Spline", inner)), "a.xml")
        assert lesion(path).area == 96
    names = [area.name for area in read_annotations(path)]
    assert names == ["", "exclusion"]


def test_asap_points_follow_their_order_and_shapes_without_area_are_left_out(written) -> None:
    dot, clicks = ("_0", "Dot", [(1, 1)]), ("_0", "Polygon", [(1, 1), (2, 2)])
    path = written(xml(("_0", "Rectangle", SQUARE[:4]), dot, clicks), "a.xml")
    assert [area.shape.area for area in read_annotations(path)] == [100]


def test_what_a_hand_drew_a_little_over_the_edge_is_cut(written) -> None:
    over = [[-9, 0], [10, 0], [10, 10], [-9, 10], [-9, 0]]
    assert lesion(written(feature([over]))).area == 100


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file of annotations is empty; export it again, or empty its cell"),
        ("{", r"not annotations that can be used: Expecting property name"),
        ('{"type": "FeatureCollection"}', r"not annotations that can be used: feature 0: "),
        ({"features": [feature([[[0, 0], [1, 1]]])]}, r"not annotations that can be used: feature 0: ValueError: "),
        (feature([[[0, 0], [1, "a"], [1, 1], [0, 0]]]), r"not annotations that can be used: feature 0: "),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[[0,0],[9,NaN],[9,9],[0,0]]]}}]', "not a finite number"),
        ("[1]", r"not annotations that can be used: "),
        ("<ASAP_Annotations><Annotation>", r"not annotations that can be used: .*(no element found|mismatched tag)"),
        ("<Annotations/>", r"not annotations that can be used: XML of <Annotations>, not of <ASAP_Annotations>"),
        (xml(("_0", "Polygon", [(0, 0), ("1,5", 0), (3, 3)])), r"could not convert string to float: '1,5'"),
        (xml(("_0", "Polygon", [("nan", 0), (5, 0), (3, 3)])), r"not annotations that can be used: "),
        ('<?xml version="1.0" encoding="klingon"?><ASAP_Annotations/>', r"unknown encoding: klingon"),
        (
            '{"type": "Polygon", "coordinates": [[[1' + "0" * 400 + ", 0], [1, 0], [1, 1], [0, 0]]]}",
            "too large to convert",
        ),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_no_annotations_is_refused_in_one_line(written, content, said) -> None:
    with pytest.raises(SlideError, match=said) as error:
        read_annotations(written(content))
    assert "a.geojson: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "iso-8859-1", "windows-1252"])
def test_asap_in_any_encoding_is_read(tmp_path, encoding) -> None:
    body = xml(("Tumör", "Polygon", SQUARE[:4])).partition("?>")[2]
    content = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>{body}'
    (tmp_path / "a.xml").write_bytes(content.encode(encoding))
    assert [(area.name, area.shape.area) for area in read_annotations(tmp_path / "a.xml")] == [("Tumör", 100)]


def test_qupaths_zip_is_named(tmp_path) -> None:
    """QuPath exports `.geojson`, or the same in a `.zip`."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.geojson", '{"type": "FeatureCollection", "features": []}')
    with pytest.raises(
        SlideError, match=r"a.zip: a compressed file; QuPath's export as .zip holds the GeoJSON: unpack"
    ):
        read_annotations(tmp_path / "a.zip")


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(SlideError, match=r"gone.xml: annotations cannot be read: No such file or directory"):
        read_annotations(tmp_path / "gone.xml")


def test_annotations_off_the_slide_or_in_other_units_are_refused(written) -> None:
    away = [[900, 700], [1400, 700], [1400, 750], [900, 750], [900, 700]]
    with pytest.raises(
        SlideError,
        match=r"s1: .*a.geojson: annotations from \(900, 700\) to \(1400, 750\) lie off the slide of 1000 x 800 px; "
        "they must be of this slide, in its level-0 pixels",
    ):
        lesion(written(feature([away])))
    far = [[1e300, 1e300], [2e300, 1e300], [2e300, 2e300], [1e300, 1e300]]
    with pytest.raises(SlideError, match=r"from \(1e\+300, 1e\+300\) to \(2e\+300, 2e\+300\) lie off the slide"):
        lesion(written(feature([far])))
    with pytest.raises(SlideError, match=r"all areas together are 0.25 square pixels; coordinates must be level-0"):
        lesion(written(feature([[[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5], [0, 0]]])))


def drawn_at(tmp_path, *rings) -> Path:
    features = [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}}
        for ring in rings
    ]
    path = tmp_path / "drawn.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize("num", [1500, 6000])
def test_an_outline_that_crosses_itself_too_often_is_refused_with_the_limit(tmp_path, num) -> None:
    ring = np.random.default_rng(0).uniform(0, 5000, (num, 2)).round(1).tolist()
    path = drawn_at(tmp_path, ring)
    with pytest.raises(SlideError) as error:
        read_annotations(path)
    assert str(error.value) == (
        f"{path}: not annotations that can be used: outlines of {num:,} edges cross more than 2,000 times, the limit "
        "(MAX_CROSSINGS in wsi_dbps/cohort/annotations.py); draw the area again, or simplify it in the tool it was "
        "drawn with"
    )


def comb(num: int, *, turned: bool) -> list[list[float]]:
    """A valid polygon of `num` long teeth."""
    x, y = np.repeat(np.arange(2.0 * num), 2), np.tile([0.0, 2 * num, 2 * num, 0], num)
    points = np.concatenate([np.stack([x, y], axis=1), [[2 * num - 1, -1.0], [0, -1]]])
    return (points[:, ::-1] if turned else points).tolist()


def test_areas_may_cross_each_other_up_to_a_limit(tmp_path) -> None:
    few = read_annotations(drawn_at(tmp_path, comb(20, turned=False), comb(20, turned=True)))
    assert len(few) == 2
    many = drawn_at(tmp_path, comb(400, turned=False), comb(400, turned=True))
    with pytest.raises(SlideError, match=r"cross more than 200,000 times, the limit \(MAX_CROSSINGS_OF_AREAS in"):
        read_annotations(many)


def test_neither_many_vertices_nor_many_neighbours_are_taken_for_crossings(tmp_path) -> None:
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    circle = (1000 * np.stack([np.cos(angle), np.sin(angle)], axis=1)).tolist()
    squares = [[[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]] for x in range(20) for y in range(20)]
    figure_of_eight = [[0, 0], [10, 10], [10, 0], [0, 10]]
    assert len(read_annotations(drawn_at(tmp_path, circle, *squares, figure_of_eight))) == 402
