"""What a run needs: predicted from a calibration, measured in a real step; and the search for settings that fit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.core.errors import ConfigError, TrainingError
from wsi_dbps.models.bag import TensorBag
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.planning.device_cost import measure_patch_cost, plan, saved_bytes
from wsi_dbps.training.cost import PatchCost, check_budget, memory, most_salient, need, propose
from wsi_dbps.training.loop import train
from wsi_dbps.training.settings import RunConfig, as_size, build_run_config, size_bytes

MIB = 1 << 20
RESNET = PatchCost(
    fixed_bytes=180 * MIB,
    workspace_bytes=20 * MIB,
    pixel_bytes=3 * 256**2,
    forward_bytes=9.5 * MIB,
    gradient_bytes=28.4 * MIB,
    pooled_bytes=8192.0,
    bag_bytes=40_000.0,
    forward_seconds=0.001,
    gradient_seconds=0.003,
    read_seconds=0.001,
)


def run_config(preset: str = "dbps", batch_slides: int = 4, **selection: object) -> RunConfig:
    tables = {"selection": {"preset": preset} | selection, "training": {"batch_slides": batch_slides}}
    return build_run_config(tables, "test")


salients, recycleds, chunks, batches = st.integers(1, 200), st.integers(0, 300), st.integers(1, 300), st.integers(1, 8)
cohorts = st.lists(st.integers(1, 3000), min_size=1, max_size=12)
budgets = st.integers(200 * MIB + 40 * MIB, 64_000 * MIB)


@given(salients, recycleds, chunks, batches, cohorts, st.data())
def test_more_of_anything_never_needs_less(m, s, chunk, batch, cohort, data) -> None:
    less = memory(run_config(num_salient=m, num_subsalient=s, chunk_size=chunk, batch_slides=batch), cohort, RESNET)
    more = memory(
        run_config(
            num_salient=m + data.draw(st.integers(0, 50)),
            num_subsalient=s + data.draw(st.integers(0, 50)),
            chunk_size=chunk + data.draw(st.integers(0, 50)),
            batch_slides=batch + data.draw(st.integers(0, 3)),
        ),
        [*cohort, *data.draw(cohorts)],
        RESNET,
    )
    # a recycled patch may become salient, which takes one embedding and gives a whole gradient
    assert more.memory_bytes >= less.memory_bytes - 200 * batch * RESNET.pooled_bytes
    if s == 0:
        assert more.memory_bytes >= less.memory_bytes


@given(
    salients, recycleds, chunks, batches, cohorts, st.sampled_from(["dbps", "ips", "random", "full"]), budgets, budgets
)
def test_a_proposal_fits_and_more_memory_never_proposes_less(m, s, chunk, batch, cohort, preset, one, two) -> None:
    s = {"num_subsalient": s} if preset == "dbps" else {}
    asked = run_config(preset, batch, num_salient=m, chunk_size=chunk, **s)
    small, large = (propose(asked, cohort, [], RESNET, budget) for budget in sorted((one, two)))
    for found, budget in ((small, min(one, two)), (large, max(one, two))):
        assert found.need.memory_bytes <= budget
        assert found.need.memory_bytes == memory(found.config, cohort, RESNET).memory_bytes
        assert bool(found.changes) == (memory(asked, cohort, RESNET).memory_bytes > budget)
        effective = found.config.training.batch_slides * found.config.training.accumulate
        assert effective == asked.training.batch_slides
    for key in ("num_salient", "num_subsalient"):
        assert getattr(small.config.selection, key) <= getattr(large.config.selection, key)
        assert getattr(large.config.selection, key) <= getattr(asked.selection, key)
    assert small.config.training.batch_slides <= large.config.training.batch_slides


@given(salients, cohorts, budgets)
def test_the_most_salient_patches_fit_and_one_more_does_not(m, cohort, budget) -> None:
    asked = run_config(num_salient=m)
    most = most_salient(asked, cohort, RESNET, budget)
    if most:
        assert memory(run_config(num_salient=most), cohort, RESNET).memory_bytes <= budget
    if most < max(cohort):
        assert memory(run_config(num_salient=most + 1), cohort, RESNET).memory_bytes > budget


def test_the_changes_proposed_are_settings_that_make_the_proposal() -> None:
    asked = run_config(num_salient=64, num_subsalient=64, chunk_size=256)
    found = propose(asked, [4096] * 8, [], RESNET, 2000 * MIB)
    assert found.changes == (
        "selection.num_salient = 62",
        "selection.chunk_size = 128",
        "training.batch_slides = 1",
        "training.accumulate = 4",
    )
    full = propose(run_config("full", num_salient=16), [4096] * 8, [], RESNET, 4096 * MIB)
    assert full.changes == ("selection.num_kept = 135", "training.batch_slides = 1", "training.accumulate = 4")


def test_memory_does_not_depend_on_how_large_the_slides_are() -> None:
    small, large = (memory(run_config(), [n] * 4, RESNET) for n in (2_000, 50_000))
    assert small == large


def test_the_time_of_an_epoch_is_that_of_its_patches() -> None:
    """By hand: 2 slides of 100, half dropped; 1 slide of 50 to validate, each patch encoded once."""
    config = run_config(num_salient=16, num_subsalient=20, drop_rate=0.5, batch_slides=1)
    kept = 16 + 42
    seconds = need(config, [100, 100], [50], RESNET).epoch_seconds
    forward = read = 2 * kept + 50
    assert seconds == pytest.approx(forward * 0.001 + 2 * 16 * 0.003 + read * 0.001)
    beside = replace(RESNET, overlapped=True)
    assert need(config, [100, 100], [50], beside).epoch_seconds == pytest.approx(forward * 0.001 + 2 * 16 * 0.003)
    exact = replace(config, selection=replace(config.selection, subsalient_grad="exact"))
    more = 2 * 20 * (0.001 + 0.003)  # the recycled are encoded once more, and back-propagated
    assert need(exact, [100, 100], [50], beside).epoch_seconds == pytest.approx(forward * 0.001 + 32 * 0.003 + more)
    assert need(exact, [100], [50], RESNET).gradient_bytes > need(config, [100], [50], RESNET).gradient_bytes


@pytest.mark.parametrize("aggregator", ["dual", "concat"])
@pytest.mark.parametrize(("encoder", "side"), [("small_gn", 48), ("resnet18", 64)])
def test_a_real_step_saves_what_was_predicted(aggregator, encoder, side) -> None:
    """Gradient-stage bytes of `SlideModel`, by hook, within 15 % of one prediction for every M, S and batch."""
    torch.manual_seed(0)
    off, cost = [], None
    for m, s, batch in ((1, 0, 1), (2, 8, 1), (4, 16, 2), (8, 64, 2), (16, 64, 1), (16, 0, 4), (3, 200, 3)):
        config = build_run_config(
            {
                "encoder": {"name": encoder, "dim": 64, "pretrained": False},
                "aggregator": {"name": aggregator},
                "selection": {"num_salient": m, "num_subsalient": s},
                "training": {"batch_slides": batch},
            },
            "test",
        )
        model = SlideModel(2, config.encoder, config.aggregator, config.selection)
        cost = cost or measure_patch_cost(model, config, side, torch.float32, num_patches=2, repeats=1)
        bags = [random_bag(m + s + 5, side) for _ in range(batch)]
        draws = torch.Generator().manual_seed(0)
        chosen = [model.select(bag, torch.arange(bag.num_patches), draws) for bag in bags]
        model.train()
        measured = saved_bytes(model, lambda model=model, chosen=chosen: model(chosen).sum())
        stage = memory(config, [m + s + 5] * batch, cost).gradient_bytes
        predicted = stage - cost.fixed_bytes - 2 * batch * m * cost.pixel_bytes
        off.append(predicted / measured - 1)
    assert max(abs(o) for o in off) < 0.15


def random_bag(num_patches: int, side: int) -> TensorBag:
    return TensorBag(torch.randint(0, 256, (num_patches, 3, side, side), dtype=torch.uint8))


def test_calibration_leaves_weights_and_gradients_alone(make_config) -> None:
    config = make_config()
    model = SlideModel(2, config.encoder, config.aggregator, config.selection)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost = measure_patch_cost(model, config, 32, torch.float32)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert 0 < cost.forward_bytes < cost.gradient_bytes
    assert 0 < cost.forward_seconds < cost.gradient_seconds
    assert cost.pixel_bytes == 3 * 32**2


def test_a_plan_of_a_cohort_counts_its_caches(make_config, cohort, caches) -> None:
    found = plan(cohort, caches, make_config(), size_bytes("1G"))
    assert found.num_patches == (36,) * 12
    assert found.size_px == 32
    assert found.proposal.changes == ()
    assert found.proposal.need == found.asked
    assert found.cost.read_seconds > 0


@given(st.integers(1, 10**6), st.floats(0, 3))
def test_a_run_is_stopped_only_beyond_what_a_plan_promises(mib, times) -> None:
    budget = mib * MIB
    measured = int(times * budget)
    if measured <= 1.15 * budget:
        check_budget(measured, budget)
    else:
        with pytest.raises(TrainingError, match=rf"a step needs {as_size(measured)} of GPU memory"):
            check_budget(measured, budget)


def test_going_over_the_budget_says_what_to_lower() -> None:
    with pytest.raises(TrainingError) as error:
        check_budget(15 << 30, 12 << 30)
    assert str(error.value) == (
        "a step needs 15.00 GiB of GPU memory, 25% more than training.vram = 12.00 GiB; lower training.batch_slides, "
        "selection.num_salient or selection.chunk_size (`wsi-dbps plan` proposes values), or raise training.vram"
    )


def test_a_budget_is_refused_where_it_cannot_be_measured(make_config, cohort, caches, tmp_path) -> None:
    config = make_config(training={"epochs": 1, "device": "cpu", "vram": "12G"})
    with pytest.raises(
        ConfigError, match=r"training.vram = '12G' limits a GPU's memory, and this run is on cpu; leave"
    ):
        train(cohort, caches, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"training: write it as 12G or 800M, found '12 apples'"):
        make_config(training={"vram": "12 apples"})


@pytest.mark.gpu
def test_a_run_on_a_gpu_stops_when_it_needs_more_than_its_budget(make_config, cohort, caches, tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"more than training\.vram"):
        train(cohort, caches, tmp_path / "run", make_config(training={"epochs": 1, "device": "cuda", "vram": "1M"}))
