"""Tiling from Python: what the command can do, one call can do."""

from pathlib import Path

import numpy as np
import pytest

from wsi_dbps.cohort.cohort import Cohort, SlideRecord
from wsi_dbps.core.errors import ConfigError, SlideError
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.spec import CacheSpec
from wsi_dbps.slides.open import open_slide
from wsi_dbps.workflows.tile import TileOptions, chosen_slides, plan_tiling, tile, tile_slide


@pytest.fixture
def slides(slide_path: Path, blank_path: Path, tmp_path: Path) -> Cohort:
    """`a`, a good slide, `blank`, one without tissue, and `bad`, which is no slide."""
    bad = tmp_path / "bad.svs"
    bad.write_text("hello")
    paths = {"a": slide_path, "blank": blank_path, "bad": bad}
    return Cohort.of(SlideRecord(name, name, path) for name, path in paths.items())


def test_a_cohort_is_tiled_and_the_result_says_what_became_of_each_slide(slides: Cohort, tmp_path: Path) -> None:
    said: list[str] = []
    result = tile(slides, str(tmp_path / "caches"), size=64, workers=1, say=said.append)
    assert {outcome.slide_id for outcome in result.tiled} == {"a", "blank"}
    assert [failed.slide_id for failed in result.failed] == ["bad"]
    assert sorted(said) == [result.failed[0].error, "blank: no tissue found; no patches"]
    assert result.sheet == tmp_path / "caches" / "contact-sheet.html"
    again = tile(slides, tmp_path / "caches", size=64, workers=1, sheet=False, say=said.append)
    assert {(kept.slide_id, kept.path, kept.num_patches) for kept in again.kept} == {
        (outcome.slide_id, outcome.path, outcome.num_patches) for outcome in result.tiled
    }
    assert again.sheet is None
    assert again.summary.startswith("0 slides tiled (0 patches, 0/s), 2 kept as they were, 1 failed: ")


def test_one_slide_file_becomes_an_open_cache(slide_path: Path, tmp_path: Path) -> None:
    cache = tile_slide(slide_path, tmp_path, size=64)
    assert (cache.path, cache.grid.size_px) == (tmp_path / "a.h5", 64)
    assert len(cache) == len(PatchCache(tmp_path / "a.h5")) > 0
    assert len(tile_slide(str(slide_path), tmp_path, TileOptions(size=64))) == len(cache)
    with pytest.raises(SlideError, match="size_px is 64 in it, 32 asked"):
        tile_slide(slide_path, tmp_path, size=32)


def test_the_plan_of_a_cohort_is_what_tiling_then_does(slides: Cohort, tmp_path: Path) -> None:
    rows: list[str] = []
    plan = plan_tiling(slides, size=64, say=rows.append)
    assert plan.table.splitlines() == [*"\n".join(rows).splitlines(), plan.summary]
    assert [slide.slide_id for slide in plan.planned] == ["a", "blank"]
    assert [failed.slide_id for failed in plan.failed] == ["bad"]
    cache = tile_slide(slides.records[0], tmp_path, size=64)
    np.testing.assert_array_equal(plan.planned[0].tiles.grid.origins_lv0, cache.grid.origins_lv0)
    assert plan.planned[0].num_bytes == pytest.approx(cache.num_bytes, rel=0.2)


def test_the_defaults_are_those_of_the_settings_that_a_cache_is_made_with() -> None:
    assert TileOptions().spec() == CacheSpec()


def test_shards_are_disjoint_and_together_the_cohort(slides: Cohort) -> None:
    shards = [chosen_slides(slides, TileOptions(shard=f"{i}/2"))[1] for i in (1, 2)]
    assert [[record.slide_id for record in shard] for shard in shards] == [["a", "bad"], ["blank"]]
    for wrong in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(ConfigError, match=f"--shard {wrong}: expected I/N with I from 1 to N"):
            chosen_slides(slides, TileOptions(shard=wrong))


def test_an_option_that_the_coordinates_decide_is_refused_also_if_it_is_the_default(slides: Cohort, tmp_path) -> None:
    said = "which tiles, and how large, its files say; leave out --mpp"
    for changes in ({"mpp": 0.5}, {"mpp": 1.0}):
        with pytest.raises(ConfigError, match=said):
            tile(slides, tmp_path, coords=tmp_path, **changes)


def test_a_picture_of_an_open_slide_is_one_call_away(slide_path: Path) -> None:
    with open_slide(slide_path) as slide:
        picture = slide.thumbnail(100)
    assert picture.shape == (71, 100, 3)
    assert picture.dtype == np.uint8
