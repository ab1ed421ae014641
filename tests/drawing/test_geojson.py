import json
import uuid

import numpy as np
import pytest

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.core.geometry import Size
from wsi_dbps.drawing.geojson import write_geojson
from wsi_dbps.drawing.raster import percentile_ranks
from wsi_dbps.formats.attention import ROLES


def written(path, scene):
    write_geojson(path, scene.attention)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_every_row_comes_back_in_order_with_its_place_role_and_attention(tmp_path, make_scene, n):
    scene = make_scene(n)
    a = scene.attention
    collection = written(tmp_path / "a.geojson", scene)
    assert collection["type"] == "FeatureCollection"
    features = collection["features"]
    properties = [feature["properties"] for feature in features]
    rings = np.array([feature["geometry"]["coordinates"][0] for feature in features]).reshape(-1, 5, 2)
    np.testing.assert_array_equal(rings.min(axis=1), a.grid.origins_lv0)
    np.testing.assert_allclose(rings.max(axis=1) - rings.min(axis=1), a.grid.tile_lv0)
    measured = np.array([p["measurements"]["attention"] for p in properties], np.float32)
    np.testing.assert_array_equal(measured, a.weights_N)
    percentiles = [p["measurements"]["attention percentile"] for p in properties]
    np.testing.assert_allclose(percentiles, 100 * percentile_ranks(a.weights_N), atol=1e-4)
    assert [p["classification"]["name"] for p in properties] == [ROLES[role] for role in a.role_N]


def test_rings_are_closed_and_wound_as_the_standard_asks(tmp_path, make_scene):
    for feature in written(tmp_path / "a.geojson", make_scene())["features"]:
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert (ring[0] == ring[-1]).all()
        x, y = ring.T
        assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0


def test_a_feature_has_what_qupath_reads(tmp_path, make_scene):
    scene = make_scene(1, evidence_NC=np.array([[-0.5, 1.25]], np.float32))
    feature = written(tmp_path / "a.geojson", scene)["features"][0]
    assert uuid.UUID(feature.pop("id")).version == 5
    assert feature == {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[600, 500], [900.4, 500], [900.4, 800.4], [600, 800.4], [600, 500]]],
        },
        "properties": {
            "objectType": "tile",
            "classification": {"name": "salient", "color": [213, 94, 0]},
            "measurements": {
                "attention": 1.0,
                "attention percentile": 50.0,
                "evidence normal": -0.5,
                "evidence tumor": 1.25,
                "probability normal": 0.25,
                "probability tumor": 0.75,
            },
        },
    }


def test_ids_are_stable_and_differ_between_rows_and_slides(tmp_path, make_scene):
    def ids(**changes):
        return [feature["id"] for feature in written(tmp_path / "a.geojson", make_scene(**changes))["features"]]

    assert ids() == ids(weights_N=np.full(9, 1 / 9, np.float32))
    assert len({*ids(), *ids(slide_id="slide-2")}) == 18


def test_attention_of_another_slide_is_refused_and_leaves_no_file(tmp_path, make_scene):
    with pytest.raises(PredictionError, match="slide-1: tile 0 starts at"):
        write_geojson(tmp_path / "a.geojson", make_scene(slide=Size(500, 500)).attention)
    assert not list(tmp_path.iterdir())
