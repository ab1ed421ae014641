"""Names of the files of heatmaps: two slides never share one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.drawing.placement import drawn_path

ENDINGS = ("png", "ome.tiff", "rgb.ome.tiff", "geojson", "sheet.png", "csv", "level0.png", "level12.png")
ENDINGS += ("level0.crop1.png", "level12.crop30.png", "atlas.png")
part = st.sampled_from(
    ["S", ".rgb", ".sheet", ".atlas", ".level0", ".level12", ".crop1", ".crop30", "_", ".png", ".RGB"]
)
ids = st.lists(part, min_size=1, max_size=5).map("".join)


@given(ids, ids, st.sampled_from(ENDINGS), st.sampled_from(ENDINGS))
def test_no_two_slides_share_a_file(first, second, one, other) -> None:
    same = drawn_path(Path("maps"), first, one) == drawn_path(Path("maps"), second, other)
    assert same == ((first, one) == (second, other))


@pytest.mark.parametrize("slide_id", ["S", "a.b", "tumor_001", "S.rgb.x", "2024.01.05", "S_", "level0", "rgb"])
def test_names_stay_as_they_were_where_nothing_can_collide(slide_id) -> None:
    assert drawn_path(Path("maps"), slide_id, "png") == Path("maps") / f"{slide_id}.png"
