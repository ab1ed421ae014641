"""The examples under manifests/ work."""

from pathlib import Path

import pytest

from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.core.settings import read_toml, with_overrides
from wsi_dbps.synth.cohort import LABELS, plan_cohort
from wsi_dbps.training.loop import train
from wsi_dbps.training.settings import build_run_config
from wsi_dbps.workflows.demo import SETTINGS

MANIFESTS = Path(__file__).parents[1] / "manifests"
RUNS = sorted(MANIFESTS.glob("*/*.toml"))


def test_the_demo_cohort_is_the_one_that_the_demo_makes() -> None:
    cohort = read_manifest(MANIFESTS / "demo" / "cohort.csv")
    assert [(r.slide_id, r.case_id, r.label, r.split) for r in cohort.records] == [
        (s.slide_id, s.case_id, LABELS[s.has_lesion], s.split) for s in plan_cohort(144, seed=0)
    ]


def test_the_demo_settings_are_those_of_the_demo() -> None:
    assert (MANIFESTS / "demo" / "dbps.toml").read_text() == SETTINGS.format(seed=0)


@pytest.mark.parametrize("run", RUNS, ids=[run.stem for run in RUNS])
def test_every_run_file_trains(run, cohort, caches, tmp_path) -> None:
    tables = with_overrides(read_toml(run), ["training.epochs=1", "training.device=cpu"])
    config = build_run_config(tables, str(run))
    assert config.selection.preset == run.stem
    assert len(train(cohort, caches, tmp_path / "run", config).history) == 1
