"""Random patch drop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.dbps.drop import draw_kept, num_kept

sizes = st.integers(1, 500)


@given(sizes, sizes, st.floats(0, 0.99))
def test_a_rate_keeps_the_salient_and_its_share_of_the_rest(num_patches: int, num_salient: int, rate: float) -> None:
    kept = num_kept(num_patches, num_salient, rate=rate)
    assert min(num_patches, num_salient) <= kept <= num_patches
    if num_patches > num_salient:
        assert kept == num_salient + int((num_patches - num_salient) * (1 - rate))


@given(sizes, st.integers(0, 2**30))
def test_kept_ids_are_distinct_ascending_and_in_the_bag(num_patches: int, seed: int) -> None:
    kept = draw_kept(num_patches, 1 + seed % num_patches, torch.Generator().manual_seed(seed))
    assert len(kept) == 1 + seed % num_patches
    assert (kept.diff() > 0).all()
    assert kept.min() >= 0
    assert kept.max() < num_patches


def test_every_patch_is_kept_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(20)
    for _ in range(4000):
        counts[draw_kept(20, 5, generator)] += 1
    assert (counts / 4000 - 0.25).abs().max() < 0.03  # 4.4 standard errors


def test_each_visit_draws_anew_and_the_same_seed_draws_the_same() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = draw_kept(100, 50, generator), draw_kept(100, 50, generator)
    assert first.tolist() != second.tolist()
    assert draw_kept(100, 50, torch.Generator().manual_seed(3)).tolist() == first.tolist()


def test_an_absolute_count_holds_for_any_size_of_bag() -> None:
    assert [num_kept(n, 4, count=32) for n in (2, 32, 33, 10_000)] == [2, 32, 32, 32]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.0}, r"the drop rate must lie in \[0, 1\), found 1.0"),
        ({"count": 3}, "the number of patches kept must be at least num_salient = 4, found 3"),
    ],
)
def test_what_cannot_be_kept_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        num_kept(10, 4, **arguments)
