import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.cohort.annotations import read_annotations
from wsi_dbps.core.errors import ConfigError, SpecMismatchError
from wsi_dbps.synth.cohort import make_cohort, plan_cohort

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
    assert list(rows[0]) == ["slide_id", "case_id", "path", "label", "split", "mpp", "annotations"]
    for row in rows:
        path = cohort.parent / row["path"]
        with openslide.OpenSlide(path) as slide:
            assert slide.dimensions == (1024, 1024)
            assert float(slide.properties["openslide.mpp-x"]) == float(row["mpp"]) == 0.5
        outline = path.with_suffix(".geojson")
        assert outline.exists() == (row["label"] == "tumour")
        assert row["annotations"] == ("slides/" + outline.name if outline.exists() else "")
        if outline.exists():
            features = json.loads(outline.read_text())["features"]
            for feature in features:  # QuPath refuses a classification without a colour
                assert feature["properties"]["classification"] == {"name": "Tumor", "color": [200, 0, 0]}
            rings = np.array([feature["geometry"]["coordinates"][0] for feature in features])
            rectangles = np.ptp(rings, axis=1).prod(axis=1).sum()
            assert sum(area.shape.area for area in read_annotations(outline)) == rectangles


def test_the_bytes_do_not_depend_on_the_number_of_workers(cohort: Path, tmp_path: Path) -> None:
    done = []
    again = make_cohort(tmp_path, workers=2, on_slide=lambda i, n: done.append((i, n)), **SMALL)
    assert done == [(i, 6) for i in range(1, 7)]
    for file in sorted(cohort.parent.rglob("[!.]*.*")):
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
