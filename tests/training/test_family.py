"""The rest of the family goes the whole way: from caches on disk through the loop and back from its checkpoint."""

from pathlib import Path

import pytest
import torch

from wsi_dbps.bags.bags import CacheBag, PatchReader
from wsi_dbps.cohort.cohort import Cohort
from wsi_dbps.inference.predict import predict
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import train
from wsi_dbps.training.settings import build_run_config


@pytest.mark.parametrize("subsalient_grad", ["none", "exact"])
@pytest.mark.parametrize("preset", ["dbps", "dbps+"])
def test_a_run_with_positions_noise_and_exact_gradient_trains_and_predicts(
    cohort: Cohort, caches: Path, tmp_path: Path, preset: str, subsalient_grad: str
) -> None:
    selection = {"preset": preset, "num_salient": 3, "num_kept": 12, "subsalient_grad": subsalient_grad}
    tables = {
        "encoder": {"name": "small_gn", "dim": 16},
        "selection": {**selection, "exploration": 1.0, "exploration_kind": "gumbel"},
        "aggregator": {"num_heads": 2, "position": "sinusoidal"},
        "training": {"epochs": 1, "device": "cpu", "decode_threads": 1},
    }
    result = train(cohort, caches, tmp_path / "run", build_run_config(tables, "test"))
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.config.selection.most_subsalient == (None if preset == "dbps+" else 64)
    assert checkpoint.config.aggregator.name == ("abmilx" if preset == "dbps+" else "dual")
    done = predict([checkpoint], cohort.part("test"), caches, tmp_path / "pred", device="cpu")
    assert not done.failed
    assert len(done.predictions.slides) == 4


def test_a_cached_patch_lies_where_the_plan_says_in_patch_sides(cohort: Cohort, caches: Path) -> None:
    """Slides of 192 px in whole patches of 32 px: a grid of 6 by 6, row by row."""
    from wsi_dbps.formats.patch_cache import PatchCache

    record = cohort.records[0]
    reader = PatchReader(1)
    bag = CacheBag(record, PatchCache(caches / f"{record.slide_id}.h5"), reader)
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)).flip(1)
    assert torch.equal(bag.positions, grid)
    reader.close()
