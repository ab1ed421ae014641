"""What the files hold besides places, which test_alignment looks at."""

import csv
import glob
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_dbps.core.errors import PredictionError, SlideError
from wsi_dbps.core.geometry import Region, Size, TileGrid, pyramid_levels
from wsi_dbps.drawing.closeup import FOOT_PX, LEAST_WIDTH_PX, crop_regions, draw_level
from wsi_dbps.drawing.geojson import write_geojson
from wsi_dbps.drawing.ome_tiff import map_grid, write_coloured_map, write_value_map
from wsi_dbps.drawing.raster import percentile_ranks
from wsi_dbps.drawing.sheet import PER_KIND, draw_sheet, sheet_rows
from wsi_dbps.drawing.tile_csv import write_scores
from wsi_dbps.drawing.tile_maps import percentile_map
from wsi_dbps.formats.attention import ROLES


def evidence(n: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(n, 2)).astype(np.float32)


def patches(rows) -> np.ndarray:
    """Patches whose grey is their row."""
    return np.array([np.full((16, 16, 3), row, np.uint8) for row in rows]).reshape(-1, 16, 16, 3)


def test_the_same_attention_gives_the_same_files(tmp_path, make_scene) -> None:
    scene = make_scene(evidence_NC=evidence(9))
    a = scene.attention
    for folder in ("one", "two"):  # test_overlay looks at the PNG
        at = tmp_path / folder
        write_value_map(at / "a.ome.tiff", a, smooth_um=50)
        write_coloured_map(at / "a.rgb.ome.tiff", a, percentile_map(a))
        draw_sheet(at / "a.sheet.png", a, patches)
        write_scores(at / "a.csv", a)
        write_geojson(at / "a.geojson", a)
    names = sorted(glob.glob("*", root_dir=tmp_path / "one"))
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_map_names_its_channels_and_says_what_it_is_of(tmp_path, make_scene) -> None:
    scene = make_scene(slide_id="<a> & b", evidence_NC=evidence(9))
    write_value_map(tmp_path / "a.ome.tiff", scene.attention)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        ome = tifffile.xml2dict(file.ome_metadata)["OME"]
        pixels, series = ome["Image"]["Pixels"], file.series[0]
    assert ome["Image"]["Name"] == "<a> & b"
    named = [channel["Name"] for channel in pixels["Channel"]]
    assert named == ["attention percentile", "attention", "evidence normal", "evidence tumor", "salient", "recycled"]
    assert (series.axes, series.dtype, series.shape[0]) == ("CYX", np.float32, 6)
    grid = map_grid(scene.attention.grid)
    assert pixels["PhysicalSizeX"] == pixels["PhysicalSizeY"] == pytest.approx(grid.pixel_lv0 * 0.25, rel=1e-12)
    assert {plane[f"Position{axis}"] for plane in pixels["Plane"] for axis in "XY"} == {0}
    told = {m["K"]: m["value"] for m in ome["StructuredAnnotations"]["MapAnnotation"]["Value"]["M"]}
    assert (told["level0_pixels_per_pixel"], told["predicted"], told["label"]) == (grid.pixel_lv0, "tumor", "tumor")


@pytest.mark.parametrize("n", [0, 1])
def test_few_tiles_or_none_still_give_every_file(tmp_path, make_scene, n) -> None:
    scene = make_scene(n, evidence_NC=evidence(n))
    a = scene.attention
    write_value_map(tmp_path / "a.ome.tiff", a, smooth_um=20)
    write_coloured_map(tmp_path / "a.rgb.ome.tiff", a, percentile_map(a))
    draw_sheet(tmp_path / "a.sheet.png", a, patches)
    write_scores(tmp_path / "a.csv", a)
    shown = ~np.isnan(tifffile.imread(tmp_path / "a.ome.tiff"))
    assert shown.any() == bool(n)
    assert (tifffile.imread(tmp_path / "a.rgb.ome.tiff") < 255).any() == bool(n)
    with tifffile.TiffFile(tmp_path / "a.rgb.ome.tiff") as file:
        assert '<M K="full_colour_at">100.0</M>' in file.ome_metadata
        assert '<M K="colours_show">Attention percentile: % of tiles with less</M>' in file.ome_metadata


def test_a_grid_is_bounded_and_halves_without_rest() -> None:
    grid = map_grid(TileGrid(np.array([[33, 57]]), 8.0, Size(100_003, 99_991)), max_px=1 << 22)
    assert grid.size.width * grid.size.height < 1.1 * (1 << 22)
    assert grid.size.width % (1 << (grid.num_levels - 1)) == 0
    assert grid.size.width * grid.pixel_lv0 >= 100_003
    assert grid.window(grid.num_levels - 1).picture.width <= 512


def test_the_table_holds_every_score_exactly(tmp_path, make_scene) -> None:
    a = make_scene(5, evidence_NC=evidence(25)).attention
    write_scores(tmp_path / "a.csv", a)
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("row", "x", "y", "tile_lv0", "attention", "percentile", "role", "evidence_normal", "evidence_tumor")
    ]
    np.testing.assert_array_equal(np.array([row["attention"] for row in rows], np.float32), a.weights_N)
    np.testing.assert_array_equal(np.array([row["evidence_tumor"] for row in rows], np.float32), a.evidence_NC[:, 1])
    percentiles = [float(row["percentile"]) for row in rows]
    np.testing.assert_allclose(percentiles, 100 * percentile_ranks(a.weights_N), atol=1e-4)
    assert [row["role"] for row in rows] == [ROLES[role] for role in a.role_N]


def test_the_table_needs_no_tile_side_and_maps_do(tmp_path, make_scene) -> None:
    a = make_scene().attention
    a = replace(a, grid=a.grid.with_tile(float("nan")))
    write_scores(tmp_path / "a.csv", a)
    with open(tmp_path / "a.csv", newline="") as file:
        assert {row["tile_lv0"] for row in csv.DictReader(file)} == {""}
    with pytest.raises(PredictionError, match="slide-1: the features do not say how large a tile is"):
        write_value_map(tmp_path / "a.ome.tiff", a)
    assert glob.glob("*", root_dir=tmp_path) == ["a.csv"]


def test_the_sheet_shows_the_highest_of_each_kind_and_the_lowest(make_scene) -> None:
    a = make_scene(7, role_N=np.arange(49).astype(np.uint8) % 3).attention  # weights rise with the row
    rows = sheet_rows(a)
    assert rows["Highest salient"].tolist() == list(range(46, 46 - 3 * PER_KIND, -3))
    assert rows["Highest recycled"].tolist() == list(range(47, 47 - 3 * PER_KIND, -3))
    assert rows["Lowest"].tolist() == list(range(PER_KIND))


def test_the_sheet_draws_the_patches_it_names(tmp_path, make_scene) -> None:
    a = make_scene().attention
    draw_sheet(tmp_path / "a.png", a, lambda rows: patches(100 + 10 * np.array(rows)))
    page = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    greys, counts = np.unique(page[(page == page[..., :1]).all(axis=-1)][:, 0], return_counts=True)
    assert set(greys[counts > 60_000]) == {*range(100, 180, 10), 255}  # the ninth is of no kind


def reader(size: Size):
    return lambda region: np.full((region.height, region.width, 3), 200, np.uint8)


def test_a_level_that_is_too_large_or_not_there_is_refused_with_what_to_do(tmp_path, make_scene) -> None:
    size = Size(40_001, 30_003)
    levels = pyramid_levels([size, Size(10_000, 7500), Size(2500, 1875)])
    a = make_scene(slide=size).attention
    draw = (reader(size), levels)
    with pytest.raises(SlideError) as error:
        draw_level(tmp_path / "a.png", *draw, 0, a, percentile_map(a))
    assert str(error.value) == (
        "slide-1: level 0 is 40001 x 30003 px = 1200 million pixels, of which at most 100 are drawn; "
        "ask for --overlay-level 1, or for --crops"
    )
    with pytest.raises(SlideError, match="slide-1: has no level 3; its levels are 0 to 2"):
        draw_level(tmp_path / "a.png", *draw, 3, a, percentile_map(a))
    draw_level(tmp_path / "a.png", *draw, 2, a, percentile_map(a))
    with Image.open(tmp_path / "a.png") as page:
        assert page.size == (2500, 1875 + FOOT_PX)
    assert glob.glob("*", root_dir=tmp_path) == ["a.png"]


def test_a_level_has_a_scale_bar_and_its_colours_below_even_where_it_is_narrow(tmp_path, make_scene) -> None:
    size = Size(4001, 3003)
    levels = pyramid_levels([size, Size(400, 300)])
    a = make_scene(slide=size).attention
    draw_level(tmp_path / "a.png", reader(size), levels, 1, a, percentile_map(a))
    page = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert page.shape == (300 + FOOT_PX, LEAST_WIDTH_PX, 3)
    assert (page[:300, 400:] == 255).all()
    foot = page[300:].astype(int)
    bar = (foot[17] < 60).all(axis=1)
    assert bar[:80].all()  # 200 µm at 2.5 µm per pixel, the longest round length of at most a fifth of the file's width
    assert not bar[80:90].any()
    assert np.ptp(foot[34:68], axis=2).max() > 80  # the colours
    assert (foot[68:] < 200).any()  # the text


def test_crops_lie_on_the_slide_round_the_highest_salient_and_no_middle_is_shown_twice(make_scene) -> None:
    size = Size(9001, 8003)
    levels = pyramid_levels([size, Size(2250, 2000)])
    a = make_scene(20, slide=size).attention
    for level in (0, 1):
        found = crop_regions(a, levels, level, 50)
        middles = (a.grid.origins_lv0 + a.grid.tile_lv0 / 2) / levels[level].downsample
        assert found[0][0] == 1  # of the two salient rows, 0 and 1, the higher
        seen: list[Region] = []
        for row, region in found:
            assert 0 <= region.x <= levels[level].size.width - region.width
            assert 0 <= region.y <= levels[level].size.height - region.height
            x, y = middles[row]
            assert region.x <= x < region.x + region.width
            assert not any(r.x <= x < r.x + r.width and r.y <= y < r.y + r.height for r in seen)
            seen.append(region)
        assert len(crop_regions(a, levels, level, 2)) == min(2, len(found))


def test_no_file_is_left_of_what_could_not_be_written(tmp_path: Path, make_scene) -> None:
    scene = make_scene(evidence_NC=np.zeros((4, 2), np.float32))
    for write in (write_value_map, write_geojson):
        with pytest.raises(PredictionError, match=r"evidence of shape \(4, 2\)"):
            write(tmp_path / "a", scene.attention)
    with pytest.raises(PredictionError, match=r"evidence of shape \(4, 2\)"):
        write_scores(tmp_path / "a", scene.attention)
    assert not list(tmp_path.iterdir())


def test_the_page_of_heatmaps_is_true(tmp_path: Path, make_scene) -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats" / "heatmaps.md").read_text(encoding="utf-8")
    scene = make_scene(evidence_NC=evidence(9))
    a = scene.attention
    write_value_map(tmp_path / "a.ome.tiff", a)
    write_scores(tmp_path / "a.csv", a)
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    found: dict = {"path": tmp_path / "a.ome.tiff"}
    exec(block, found)
    left = a.grid.origins_lv0[a.weights_N.argmax(), 0]
    assert left <= found["x_um"] / 0.25 <= left + a.grid.tile_lv0
    known = set(re.findall(r"`([^`\n]+)`", page))
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        channels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]["Channel"]
    columns = (tmp_path / "a.csv").read_text().splitlines()[0].split(",")
    for name in (*(channel["Name"] for channel in channels), *columns):
        assert name.replace("normal", "<class>").replace("tumor", "<class>") in known, name
