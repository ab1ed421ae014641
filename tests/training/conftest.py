"""Settings for runs of seconds."""

from typing import Any

import pytest

from wsi_dbps.training.config import RunConfig, build_run_config


@pytest.fixture
def make_config():
    def make(**tables: dict[str, Any]) -> RunConfig:
        small: dict[str, dict[str, Any]] = {
            "encoder": {"name": "small_gn", "dim": 16},
            "selection": {"num_salient": 3, "num_subsalient": 6, "num_kept": 12, "chunk_size": 16},
            "aggregator": {"num_heads": 2},
            "optimizer": {"lr": 1e-3},
            "training": {"epochs": 2, "batch_slides": 4, "device": "cpu", "decode_threads": 1},
        }
        return build_run_config({k: small.get(k, {}) | tables.get(k, {}) for k in small | tables}, "test")

    return make
