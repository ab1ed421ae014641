"""Pictures of the selection atlas are there, in colour where tiles were chosen, and follow their input."""

import numpy as np
import pytest
from PIL import Image

from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.drawing.atlas_pictures import draw_curves, draw_maps


def colourful(path) -> int:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.int16)
    return int((np.ptp(pixels, axis=2) > 60).sum())


@pytest.mark.parametrize("picture", [Size(200, 80), Size(60, 300)])
def test_only_tiles_that_were_salient_are_coloured(tmp_path, picture: Size) -> None:
    slide, tile = Size(picture.width * 10, picture.height * 10), 150.0
    coords = np.array([[x, 100] for x in range(0, slide.width - 150, 150)])
    thumbnail = np.full((picture.height, picture.width, 3), 230, np.uint8)
    areas = []
    for num in (0, len(coords)):
        chosen = (np.arange(len(coords)) < num).astype(np.int64)
        path = tmp_path / f"{num}.png"
        grid = TileGrid(coords, tile, slide, 0.5)
        draw_maps(path, "a $x^2$, tumour", thumbnail, grid, chosen, chosen * 2, chosen, 3)
        areas.append(colourful(path))
    assert areas[0] < areas[1]


def test_curves_are_drawn_where_there_are_numbers(tmp_path) -> None:
    quartiles = {"q1": 0.2, "median": 0.5, "q3": 0.7}
    bare = [{"epoch": 1, "num_slides": 2, "explored": 0.5}]
    draw_curves(tmp_path / "bare.png", bare, "run")
    draw_curves(
        tmp_path / "full.png",
        [*bare, {**bare[0], "epoch": 2, "churn": quartiles}, {**bare[0], "epoch": 3, "churn": quartiles}],
        "run",
    )
    assert colourful(tmp_path / "full.png") > colourful(tmp_path / "bare.png") + 100
