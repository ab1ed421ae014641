"""The cost model: memory of the largest step and seconds of an epoch, before a run; and settings that fit in memory.

Symbols of docs/method.md, section "What it costs": F is `forward_seconds`, (1 + beta) F `gradient_seconds`, a + i
`gradient_bytes`, p + i `forward_bytes`, i / 4 `pixel_bytes`, and M, S, L and B are settings. training/device_cost.py
measures them on a device; this module only calculates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from wsi_dbps.core.errors import ConfigError, TrainingError
from wsi_dbps.dbps.drop import num_kept
from wsi_dbps.dbps.selectors import build_selector
from wsi_dbps.training.settings import as_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsi_dbps.dbps.selectors import Workload
    from wsi_dbps.training.settings import RunConfig

_COPIES: Final = 4
"""Values per weight on the device: the weight, its gradient and AdamW's two moments."""
TOLERANCE: Final = 0.15
"""Fraction by which a run may exceed its budget before it is stopped; plans are accurate to this."""


@dataclass(frozen=True)
class PatchCost:
    """Memory and time that one patch takes on a device."""

    fixed_bytes: int
    """Parameters, gradients, AdamW's moments, and buffers of the model."""
    workspace_bytes: int
    """Memory of a gradient stage that does not depend on the number of patches."""
    pixel_bytes: int
    """One patch as uint8 pixels."""
    forward_bytes: float
    """Per patch of a chunk, without gradient, besides its uint8 pixels."""
    gradient_bytes: float
    """Per salient patch, in the gradient stage, besides its uint8 pixels."""
    pooled_bytes: float
    """Per sub-salient embedding."""
    bag_bytes: float
    """Per bag, in the aggregator, whatever the number of patches."""
    forward_seconds: float
    """Per patch, without gradient."""
    gradient_seconds: float
    """Per salient patch, forward and backward."""
    read_seconds: float = 0.0
    """Per patch, to read and decode it with the run's threads."""
    overlapped: bool = False
    """Whether patches are read while the device computes: true for a GPU."""


@dataclass(frozen=True)
class Need:
    """Memory and time that a run with some settings needs."""

    memory_bytes: int
    """Everything on the device at the peak of the largest step."""
    selection_bytes: int
    """At the peak of the no-gradient pass, model included."""
    gradient_bytes: int
    """At the peak of the gradient stage, model included."""
    epoch_seconds: float
    """Training and validation of one epoch."""


@dataclass(frozen=True)
class Proposal:
    """Settings that fit in memory, and how they differ from those asked for."""

    config: RunConfig
    need: Need
    changes: tuple[str, ...]
    """`table.key = value` of each setting that had to change, as in run.toml and for --set; none if all fits."""


# ---- the cost model


def memory(config: RunConfig, num_patches: Sequence[int], cost: PatchCost) -> Need:
    """The memory of the largest step; `epoch_seconds` is left at 0.

    Args:
        config: Settings.
        num_patches: N of every training slide; the largest bags are assumed to be in one batch.
        cost: As measured on the device.
    """
    s, batch = config.selection, config.training.batch_slides
    kept = sorted((_kept(n, config) for n in num_patches), reverse=True)[:batch]
    works = [_workload(n, config) for n in kept]
    salient = sum(work.num_salient for work in works)
    exact = s.subsalient_grad == "exact"
    # Pixels: those chosen for every bag; of the last one the buffers and the chunk, twice while they are joined.
    held = (salient + (sum(work.num_subsalient for work in works) if exact else 0)) * cost.pixel_bytes
    selecting = held + 2 * works[0].num_pixels * cost.pixel_bytes + min(s.chunk_size, kept[0]) * cost.forward_bytes
    pooled = len(kept) * (works[0].num_subsalient * cost.pooled_bytes + cost.bag_bytes)
    learning = 2 * held + salient * cost.gradient_bytes + pooled + cost.workspace_bytes
    if exact:  # autograd holds one more copy of the gradient until every part is through
        learning += cost.fixed_bytes // _COPIES
    fixed = cost.fixed_bytes + (cost.fixed_bytes // _COPIES if config.training.ema else 0)
    stages = [fixed + math.ceil(stage) for stage in (selecting, learning)]
    return Need(max(stages), stages[0], stages[1], 0.0)


def need(config: RunConfig, train: Sequence[int], val: Sequence[int], cost: PatchCost) -> Need:
    """The memory of the largest step and the seconds of an epoch.

    Time of a step: B [N' F + M (1 + beta) F]; a selector that scores no patches encodes only the sub-salient
    ones. Every patch of a validation slide is scored. On a GPU, patches are read meanwhile, and the slower of the two
    counts; on a CPU, the two times add up.

    Args:
        config: Settings.
        train: N of every training slide.
        val: N of every validation slide.
        cost: As measured on the device.
    """
    forward = gradient = read = 0
    for n in train:
        work = _workload(_kept(n, config), config)
        exact = work.num_subsalient if config.selection.subsalient_grad == "exact" else 0
        forward += work.num_encoded + exact
        gradient += work.num_salient + exact
        read += work.num_read
    forward, read = forward + sum(val), read + sum(val)
    device = forward * cost.forward_seconds + gradient * cost.gradient_seconds
    reading = read * cost.read_seconds
    return replace(
        memory(config, train, cost),
        epoch_seconds=max(device, reading) if cost.overlapped else device + reading,
    )


def _kept(num_patches: int, config: RunConfig) -> int:
    s = config.selection
    return num_kept(num_patches, s.num_salient, rate=s.drop_rate, count=s.num_kept)


def _workload(kept: int, config: RunConfig) -> Workload:
    s = config.selection
    return build_selector(s.selector, s).workload(kept, keep_pixels=s.subsalient_grad == "exact")


# ---- the search


def propose(
    config: RunConfig, train: Sequence[int], val: Sequence[int], cost: PatchCost, budget_bytes: int
) -> Proposal:
    """The settings asked for if they fit; else the first that fit when reduced step by step.

    Reduced are first the bags per batch, then the salient, then the sub-salient patches. Smaller batches change nothing
    else, as more of them make a step; fewer salient patches give up gradient; sub-salient patches hardly take memory.
    For each of these settings, the chunk is halved until the no-gradient pass fits: that only changes the speed.

    Raises:
        ConfigError: If even one patch at a time does not fit.
    """
    largest = sorted(train)[-config.training.batch_slides :]
    for candidate in _candidates(config, largest):
        tried = candidate
        if memory(candidate, largest, cost).gradient_bytes > budget_bytes:
            continue
        for chunk in _halvings(candidate.selection.chunk_size):
            tried = _with(candidate, "selection", chunk_size=chunk)
            if memory(tried, largest, cost).memory_bytes <= budget_bytes:
                return Proposal(tried, need(tried, train, val, cost), _changes(config, tried))
    least = memory(tried, train, cost).memory_bytes
    raise ConfigError(
        f"{config.encoder.name} needs {as_size(least)} for one patch at a time, more than the {as_size(budget_bytes)} "
        "given; choose a smaller encoder or smaller patches"
    )


def most_salient(config: RunConfig, train: Sequence[int], cost: PatchCost, budget_bytes: int) -> int:
    """The largest number of salient patches that fits if nothing else changes; 0 if none does."""
    low, high = 0, max(train)
    while low < high:
        middle = (low + high + 1) // 2
        tried = _with_salient(config, middle)
        low, high = (middle, high) if memory(tried, train, cost).memory_bytes <= budget_bytes else (low, middle - 1)
    return low


def _candidates(config: RunConfig, train: Sequence[int]) -> Iterator[RunConfig]:
    loop, s = config.training, config.selection
    for batch in (b for b in range(loop.batch_slides, 0, -1) if loop.batch_slides % b == 0):
        accumulate = loop.accumulate * (loop.batch_slides // batch)
        single = _with(config, "training", batch_slides=batch, accumulate=accumulate)
        yield single
    if s.selector == "all" or s.most_subsalient is None:  # every kept patch is selected, so fewer must be kept
        for kept in range(max(_kept(n, config) for n in train) - 1, 0, -1):
            yield _with(single, "selection", num_kept=kept, drop_rate=0.0, num_salient=min(s.num_salient, kept))
        return
    for salient in range(min(s.num_salient, max(train)) - 1, 0, -1):
        single = _with_salient(single, salient)
        yield single
    for subsalient in _halvings(s.most_subsalient) if s.most_subsalient else ():
        yield _with(single, "selection", num_subsalient=subsalient)
    yield _with(single, "selection", num_subsalient=0)


def _with_salient(config: RunConfig, salient: int) -> RunConfig:
    kept = config.selection.num_kept
    return _with(config, "selection", num_salient=salient, num_kept=kept and max(kept, salient))


def _with(config: RunConfig, table: str, **values: Any) -> RunConfig:
    return replace(config, **{table: replace(getattr(config, table), **values)})


def _halvings(number: int) -> Iterator[int]:
    while number >= 1:
        yield number
        number //= 2


def _changes(asked: RunConfig, found: RunConfig) -> tuple[str, ...]:
    keys = {
        "selection": ("num_salient", "num_subsalient", "num_kept", "drop_rate", "chunk_size"),
        "training": ("batch_slides", "accumulate"),
    }
    return tuple(
        f"{table}.{key} = {getattr(getattr(found, table), key)}"
        for table, names in keys.items()
        for key in names
        if getattr(getattr(found, table), key) != getattr(getattr(asked, table), key)
    )


# ---- the trainer's own check


def check_budget(measured_bytes: int, budget_bytes: int) -> None:
    """Stop a run that needs more memory than its budget by over `TOLERANCE`.

    Raises:
        TrainingError: With the memory that was measured, and the settings to lower.
    """
    if measured_bytes > (1 + TOLERANCE) * budget_bytes:
        raise TrainingError(
            f"a step needs {as_size(measured_bytes)} of GPU memory, {measured_bytes / budget_bytes - 1:.0%} more than "
            f"training.vram = {as_size(budget_bytes)}; lower training.batch_slides, selection.num_salient or "
            "selection.chunk_size (`wsi-dbps plan` proposes values), or raise training.vram"
        )
