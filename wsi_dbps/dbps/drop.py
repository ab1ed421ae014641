"""Random patch drop: which patches of a bag a training visit sees at all.

Source: R. Qin et al., "No Pains, More Gains: Recycling Sub-Salient Patches for Efficient High-Resolution Image
Recognition", CVPR 2025. N is `num_patches`, N' `num_kept`, M `num_salient`, r `rate`.
"""

from __future__ import annotations

import torch


def num_kept(num_patches: int, num_salient: int, *, rate: float = 0.0, count: int | None = None) -> int:
    """How many patches of a bag stay: N' = M + floor((N - M)(1 - r)), or at most `count` where that is given.

    A bag of M patches or fewer stays whole.

    Raises:
        ValueError: If `rate` is outside [0, 1), or `count` is below `num_salient`.

    Examples:
        >>> num_kept(100, 16, rate=0.5), num_kept(100, 16, count=32), num_kept(10, 16, rate=0.5)
        (58, 32, 10)
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the drop rate must lie in [0, 1), found {rate}")
    if count is not None and count < num_salient:
        raise ValueError(f"the number of patches kept must be at least num_salient = {num_salient}, found {count}")
    if num_patches <= num_salient:
        return num_patches
    if count is not None:
        return min(count, num_patches)
    return num_salient + int((num_patches - num_salient) * (1 - rate))


def draw_kept(num_patches: int, kept: int, generator: torch.Generator) -> torch.Tensor:
    """(N',) ids of a uniform subset without replacement, ascending, drawn before any patch is read."""
    if kept == num_patches:
        return torch.arange(num_patches)
    return torch.randperm(num_patches, generator=generator)[:kept].sort().values
