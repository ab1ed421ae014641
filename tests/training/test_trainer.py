"""A step, a validation and the state of a trainer, on bags in memory: no file is read, no process started."""

import copy
import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch

from wsi_dbps.core.errors import TrainingError
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.training.optimizer import lr_share
from wsi_dbps.training.trainer import Trainer

ARCHIVE = Path(__file__).parents[1] / "archives"
EVERY_OPTION = {
    "training": {"epochs": 2, "batch_slides": 2, "accumulate": 2, "ema": 0.9, "class_weights": "balanced"},
    "selection": {"exploration": 0.5},
}


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal(one: object, other: object) -> None:
    """The same to the bit, but for times."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - {"seconds", "waited_s", "data_wait"}:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def train_epoch(trainer: Trainer) -> None:
    for batches in trainer.steps_left():
        trainer.step(batches)
    assert trainer.validate() is not None


# ---- to go on


@pytest.mark.parametrize(
    "tables",
    [
        EVERY_OPTION,
        {"training": {"epochs": 2, "precision": "bf16"}, "selection": {"selector": "random"}},
        {"training": {"epochs": 2, "record": False}, "selection": {"exploration": 1.0, "exploration_kind": "gumbel"}},
    ],
)
def test_a_run_broken_after_every_step_equals_an_unbroken_one_bit_for_bit(make_trainer, tables) -> None:
    """A new trainer takes each step, from the state that the one before left in a file."""
    unbroken, state = make_trainer(**tables), None
    while not unbroken.finished:
        for batches in unbroken.steps_left():
            broken = make_trainer(**tables)
            if state is not None:
                broken.load_state_dict(state)
            broken.step(next(broken.steps_left()))
            unbroken.step(batches)
            state = through_a_file(broken.state_dict())
            assert_equal(state, through_a_file(unbroken.state_dict()))
        broken = make_trainer(**tables)
        broken.load_state_dict(state)
        assert list(broken.steps_left()) == []  # only the validation is left
        ends = unbroken.validate(), broken.validate()
        assert_equal(ends[0].row, ends[1].row)
        assert len(ends[0].visits) == len(ends[1].visits) == 12 * unbroken.config.training.record
        state = through_a_file(broken.state_dict())
    assert unbroken.epoch == 2


def test_loading_a_state_twice_or_late_leaves_nothing_of_what_was_before(make_trainer) -> None:
    trainer, other = make_trainer(**EVERY_OPTION), make_trainer(**EVERY_OPTION)
    steps = trainer.steps_left()
    trainer.step(next(steps))
    state = through_a_file(trainer.state_dict())
    train_epoch(other)
    other.load_state_dict(state)
    assert_equal(through_a_file(other.state_dict()), state)
    assert (other.epoch, other.so_far.step, len(other.visited)) == (0, 1, 4)


def test_a_validation_that_is_told_to_stop_ends_no_epoch(make_trainer, make_config) -> None:
    told = []
    trainer, unbroken = make_trainer(stopping=lambda: bool(told)), make_trainer()
    for batches, same in zip(trainer.steps_left(), unbroken.steps_left(), strict=True):
        trainer.step(batches)
        unbroken.step(same)
    told.append(True)
    assert trainer.validate() is None
    assert (trainer.history, trainer.so_far.step) == ([], 3)
    told.clear()
    assert_equal(trainer.validate().row, unbroken.validate().row)


def test_a_last_pt_of_version_0_1_is_gone_on_from(make_trainer) -> None:
    """Written by commit 0332151 after two steps of `EVERY_OPTION`; the losses of the epochs are those it went on to."""
    content = torch.load(ARCHIVE / "last-v1.pt", weights_only=True)
    trainer = make_trainer(**EVERY_OPTION)
    trainer.load_state_dict({"model": content["model"], **content["loop"]})
    assert (trainer.epoch, trainer.so_far.step, len(trainer.visited)) == (0, 2, 8)
    while not trainer.finished:
        train_epoch(trainer)
    expected = json.loads((ARCHIVE / "last-v1-losses.json").read_text())
    assert [[row["train_loss"], row["val_loss"]] for row in trainer.history] == [
        pytest.approx(row, rel=2e-3) for row in expected
    ]


# ---- a step


def test_accumulating_batches_is_one_larger_batch(make_trainer) -> None:
    """Without drop, dropout and augmentation, batches differ in nothing but the order of sums."""
    plain = {"selection": {"num_kept": 20}, "aggregator": {"num_heads": 2, "dropout": 0.0}}
    trainers = [
        make_trainer(**plain, training={"batch_slides": slides, "accumulate": accumulate})
        for slides, accumulate in ((12, 1), (3, 4))
    ]
    for trainer in trainers:
        (batches,) = trainer.steps_left()
        trainer.step(batches)
    one, other = (trainer.model.state_dict() for trainer in trainers)
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert trainers[0].so_far.loss == pytest.approx(trainers[1].so_far.loss, abs=1e-6)


def test_the_loss_of_a_batch_is_the_weighted_mean_over_its_slides(make_trainer) -> None:
    """By hand from the logits, with 4 slides of the first class and 8 of the second."""
    bags_of = {"flat": [], "coarse": []}

    def unequal(bags):
        for bag in bags:
            bags_of[bag.record.label].append(bag)
        return [*bags_of["coarse"][:2], *bags_of["flat"][:4]]

    seen = []

    class Noting(SlideModel):
        def forward(self, *arguments):
            seen.append(super().forward(*arguments))
            return seen[-1]

    training = {"batch_slides": 6, "class_weights": "balanced"}
    trainer = make_trainer(edit=unequal, model_class=Noting, training=training)
    (batches,) = trainer.steps_left()
    targets = [trainer.task.classes.index(bag.record.label) for bag in batches[0].bags]
    trainer.step(batches)
    weights = [{"coarse": 6 / (2 * 2), "flat": 6 / (2 * 4)}[trainer.task.classes[t]] for t in targets]
    losses = [-logits.log_softmax(0)[t].item() for logits, t in zip(seen[0], targets, strict=True)]
    by_hand = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert trainer.so_far.loss == pytest.approx(by_hand, rel=1e-5)


def test_every_slide_is_visited_once_an_epoch_and_the_rate_follows_the_schedule(make_trainer) -> None:
    trainer = make_trainer(training={"epochs": 3, "batch_slides": 5})
    rates = []
    for epoch in range(3):
        visited = []
        for batches in trainer.steps_left():
            done = trainer.step(batches)
            visited += [bag.record.slide_id for batch in batches for bag in batch.bags]
            assert done.num_slides == len(batches[0].bags)
            rates.append(trainer.optimizer.param_groups[-1]["lr"])
        assert sorted(visited) == [f"slide_{i:02d}" for i in range(4, 16)]
        assert sorted(visit.slide_id for visit in trainer.visited) == sorted(visited)
        assert trainer.validate().row["epoch"] == epoch + 1
    assert trainer.finished
    assert rates == [1e-3 * lr_share(step, 9, trainer.config.optimizer.warmup) for step in range(9)]


def test_a_loss_that_is_not_finite_takes_no_step(make_trainer) -> None:
    def one_bad(bags):
        rows = bags[3].rows.clone()
        rows[:] = float("nan")
        return [*bags[:3], dataclasses.replace(bags[3], rows=rows), *bags[4:]]

    trainer = make_trainer(edit=one_bad, training={"batch_slides": 12})
    before = copy.deepcopy(trainer.state_dict()["model"])
    with pytest.raises(TrainingError, match=r"epoch 1, slides slide_\d\d, .*: the loss is nan; no step was taken"):
        trainer.step(next(trainer.steps_left()))
    assert_equal(trainer.model.state_dict(), before)
    assert trainer.so_far.step == 0


def test_weights_that_are_not_finite_are_named(make_trainer) -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.encoder.project[0].weight[0, 0] = float("inf")
    with pytest.raises(TrainingError, match=r"epoch 1: weights encoder.project.0.weight are not finite before"):
        trainer.step(next(trainer.steps_left()))


def test_whether_to_save_is_asked_after_the_gradients_and_to_stop_is_passed_on(make_trainer) -> None:
    told = []
    trainer = make_trainer(stopping=lambda: bool(told))
    steps = trainer.steps_left()
    done = trainer.step(next(steps), lambda: bool(trainer.visited))
    assert (done.must_save, done.must_stop, len(trainer.visited)) == (True, False, 4)
    told.append(True)
    done = trainer.step(next(steps))
    assert (done.must_save, done.must_stop) == (False, True)
    assert trainer.so_far.step == 2  # the step is done all the same


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_in_half_precision_is_near_that_in_full(make_trainer, precision) -> None:
    losses = []
    for name in ("fp32", precision):
        trainer = make_trainer(training={"precision": name, "batch_slides": 12})
        trainer.step(next(trainer.steps_left()))
        losses.append(trainer.so_far.loss)
        assert all(weights.dtype == torch.float32 for weights in trainer.model.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_fp16_skips_a_step_that_overflows_and_lowers_its_scale(make_trainer) -> None:
    trainer = make_trainer(training={"precision": "fp16"})
    state = trainer.state_dict()
    trainer.load_state_dict(state | {"scaler": state["scaler"] | {"scale": 1e38}})
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.step(next(trainer.steps_left()))
    assert_equal(trainer.model.state_dict(), before)
    assert trainer.state_dict()["scaler"]["scale"] == pytest.approx(0.5e38)


def some_coarse_patches(label: int, draws: torch.Generator) -> torch.Tensor:
    """(20, 3, 16, 16) noise of one mean; in slides of class 1, twelve patches are coarser."""
    pixels = torch.randint(60, 160, (20, 3, 16, 16), generator=draws)
    if label:
        coarse = torch.randint(60, 160, (12, 3, 4, 4), generator=draws)
        pixels[:12] = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return pixels[torch.randperm(20, generator=draws)].to(torch.uint8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_what_tells_the_classes_apart_whatever_the_seed(make_trainer, seed) -> None:
    """All of the seeds 0 to 7 end below half of the first loss."""
    trainer = make_trainer(
        rows=some_coarse_patches,
        encoder={"name": "small_gn", "dim": 16},
        aggregator={"num_heads": 1, "dropout": 0.0},
        selection={"exploration": 0.5, "num_kept": 20, "num_salient": 4, "num_subsalient": 8},
        training={"epochs": 12, "seed": seed},
    )
    while not trainer.finished:
        train_epoch(trainer)
    assert trainer.best["val_auroc"] == 1.0
    assert trainer.history[-1]["train_loss"] < 0.5 * trainer.history[0]["train_loss"]


# ---- a validation


def test_the_average_of_the_weights_is_what_is_validated(make_trainer) -> None:
    trainer = make_trainer(training={"ema": 0.99})
    for batches in trainer.steps_left():
        trainer.step(batches)
    average = trainer.state_dict()["average"]
    assert_equal(trainer.validated_model.state_dict(), average)
    assert not torch.equal(average["encoder.project.0.weight"], trainer.model.encoder.project[0].weight)
    found = trainer.validate().row
    plain = make_trainer()
    plain.model.load_state_dict(average)
    assert plain.validate().row["val_loss"] == found["val_loss"]


def test_patience_ends_a_run_that_gets_no_better(make_trainer) -> None:
    still = {"lr": 1e-12, "weight_decay": 0.0}
    trainer = make_trainer(optimizer=still, training={"epochs": 9, "patience": 2})
    while not trainer.finished:
        train_epoch(trainer)
    assert trainer.epoch == trainer.best["epoch"] + 2 < 9


# ---- what is recorded


@pytest.mark.parametrize("selection", [{}, {"selector": "global"}, {"exploration": 0.6}, {"preset": "full"}])
def test_a_visit_records_what_the_model_chose(make_trainer, selection) -> None:
    chosen = []

    class Noting(SlideModel):
        def select(self, bag, kept_N, *arguments, **named):
            chosen.append((bag.record.slide_id, kept_N, super().select(bag, kept_N, *arguments, **named)))
            return chosen[-1][2]

    full = "preset" in selection
    selection = selection | ({"num_subsalient": 0} if full else {})
    trainer = make_trainer(model_class=Noting, selection=selection)
    visits = []
    while not trainer.finished:
        for batches in trainer.steps_left():
            trainer.step(batches)
        visits += trainer.validate().visits
    assert [visit.place for visit in visits] == [*range(12), *range(12)]
    for visit, (slide_id, kept_N, found) in zip(visits, chosen, strict=True):
        assert visit.slide_id == slide_id
        assert visit.kept_N.nonzero()[0].tolist() == kept_N.tolist()
        assert visit.salient_M.tolist() == found.selection.salient_M.tolist()
        assert visit.recycled_S.tolist() == found.selection.subsalient_S.tolist()
        ids = [*visit.salient_M, *visit.recycled_S]
        assert len(set(ids)) == len(ids)
        assert visit.kept_N[ids].all()
        if full or visit.explored:
            assert visit.logits_KR.shape[1] == 0
        else:
            assert visit.logits_KR.tolist() == found.logits_RK.T.tolist()
    assert (0 < sum(visit.explored for visit in visits) < 24) == ("exploration" in selection)
