"""No format is off by more than one pixel of its own grid anywhere: each is read back by other people's code.

A slide whose pixels encode their own coordinates is tiled and read back; slides of 100,000 px, where pixels need not
be there, are checked by geometry alone. Errors are in level-0 pixels against the tiles the cache really shows.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
import tiffslide
from fiducial import decode_centre, decode_pixels, fiducial_image
from lossless import write_lossless
from PIL import Image

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.geometry import Region, Size, TileGrid
from wsi_dbps.drawing.closeup import crop_regions, draw_crops, draw_level
from wsi_dbps.drawing.geojson import write_geojson
from wsi_dbps.drawing.ome_tiff import map_grid, write_coloured_map, write_value_map
from wsi_dbps.drawing.raster import rasterize
from wsi_dbps.drawing.tile_csv import write_scores
from wsi_dbps.drawing.tile_maps import percentile_map
from wsi_dbps.formats.attention import SlideAttention
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.predictions import Prediction
from wsi_dbps.formats.spec import CacheSpec, TilingSpec
from wsi_dbps.slides.open import open_slide
from wsi_dbps.tiling.outcomes import Tiled
from wsi_dbps.tiling.tile_slide import tile_slide


@dataclass(frozen=True)
class Scene:
    """A slide, and attention that singles out one of its tiles."""

    attention: SlideAttention
    row: int

    @property
    def slide_lv0(self) -> Size:
        return self.attention.grid.slide_lv0

    @property
    def mpp_um(self) -> float:
        return self.attention.grid.mpp_lv0_um

    @property
    def box(self) -> np.ndarray:
        """left, top, right, bottom of the tile, in level-0 pixels, cut at the slide's edge"""
        corner = self.attention.grid.origins_lv0[self.row]
        far = np.minimum(corner + self.attention.grid.tile_lv0, [self.slide_lv0.width, self.slide_lv0.height])
        return np.concatenate([corner, far])

    def alone(self) -> "Scene":
        """Only the tile, so that all that shows is its own."""
        return one_tile(self.attention.grid.take(np.array([self.row])))


def attention_of(grid: TileGrid, row: int) -> SlideAttention:
    n = len(grid)
    weights = np.full(n, 0.5 / n, np.float32)
    weights[row] += 0.5
    role = np.zeros(n, np.uint8)
    role[row] = 1
    evidence = np.zeros((n, 2), np.float32)
    evidence[row] = -1, 1
    prediction = Prediction("s", "c", None, None, n, (0.25, 0.75))
    return SlideAttention("s", prediction, ("a", "b"), grid, weights[:, None], weights, role, "c", "k", evidence)


def one_tile(grid: TileGrid) -> Scene:
    return Scene(attention_of(grid, 0), 0)


def extent(shown_HW: np.ndarray) -> np.ndarray:
    """left, top, right, bottom edges of what is shown, in pixels."""
    rows, columns = (np.flatnonzero(shown_HW.any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


SIDES = Size(1283, 1131)


HUGE = [
    one_tile(TileGrid(np.array([[99_003, 98_877]]), 896.0, Size(100_003, 99_991), 0.2527)),
    one_tile(TileGrid(np.array([[100_200, 29_300]]), 747.31, Size(101_117, 30_013), 0.2527)),
    one_tile(TileGrid(np.array([[2001, 117_003]]), 473.9, Size(5003, 120_011), 0.5021)),
    one_tile(TileGrid(np.array([[0, 0]]), 473.9, Size(5003, 120_011), 0.5021)),
]


TILINGS = [(0.5, 0.5, 0), (0.5, 0.5, 24), (0.46, 0.7, 0), (0.25, 1.0, 17)]
"""(slide mpp, patch mpp, overlap): native and not, with overlap and without."""


def tile(mpp_um: float, patch_um: float, overlap: int, folder: Path) -> tuple[Path, PatchCache, Scene]:
    """A fiducial slide's file, its cache, and a scene in which the last tile is singled out."""
    write_lossless(folder / "s.tiff", fiducial_image(SIDES), mpp_um=mpp_um, tile_px=64, downsamples=(1, 4))
    tiling = TilingSpec(mpp_um=patch_um, size_px=64, overlap_px=overlap, tissue="none", min_tissue=0.0)
    record = SlideRecord("s", "c", folder / "s.tiff")
    assert isinstance(tile_slide(record, CacheSpec(tiling=tiling, quality=100), folder), Tiled)
    cache = PatchCache(folder / "s.h5")
    last = len(cache) - 1
    return folder / "s.tiff", cache, Scene(attention_of(cache.grid, last), last)


@pytest.fixture(scope="module", params=TILINGS, ids=str)
def tiled(request, tmp_path_factory):
    return tile(*request.param, tmp_path_factory.mktemp("fiducial"))


@pytest.fixture(scope="module", params=[*TILINGS, *HUGE], ids=lambda p: str(getattr(p, "slide_lv0", p)))
def scene(request, tmp_path_factory):
    """Every tile of a fiducial slide, or one tile on a huge one."""
    if isinstance(request.param, Scene):
        return request.param
    return tile(*request.param, tmp_path_factory.mktemp("fiducial"))[2]


def test_the_place_of_a_tile_is_where_its_pixels_are_from(tiled) -> None:
    """The rest of this file measures against coordinates; here the pixels themselves say where they lie, to within a
    step of the code's coarse part, 16 px, by which JPEG's colours are off."""
    _, cache, scene = tiled
    rows = [0, len(cache) // 2, scene.row]
    for row, patch in zip(rows, cache.patches(rows), strict=True):
        np.testing.assert_allclose(decode_centre(patch), cache.grid.origins_lv0[row] + cache.grid.tile_lv0 / 2, atol=16)


@pytest.mark.parametrize("longest", [255, 1024])
def test_rasters_are_off_by_less_than_a_pixel(scene, longest) -> None:
    scene = scene.alone()
    slide = scene.slide_lv0
    scale = longest / max(slide.width, slide.height)
    picture = Size(max(1, round(slide.width * scale)), max(1, round(slide.height * scale)))
    a = scene.attention
    raster = rasterize(a.grid, np.ones(1), picture)
    factor = np.array([picture.width / slide.width, picture.height / slide.height] * 2)
    assert np.abs(extent(~np.isnan(raster.values_HW)) - scene.box * factor).max() <= 1


def check_map(path, scene: Scene, shown) -> None:
    """Registered by the physical size of a pixel and the origin alone, at every level, as tiffslide reads them."""
    with tiffslide.TiffSlide(path) as slide:
        um = np.array([slide.properties["tiffslide.mpp-x"], slide.properties["tiffslide.mpp-y"]] * 2, float)
        for level, (size, downsample) in enumerate(zip(slide.level_dimensions, slide.level_downsamples, strict=True)):
            pixels = slide.read_region((0, 0), level, size, as_array=True)
            box = extent(shown(pixels)) * downsample * um / scene.mpp_um
            pixel_lv0 = downsample * um / scene.mpp_um
            assert (np.abs(box - scene.box) <= pixel_lv0).all(), f"level {level}"
            reaches = np.array(size) * pixel_lv0[:2]
            assert (reaches >= [scene.slide_lv0.width, scene.slide_lv0.height]).all()


def test_the_maps_of_values_lie_where_tiffslide_finds_them(scene, tmp_path) -> None:
    scene = scene.alone()
    write_value_map(tmp_path / "a.ome.tiff", scene.attention)
    check_map(tmp_path / "a.ome.tiff", scene, lambda pixels: ~np.isnan(pixels[..., 0]))


def test_the_coloured_maps_lie_where_tiffslide_and_openslide_find_them(scene, tmp_path) -> None:
    scene = scene.alone()
    one = percentile_map(scene.attention)
    path = tmp_path / "a.rgb.ome.tiff"
    write_coloured_map(path, scene.attention, one)
    check_map(path, scene, lambda pixels: (pixels < 255).any(axis=-1))
    with openslide.OpenSlide(path) as slide:
        um = float(slide.properties[openslide.PROPERTY_NAME_MPP_X])
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        box = extent((pixels < 255).any(axis=-1)) * um / scene.mpp_um
        assert np.abs(box - scene.box).max() <= um / scene.mpp_um


def test_tiles_on_a_grid_of_whole_pixels_keep_their_very_values(tmp_path) -> None:
    coords = np.array([[x, y] for y in range(300) for x in range(3)]) * 224
    tiles = TileGrid(coords, 224.0, Size(70_001, 67_300), 0.5)
    a, grid = attention_of(tiles, 5), map_grid(tiles)
    assert (224 % grid.pixel_lv0, grid.size.width % 2 ** (grid.num_levels - 1)) == (0, 0)
    write_value_map(tmp_path / "a.ome.tiff", a)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        pixels = file.series[0].asarray()
    x, y = coords.T // grid.pixel_lv0
    np.testing.assert_array_equal(pixels[2][y, x], a.evidence_NC[:, 0])
    np.testing.assert_allclose(pixels[1][y, x], a.weights_N * len(coords), rtol=1e-6)
    np.testing.assert_array_equal(pixels[4][y, x], a.role_N == 1)


def test_geojson_and_table_hold_the_very_squares(scene, tmp_path) -> None:
    a = scene.attention
    write_geojson(tmp_path / "a.geojson", a)
    write_scores(tmp_path / "a.csv", a)
    shapes = shapely.from_geojson((tmp_path / "a.geojson").read_text())
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert shapely.is_valid(np.array(shapes.geoms)).all()
    far = a.grid.origins_lv0 + a.grid.tile_lv0
    np.testing.assert_allclose(shapely.bounds(np.array(shapes.geoms)), np.hstack([a.grid.origins_lv0, far]), atol=1e-6)
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_array_equal([[int(row["x"]), int(row["y"])] for row in rows], a.grid.origins_lv0)
    assert {float(row["tile_lv0"]) for row in rows} == {a.grid.tile_lv0}
    assert [int(row["row"]) for row in rows] == list(range(len(features)))
    for name, column in (("attention", "attention"), ("evidence b", "evidence_b"), ("evidence a", "evidence_a")):
        measured = [feature["properties"]["measurements"][name] for feature in features]
        assert measured == [float(row[column]) for row in rows]


def test_levels_and_crops_are_off_by_less_than_a_pixel_and_show_the_tile_that_is_meant(tiled, tmp_path) -> None:
    path, _, scene = tiled
    alone = scene.alone()
    one = percentile_map(alone.attention)
    with open_slide(path) as slide:
        what = slide.read, slide.info.levels
        for level, found in enumerate(slide.info.levels):
            draw_level(tmp_path / "l.png", *what, level, alone.attention, one)
            whole = np.asarray(Image.open(tmp_path / "l.png"))[: found.size.height, : found.size.width]
            assert whole.shape[1::-1] == (found.size.width, found.size.height)
            original = slide.read(Region(level, 0, 0, found.size.width, found.size.height))
            shown = extent((whole != original).any(axis=-1)) * found.downsample
            assert np.abs(shown - scene.box).max() <= found.downsample + 1
            ((_, region),) = crop_regions(alone.attention, slide.info.levels, level, 3)
            (drawn,) = draw_crops(tmp_path, *what, level, 3, alone.attention, one)
            page = np.asarray(Image.open(drawn))
            left = page[: region.height, : region.width]
            right = page[: region.height, region.width + 16 : 2 * region.width + 16]
            np.testing.assert_array_equal(left, slide.read(region))
            if level == 0:
                np.testing.assert_array_equal(decode_pixels(left)[0, 0], [region.x, region.y])
            shown = extent((left != right).any(axis=-1)) + np.array([region.x, region.y] * 2)
            assert np.abs(shown * found.downsample - scene.box).max() <= found.downsample + 1
