"""What a step costs in bytes, counted by tests/bench/memory.py at a small size."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "bench" / "memory.py"
DBPS = {"num_salient": 16, "num_subsalient": 64, "chunk_size": 32}


@pytest.fixture(scope="module")
def step_bytes():
    spec = importlib.util.spec_from_file_location("bench_memory", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.step_bytes


def test_bytes_are_counted_the_same_whether_computed_or_not(step_bytes) -> None:
    selection = {"num_salient": 3, "num_subsalient": 5, "chunk_size": 4, "subsalient_grad": "exact"}
    fake, real = (step_bytes("small_gn", 20, 32, real=real, **selection) for real in (False, True))
    assert fake == pytest.approx(real, rel=0.01)


def test_the_peak_of_a_step_does_not_grow_with_the_bag(step_bytes) -> None:
    """Only the list of kept ids does: 8 bytes a patch."""
    few, many = (step_bytes("small_gn", n, 64, **DBPS)["step"] for n in (400, 2_000))
    assert many - few <= 8 * (2_000 - 400)


def test_sub_salient_patches_cost_the_gradient_stage_next_to_nothing(step_bytes) -> None:
    """DBPS (M, S) within 5 % of IPS (M) and at most a quarter of IPS (M + S)."""
    dbps = step_bytes("small_gn", 100, 64, **DBPS)
    same_m = step_bytes("small_gn", 100, 64, **{**DBPS, "num_subsalient": 0})
    as_many = step_bytes("small_gn", 100, 64, **{**DBPS, "num_salient": 80, "num_subsalient": 0})
    for stage in ("gradient", "saved"):
        assert dbps[stage] < 1.05 * same_m[stage]
        assert dbps[stage] < 0.25 * as_many[stage]


def test_the_exact_gradient_has_the_memory_of_m(step_bytes) -> None:
    """Beside it the bytes of the pixels of S, and once more those of the weights' gradient."""
    none = step_bytes("small_gn", 100, 64, **DBPS)
    exact = step_bytes("small_gn", 100, 64, **DBPS, subsalient_grad="exact")
    pixels, weights = 64 * 3 * 64 * 64, 4 * 500_000
    assert exact["saved"] - none["saved"] < 1.1 * pixels
    assert exact["gradient"] - none["gradient"] < 2.1 * pixels + weights
    as_many = step_bytes("small_gn", 100, 64, **{**DBPS, "num_salient": 80, "num_subsalient": 0})
    assert exact["gradient"] < 0.35 * as_many["gradient"]
