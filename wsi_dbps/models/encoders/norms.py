"""Batch norm found, and replaced by group norm."""

from __future__ import annotations

from torch import nn


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Every layer that normalises by the statistics of its batch."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def with_group_norm(module: nn.Module) -> nn.Module:
    """The module with group norm in place of every batch norm, whose scale and shift it keeps; changed in place.

    32 groups (Y. Wu and K. He, "Group normalization", ECCV 2018), or fewer, so that a group has 8 channels or more.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        channels = module.num_features
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (channels >= 8 * g or g == 1))
        norm = nn.GroupNorm(groups, channels, eps=module.eps, affine=module.affine)
        if module.affine:
            norm.weight, norm.bias = module.weight, module.bias
        # timm's fused layers drop and activate after they normalise
        after = [part for name in ("drop", "act") if isinstance(part := getattr(module, name, None), nn.Module)]
        return nn.Sequential(norm, *after) if after else norm
    for name, child in module.named_children():
        setattr(module, name, with_group_norm(child))
    return module
