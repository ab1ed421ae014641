"""Measures of each patch's quality, and runs that leave patches out by them without tiling again."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFilter

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.errors import CacheError, ConfigError
from wsi_dbps.core.settings import build
from wsi_dbps.formats.cache_writer import encode_jpeg
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.patch_filter import PatchFilter, filtered
from wsi_dbps.formats.spec import CacheSpec
from wsi_dbps.synth.pyramid import write_aperio
from wsi_dbps.tiling.outcomes import Tiled
from wsi_dbps.tiling.quality import MEASURES, measure
from wsi_dbps.tiling.tile_slide import tile_slide

TILE = 64


def textured(side: int = 256) -> np.ndarray:
    random = np.random.default_rng(1)
    return np.clip(np.array((190, 110, 165)) + random.normal(0, 25, (side, side, 1)), 0, 255).astype(np.uint8)


def of(pixels: np.ndarray) -> dict[str, float]:
    return dict(zip(MEASURES, measure(encode_jpeg(pixels, 95)), strict=True))


def test_blur_lowers_sharpness_and_turning_does_not() -> None:
    whole = Image.fromarray(textured())
    values = [of(np.asarray(whole.filter(ImageFilter.GaussianBlur(radius))))["sharpness"] for radius in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 10 * values[2]
    turned = of(np.rot90(textured()))["sharpness"]
    assert turned == pytest.approx(values[0], rel=0.02)
    assert of(np.full((64, 64, 3), 128, np.uint8))["sharpness"] == pytest.approx(0, abs=0.1)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    from scipy import ndimage

    jpeg = encode_jpeg(textured(), 95)
    grey = np.asarray(Image.fromarray(simplejpeg.decode_jpeg(jpeg)).convert("L"), np.float64)
    assert measure(jpeg)[0] == pytest.approx(ndimage.laplace(grey)[1:-1, 1:-1].var(), rel=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("name", "colour"), [("white", (240, 238, 241)), ("pen", (20, 160, 60))])
def test_shares_are_areas(share: float, name: str, colour: tuple[int, int, int]) -> None:
    pixels = textured()
    pixels[: round(256 * share)] = colour
    assert of(pixels)[name] == pytest.approx(share, abs=0.02)


def test_tissue_is_neither_white_nor_pen() -> None:
    for colour in ((190, 110, 165), (110, 70, 140), (225, 190, 215), (150, 90, 60)):
        found = of(np.full((64, 64, 3), colour, np.uint8))
        assert (found["white"], found["pen"]) == (0, 0), colour


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four columns of tiles: sharp, blurred, half white, penned."""
    picture = textured(256)
    picture[:, 64:128] = np.asarray(Image.fromarray(picture[:, 64:128]).filter(ImageFilter.GaussianBlur(4)))
    picture[:, 160:192] = 245
    picture[:, 192:] = (20, 160, 60)
    path = tmp_path_factory.mktemp("slide") / "a.svs"
    write_aperio(path, picture, mpp_um=0.25, tile_px=TILE, quality=95)
    return path


def tile(slide: Path, out: Path, threads: int = 1, **settings) -> PatchCache:
    tiling = {"mpp_um": 0.25, "size_px": TILE, "tissue": "none"}
    spec = build(CacheSpec, {"tiling": tiling} | settings, "test")
    outcome = tile_slide(SlideRecord("a", "a", slide), spec, out, threads=threads)
    assert isinstance(outcome, Tiled), outcome
    return PatchCache(outcome.path)


@pytest.mark.parametrize("codec", ["copy", "jpeg", "reader"])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_recorded_is_what_the_cached_patch_has(slide: Path, tmp_path: Path, codec: str, threads: int) -> None:
    cache = tile(slide, tmp_path, threads, codec=codec, qc=True)
    found = np.stack([cache.quality()[name] for name in MEASURES], axis=1)
    np.testing.assert_allclose(found, [measure(jpeg) for jpeg in cache.jpegs(range(len(cache)))], rtol=1e-6)


def test_measuring_changes_no_patch_and_is_off_by_default(slide: Path, tmp_path: Path) -> None:
    without, measured = tile(slide, tmp_path / "a"), tile(slide, tmp_path / "b", qc=True)
    assert without.jpegs(range(16)) == measured.jpegs(range(16))
    assert (without.quality(), sorted(measured.quality())) == ({}, sorted(MEASURES))


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        ({}, [0, 1, 2, 3]),
        ({"min_sharpness": 100.0}, [0, 2]),
        ({"max_white": 0.3}, [0, 1, 3]),
        ({"max_pen": 0.5}, [0, 1, 2]),
        ({"min_sharpness": 100.0, "max_white": 0.3, "max_pen": 0.5}, [0]),
    ],
)
def test_a_filter_leaves_out_patches_and_nothing_else(slide: Path, tmp_path: Path, settings: dict, columns) -> None:
    cache = tile(slide, tmp_path, qc=True)
    some = filtered(cache, PatchFilter(**settings))
    keep = np.isin(cache.grid.origins_lv0[:, 0] // TILE, columns)
    np.testing.assert_array_equal(some.grid.origins_lv0, cache.grid.origins_lv0[keep])
    np.testing.assert_array_equal(some.tissue_N, cache.tissue_N[keep])
    rows = np.flatnonzero(keep).tolist()
    assert some.jpegs(range(len(some))) == cache.jpegs(rows)
    assert some.num_bytes == sum(map(len, cache.jpegs(rows)))
    for name, values in some.quality().items():
        np.testing.assert_array_equal(values, cache.quality()[name][keep])
    assert (some.fingerprint == cache.fingerprint) == (not settings)
    assert len(cache) == 16


def test_a_filter_of_a_filter_is_both(slide: Path, tmp_path: Path) -> None:
    cache = tile(slide, tmp_path, qc=True)
    both = filtered(filtered(cache, PatchFilter(max_white=0.3)), PatchFilter(max_pen=0.5))
    assert sorted(set((both.grid.origins_lv0[:, 0] // TILE).tolist())) == [0, 1]


def test_what_was_not_measured_cannot_be_asked_for(slide: Path, tmp_path: Path) -> None:
    cache = tile(slide, tmp_path)
    with pytest.raises(CacheError, match=r"a\.h5: made without --qc, so \[patches\] cannot filter it; tile with --qc$"):
        filtered(cache, PatchFilter(max_pen=0.5))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_pen": 1.5}, "max_pen must lie in 0 .. 1, found 1.5"),
        ({"min_sharpness": -1.0}, "min_sharpness must be at least 0, found -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(PatchFilter, settings, "run.toml")
