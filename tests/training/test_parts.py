"""Augmentation, learning rate, settings and bags."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.bags.bags import PatchReader
from wsi_dbps.core.errors import CacheError, ConfigError
from wsi_dbps.core.settings import read_toml, to_toml, with_overrides
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.tasks.classification import Classification
from wsi_dbps.training.augment import STAINS, augment, jitter_stains
from wsi_dbps.training.data import TrainingData
from wsi_dbps.training.optimizer import lr_share
from wsi_dbps.training.settings import AugmentationConfig, RunConfig, build_run_config
from wsi_dbps.training.visits import exploring

none = AugmentationConfig(flips=False, turns=False, stain_jitter=0.0)


def pixels(count: int = 6, side: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def test_without_augmentation_pixels_stay() -> None:
    before = pixels()
    assert torch.equal(augment(before, none), before / 255)


def test_flips_and_turns_only_move_pixels_and_reach_all_eight_positions() -> None:
    one = pixels(1)
    many = augment(one.expand(400, -1, -1, -1), AugmentationConfig(stain_jitter=0.0))
    quarter = one[0] / 255
    wanted = {tuple(turned.flatten().tolist()) for k in range(4) for turned in _both(torch.rot90(quarter, k, (1, 2)))}
    assert len(wanted) == 8
    assert {tuple(patch.flatten().tolist()) for patch in many} == wanted


def _both(patch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return patch, patch.flip(2)


@given(st.floats(0.01, 0.3))
def test_stain_jitter_changes_each_stain_by_one_factor_and_shift_within_its_strength(strength: float) -> None:
    torch.manual_seed(0)
    before = 0.3 + 0.4 * torch.rand(2, 3, 4, 4)
    after = jitter_stains(before, strength)
    for n in range(2):
        inside = ((after[n] > 0.01) & (after[n] < 0.99)).all(dim=0)  # where no channel was cut off
        old, new = (amounts(patch[n])[inside] for patch in (before, after))
        for k in range(3):
            line = torch.stack([old[:, k], torch.ones(len(old))], dim=1)
            factor, shift = torch.linalg.lstsq(line, new[:, k : k + 1]).solution.flatten().tolist()
            assert abs(factor - 1) <= strength + 1e-3
            assert abs(shift) <= 0.1 * strength + 1e-3
            assert torch.allclose(new[:, k], old[:, k] * factor + shift, atol=1e-3)
        assert not torch.equal(old, new)
    assert not torch.allclose(after[0] / before[0], after[1] / before[1], atol=1e-6)  # each patch on its own


def amounts(patch: torch.Tensor) -> torch.Tensor:
    """(4, 4, 3) amount of haematoxylin, eosin and the residual stain."""
    stains = STAINS / STAINS.norm(dim=1, keepdim=True)
    return torch.linalg.solve(stains.T, -patch.log10().flatten(1)).T.reshape(4, 4, 3)


def test_stain_jitter_of_black_and_white_stays_in_range() -> None:
    torch.manual_seed(0)
    extreme = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 2, 2)
    for _ in range(20):
        changed = jitter_stains(extreme, 0.5)
        assert torch.isfinite(changed).all()
        assert 0 <= changed.min() <= changed[0].max() < 0.2 < 0.7 < changed[1].min() <= changed.max() <= 1


def test_no_jitter_is_the_identity() -> None:
    patch = pixels(3).clamp(min=1) / 255
    assert torch.allclose(jitter_stains(patch, 0.0), patch, atol=1e-4)


@given(st.integers(1, 500), st.floats(0, 0.9))
def test_the_learning_rate_rises_to_its_peak_and_falls(num_steps: int, warmup: float) -> None:
    shares = [lr_share(step, num_steps, warmup) for step in range(num_steps)]
    top = shares.index(max(shares))
    assert all(0 < share <= 1 for share in shares)
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)


def test_settings_round_trip_through_toml(tmp_path) -> None:
    config = build_run_config({"selection": {"preset": "ips", "num_kept": 20}, "training": {"epochs": 3}}, "test")
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert build_run_config(read_toml(tmp_path / "run.toml"), "run.toml") == config


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("selection.num_salent=3", r"test: unknown setting \[selection\] num_salent; known: preset, num_salient"),
        ("optimiser.lr=3", r"test: unknown setting optimiser; known: encoder, selection"),
        ("optimizer.lr=-1.0", r"test: optimizer: lr must be above 0, found -1.0"),
        ("optimizer.lr=fast", r"test: \[optimizer\] lr: Input should be a valid number, found 'fast'"),
        ("training.epochs=1.5", r"test: \[training\] epochs: .*integer, found 1.5"),
        ("selection.selector='best'", r"test: \[selection\] selector: Input should be 'streaming', 'global'"),
        ("selection.num_kept=2", "num_kept must be at least num_salient = 16, found 2"),
        ("augmentation.flips=1", r"\[augmentation\] flips: Input should be a valid boolean, found 1"),
        ("lr=3", "--set lr=3: write it as table.key=value"),
    ],
)
def test_a_wrong_setting_is_named_with_its_table(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run_config(with_overrides({}, [assignment]), "test")


def test_settings_files_that_cannot_be_read_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such settings file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[training\nepochs = 3")
    with pytest.raises(ConfigError, match=r"bad.toml: not a TOML file: .*line 1"):
        read_toml(tmp_path / "bad.toml")


def test_every_setting_has_a_default() -> None:
    assert build_run_config({}, "test") == RunConfig()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_bags_hand_out_the_pixels_of_the_ids_asked_for(caches, num_threads) -> None:
    cache, reader = PatchCache(caches / "slide_05.h5"), PatchReader(num_threads)
    lists = [torch.tensor([3, 1]), torch.tensor([7, 30, 0, 12, 5])]
    read = list(reader.read(cache, lists))
    reader.close()
    for ids, found in zip(lists, read, strict=True):
        assert found.dtype == torch.uint8
        assert torch.equal(found, torch.from_numpy(cache.patches(ids.tolist())).permute(0, 3, 1, 2))


def test_a_damaged_patch_is_named_when_it_is_read(caches, tmp_path) -> None:
    whole = (caches / "slide_05.h5").read_bytes()
    cache = PatchCache(caches / "slide_05.h5")
    jpeg = cache.jpegs([4])[0]
    place = whole.index(jpeg)
    (tmp_path / "slide_05.h5").write_bytes(whole[:place] + b"\0" * len(jpeg) + whole[place + len(jpeg) :])
    reader = PatchReader(1)
    with pytest.raises(CacheError, match=r"slide_05.h5: patch 4 .*"):
        list(reader.read(PatchCache(tmp_path / "slide_05.h5"), [torch.tensor([4])]))
    reader.close()


@given(labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_an_epoch_visits_each_slide_once_and_spreads_every_class_evenly(labels: list[str], seed: int) -> None:
    bags = tuple(SimpleNamespace(record=SimpleNamespace(label=label)) for label in labels)
    data = TrainingData(bags, (), Classification(tuple(sorted(set(labels)))), None, ())
    order = data.order(torch.Generator().manual_seed(seed))
    assert sorted(order) == list(range(len(labels)))
    for visited in range(len(labels) + 1):
        for label in set(labels):
            seen = sum(labels[i] == label for i in order[:visited])
            assert abs(seen - visited * labels.count(label) / len(labels)) < 3
    assert len(labels) < 12 or order != data.order(torch.Generator().manual_seed(seed + 1))


@given(epochs=st.integers(1, 50), exploration=st.floats(0, 1))
def test_exploration_falls_from_always_to_never_over_its_share(epochs: int, exploration: float) -> None:
    chances = [exploring(epoch / 4, epochs, exploration) for epoch in range(4 * epochs)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] == (1.0 if exploration else 0.0)
    assert all(chance == 0 for i, chance in enumerate(chances) if i / 4 >= exploration * epochs)
    assert exploring(1, 10, 0.4) == 0.75
