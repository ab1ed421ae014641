import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.errors import ConfigError, SlideError, SpecMismatchError
from wsi_dbps.files import write_json
from wsi_dbps.synth.cohort import lesion_geojson, lesion_share, make_cohort, plan_cohort, read_lesion

SMALL = {"num_slides": 6, "size_px": 1024, "seed": 5}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("synth") / "cohort", workers=1, **SMALL)


@given(st.integers(6, 300), st.integers(0, 2**32))
def test_a_plan_is_balanced_and_each_case_has_one_label_and_split(num_slides: int, seed: int) -> None:
    slides = plan_cohort(num_slides, seed=seed)
    labels = Counter(slide.has_lesion for slide in slides)
    assert labels[False] - labels[True] in (0, 1)
    assert len({slide.slide_id for slide in slides}) == num_slides
    cases = {(slide.case_id, slide.has_lesion, slide.split) for slide in slides}
    assert len(cases) == len({slide.case_id for slide in slides})
    assert {(label, split) for _, label, split in cases} == {
        (label, split) for label in (False, True) for split in ("train", "val", "test")
    }


@given(st.integers(6, 100), st.integers(0, 100))
def test_a_larger_cohort_begins_with_the_same_slides(num_slides: int, more: int) -> None:
    small, large = plan_cohort(num_slides, seed=0), plan_cohort(num_slides + more, seed=0)
    assert [(s.slide_id, s.case_id, s.has_lesion) for s in small] == [
        (s.slide_id, s.case_id, s.has_lesion) for s in large[:num_slides]
    ]


def test_forty_slides_are_split_60_15_25_with_a_fifth_of_the_cases_doubled() -> None:
    slides = plan_cohort(40, seed=0)
    split_of = {slide.case_id: slide.split for slide in slides}
    assert Counter(split_of.values()) == {"train": 20, "val": 6, "test": 8}
    assert sorted(Counter(slide.case_id for slide in slides).values()) == [1] * 28 + [2] * 6


def test_every_row_is_a_slide_and_every_positive_one_has_an_outline(cohort: Path) -> None:
    with open(cohort, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slide_id", "case_id", "path", "label", "split", "mpp"]
    for row in rows:
        path = cohort.parent / row["path"]
        with openslide.OpenSlide(path) as slide:
            assert slide.dimensions == (1024, 1024)
            assert float(slide.properties["openslide.mpp-x"]) == float(row["mpp"]) == 0.5
        outline = path.with_suffix(".geojson")
        assert outline.exists() == (row["label"] == "tumour")
        if outline.exists():
            features = json.loads(outline.read_text())["features"]
            assert {feature["properties"]["classification"]["name"] for feature in features} == {"Tumor"}


def test_the_bytes_do_not_depend_on_the_number_of_workers(cohort: Path, tmp_path: Path) -> None:
    done = []
    again = make_cohort(tmp_path, workers=2, on_slide=lambda i, n: done.append((i, n)), **SMALL)
    assert done == [(i, 6) for i in range(1, 7)]
    for file in sorted(cohort.parent.rglob("*.*")):
        assert (again.parent / file.relative_to(cohort.parent)).read_bytes() == file.read_bytes()


def test_slides_already_there_are_kept_and_missing_ones_made_again(cohort: Path) -> None:
    slides = sorted((cohort.parent / "slides").glob("*.svs"))
    gone = slides[1].read_bytes()
    slides[1].unlink()
    stamps = [slide.stat().st_mtime_ns for slide in slides if slide.exists()]
    make_cohort(cohort.parent, workers=1, **SMALL)
    assert slides[1].read_bytes() == gone
    assert [slide.stat().st_mtime_ns for slide in slides if slide != slides[1]] == stamps


def test_other_settings_in_the_same_folder_are_refused(cohort: Path) -> None:
    with pytest.raises(SpecMismatchError, match=r"synth.json: .* seed = 5, now 6 is asked for; choose another folder"):
        make_cohort(cohort.parent, **(SMALL | {"seed": 6}))


def test_too_few_slides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a cohort of 5 slides .* ask for 6"):
        make_cohort(tmp_path / "out", num_slides=5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tile", [64, 100, 256])
def test_shares_of_covering_tiles_sum_to_the_lesion(cohort: Path, tile: int) -> None:
    for outline in (cohort.parent / "slides").glob("*.geojson"):
        lesion = read_lesion(outline)
        area = (lesion[:, 2:] - lesion[:, :2]).prod(axis=1).sum()
        tiles = np.stack(np.meshgrid(np.arange(0, 1024, tile), np.arange(0, 1024, tile)), axis=-1).reshape(-1, 2)
        shares = lesion_share(outline, tiles, tile)
        assert shares.sum() * tile**2 == pytest.approx(area)
        assert 0 <= shares.min() <= shares.max() <= 1


def test_a_share_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    write_json(path, lesion_geojson(np.array([[10, 0, 20, 10], [0, 10, 20, 20]])))
    assert lesion_share(path, [[0, 0], [0, 10], [15, 5], [20, 0]], 10).tolist() == [0, 1, 0.5, 0]
    assert lesion_share(path, np.empty((0, 2)), 10).tolist() == []


def test_an_outline_that_is_not_rectangles_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    slanted = lesion_geojson(np.array([[0, 0, 8, 8]]))
    slanted["features"][0]["geometry"]["coordinates"][0][2] = [9, 8]
    write_json(path, slanted)
    with pytest.raises(SlideError, match=r"a.geojson: feature 0 is not an upright rectangle"):
        read_lesion(path)
    path.write_text("{}")
    with pytest.raises(SlideError, match=r"a.geojson: not a GeoJSON lesion outline: KeyError\('features'\)"):
        read_lesion(path)
    with pytest.raises(SlideError, match=r"b.geojson: no such file; only positive slides have a lesion outline"):
        read_lesion(tmp_path / "b.geojson")
