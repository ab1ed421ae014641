"""atlas on a run of two slides, and what it says of bad input."""

import csv
import glob
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_dbps.cohort.manifest import read_manifest, write_manifest
from wsi_dbps.core.errors import WsiDbpsError
from wsi_dbps.core.files import write_text
from wsi_dbps.core.settings import to_toml
from wsi_dbps.formats.selection_record import VisitRecord, record_path, write_selection_record
from wsi_dbps.training.settings import build_run_config
from wsi_dbps.workflows.atlas import atlas

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(small_cohort, tmp_path):
    """A run folder with the record of three epochs of two slides: the corner patch always, others in turn."""
    run = tmp_path / "run"
    cohort = read_manifest(small_cohort[0]).part("train")
    write_manifest(run / "cohort.csv", cohort)
    write_text(run / "run.toml", to_toml(build_run_config({}, "test")))
    for epoch in (1, 2, 3):
        visits = [
            VisitRecord(
                record.slide_id, place, False, np.ones(36, bool), np.array([0, epoch]), np.array([10, 11]),
                np.zeros((4, 2), np.float32),
            )
            for place, record in enumerate(cohort.records[:2])
        ]  # fmt: skip
        write_selection_record(record_path(run, epoch), epoch, visits)
    return run


def test_the_atlas_of_a_run(run, small_cohort, tmp_path) -> None:
    result = atlas(run, small_cohort[1], tmp_path / "atlas")
    assert result.summary == f"3 epochs of 2 slides, 2 of them drawn: {tmp_path / 'atlas'}"
    assert result.courses["slide_08"].times_N[:4].tolist() == [3, 1, 1, 1]
    names = set(glob.glob("*", root_dir=tmp_path / "atlas"))
    pictures = {"churn_entropy.png", "slide_08.atlas.png", "slide_09.atlas.png"}
    assert names == {"atlas.csv", "atlas.json", *pictures}
    for name in pictures:
        with Image.open(tmp_path / "atlas" / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    found = json.loads((tmp_path / "atlas" / "atlas.json").read_text())
    said = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs/formats/atlas.md").read_text(encoding="utf-8")))
    assert {*found, *found["epochs"][1], *found["epochs"][1]["churn"]} <= said
    assert found["epochs"][1]["churn"] == {"q1": 0.5, "median": 0.5, "q3": 0.5}
    assert found["epochs"][0]["entropy"]["median"] == pytest.approx(1)
    assert "churn" not in found["epochs"][0]
    with open(tmp_path / "atlas" / "atlas.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert atlas(run, small_cohort[1], tmp_path / "one", slide="slide_09").drawn == ("slide_09",)


def test_a_slide_whose_cache_is_damaged_is_named_and_the_others_are_drawn(
    run, small_cohort, tmp_path, wsi_dbps
) -> None:
    caches = tmp_path / "caches"
    shutil.copytree(small_cohort[1], caches)
    (caches / "slide_08.h5").write_bytes(b"no cache")
    code, out, err = wsi_dbps("atlas", run, "--caches", caches, "--out", tmp_path / "atlas")
    assert (code, out) == (1, f"3 epochs of 2 slides, 1 of them drawn, 1 failed: {tmp_path / 'atlas'}\n")
    assert err.startswith(f"slide_08: {caches / 'slide_08.h5'}: ")
    assert json.loads((tmp_path / "atlas" / "atlas.json").read_text())["slides"] == ["slide_09"]
    assert not (tmp_path / "atlas" / "slide_08.atlas.png").exists()


def test_bad_input_is_refused_before_anything_is_written(run, small_cohort, tmp_path) -> None:
    def refused(*slide: str, caches=small_cohort[1]) -> str:
        with pytest.raises(WsiDbpsError) as error:
            atlas(run, caches, tmp_path / "atlas", slide=slide)
        assert not (tmp_path / "atlas").exists()
        return str(error.value)

    assert "never trained on slide_00; the record is of training slides only" in refused("slide_00")
    assert "slide_08.h5" in refused(caches=tmp_path / "none")
    settings = (run / "run.toml").read_text()
    write_text(run / "run.toml", to_toml(build_run_config({"patches": {"max_pen": 0.5}}, "test")))
    assert "made without --qc, so [patches] cannot filter it" in refused()  # the run's own filter is applied
    write_text(run / "run.toml", settings)
    (run / "selection" / "epoch_0002.npz").write_bytes(b"PK")
    assert "epoch_0002.npz: not a readable selection record" in refused()
    few = VisitRecord(
        "slide_08", 0, False, np.ones(35, bool), np.array([0]), np.array([1]), np.zeros((2, 1), np.float32)
    )
    shutil.rmtree(run / "selection")
    assert f"{run}: no selection record; train with training.record = true" in refused()
    write_selection_record(record_path(run, 1), 1, [few])
    assert "36 patches, where the run saw 35; give its own caches" in refused()
