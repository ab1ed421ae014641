"""Measure in some seconds what a patch costs on this device, and plan a run on a cohort from that.

Patches of noise, of the cohort's patch size, go through the model as in training. Symbols as in training/cost.py.
"""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsi_dbps.bags.bags import CacheBag, PatchKind, PatchReader
from wsi_dbps.core.errors import ConfigError
from wsi_dbps.models.device import autocast, pick_device, pick_precision
from wsi_dbps.models.slide_model import SlideModel, evaluation_mode
from wsi_dbps.training.augment import augment
from wsi_dbps.training.cost import Need, PatchCost, Proposal, most_salient, need, propose
from wsi_dbps.training.data import load_data

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.training.settings import RunConfig

ADAM_BYTES: Final = 16
"""Bytes per trained parameter: value, gradient and AdamW's two moments, in fp32."""


@dataclass(frozen=True)
class Plan:
    """What a run on a cohort would need, and settings that fit in memory."""

    device: str
    size_px: int
    num_patches: tuple[int, ...]
    """N of every training slide."""
    cost: PatchCost
    parameters_line: str
    """How many parameters the encoder and the aggregator have."""
    asked: Need
    """What the settings as given need."""
    proposal: Proposal
    most_salient: int | None
    """The largest M that fits with the other settings as given; None if the selector makes every kept patch salient."""


def plan(cohort: Cohort, caches: PathLike, config: RunConfig, budget_bytes: int) -> Plan:
    """Measure costs on `training.device` and propose settings that fit. Only a few patches of the caches are read.

    Raises:
        ConfigError: If even the smallest settings do not fit, or there is no such device.
        TrainingError: If the cohort cannot be trained on.
        CacheError: If a cache is missing, damaged or of another kind.
    """
    caches = Path(caches)
    device = pick_device(config.training.device)
    reader = PatchReader(config.training.decode_threads)
    data = load_data(cohort, caches, reader, config.training, config.patches)
    if not isinstance(data.kind, PatchKind):
        raise ConfigError(
            f"{caches}: holds features; `plan` measures the encoding of pixels, name a folder of patch caches"
        )
    model = SlideModel(
        data.task.num_outputs, config.encoder, config.aggregator, config.selection, load_weights=False
    ).to(device)
    cost = measure_patch_cost(model, config, data.kind.size_px, pick_precision(config.training.precision, device))
    cost = replace(cost, read_seconds=read_seconds(max(data.train, key=lambda bag: bag.num_patches)))
    reader.close()
    train, val = (tuple(bag.num_patches for bag in bags) for bags in (data.train, data.val))
    return Plan(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        size_px=data.kind.size_px,
        num_patches=train,
        cost=cost,
        parameters_line=model.parameters_line,
        asked=need(config, train, val, cost),
        proposal=propose(config, train, val, cost, budget_bytes),
        most_salient=None if config.selection.selector == "all" else most_salient(config, train, cost, budget_bytes),
    )


def read_seconds(bag: CacheBag, most: int = 128) -> float:
    """Seconds to read and decode a patch, measured on a bag's first patches, with the file in the page cache."""
    ids = torch.arange(min(most, bag.num_patches))
    list(bag.read([ids]))
    start = time.perf_counter()
    list(bag.read([ids]))
    return (time.perf_counter() - start) / len(ids)


def measure_patch_cost(
    model: SlideModel,
    config: RunConfig,
    size_px: int,
    precision: torch.dtype,
    *,
    num_patches: int = 4,
    repeats: int = 3,
) -> PatchCost:
    """Measure what a patch costs on the model's device; the model keeps its weights.

    Bytes come from the difference of two runs, with `num_patches` and twice as many: on a GPU by
    `torch.cuda.max_memory_allocated`, elsewhere by the tensors that autograd saves for backward
    (`torch.autograd.graph.saved_tensors_hooks`) and, without gradient, by the tensors alive at once. Seconds are the
    least of `repeats`, which another process's work cannot shorten.
    """
    device, channels, on_gpu = model.device, 3, model.device.type == "cuda"
    model.train()
    numbers = (num_patches, 2 * num_patches)
    batches = [
        torch.randint(0, 256, (n, channels, size_px, size_px), dtype=torch.uint8, device=device) for n in numbers
    ]
    forward, learn = partial(_forward, model, precision), partial(_learn, model, config, precision)
    forward_peaks = [_peak_bytes(model, forward, pixels) for pixels in batches]
    saved = [saved_bytes(model, partial(learn, pixels, backward=False)) for pixels in batches]
    if on_gpu:
        saved = [_peak_bytes(model, learn, pixels) for pixels in batches]
    gradient_bytes = (saved[1] - saved[0]) / num_patches
    pooled, bag = _pooled_bytes(model, num_patches)
    seconds = [
        min(_seconds(step, batches[1], device) for _ in range(repeats)) / numbers[1] for step in (forward, learn)
    ]
    model.zero_grad(set_to_none=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    others = sum(t.numel() * t.element_size() for t in _lasting(model)) - 4 * trained
    return PatchCost(
        fixed_bytes=ADAM_BYTES * trained + others,
        workspace_bytes=max(0, round(saved[0] - num_patches * gradient_bytes - bag)),
        pixel_bytes=channels * size_px**2,
        forward_bytes=(forward_peaks[1] - forward_peaks[0]) / num_patches,
        gradient_bytes=gradient_bytes,
        pooled_bytes=pooled,
        bag_bytes=bag,
        forward_seconds=seconds[0],
        gradient_seconds=seconds[1],
        overlapped=on_gpu,
    )


def _forward(model: SlideModel, precision: torch.dtype, pixels: torch.Tensor) -> None:
    """Encode and score patches as selection does."""
    with evaluation_mode(model), torch.no_grad(), autocast(model.device, precision):
        model.aggregator.score_logits(model.encoder(pixels).float())


def _learn(
    model: SlideModel, config: RunConfig, precision: torch.dtype, pixels: torch.Tensor, *, backward: bool = True
) -> torch.Tensor:
    """Encode and pool patches as the gradient stage does."""
    with autocast(model.device, precision):
        embeddings = model.encoder(augment(pixels, config.augmentation))
        loss = _pool(model, embeddings[None].float(), 0).float().sum()
    if backward:
        loss.backward()
    return loss


def saved_bytes(model: SlideModel, step: Callable[[], object]) -> int:
    """Bytes that autograd saves for the backward pass of a step: each storage once, without the model's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in _lasting(model)}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            saved[place] = tensor.detach()  # kept alive, so that no other tensor reuses its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = step()  # noqa: F841 - keeps the graph alive until all is counted
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _lasting(model: SlideModel) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _pooled_bytes(model: SlideModel, num_patches: int) -> tuple[float, float]:
    """What autograd saves in the aggregator per sub-salient embedding, and per bag."""

    def saved(salient: int, subsalient: int) -> int:
        embeddings = torch.randn(1, salient, model.encoder.dim, device=model.device, requires_grad=True)
        return saved_bytes(model, lambda: _pool(model, embeddings, subsalient))

    few, more, none = saved(num_patches, 8), saved(num_patches, 16), saved(2 * num_patches, 0)
    per_subsalient = (more - few) / 8
    per_salient = (none - saved(num_patches, 0)) / num_patches
    return per_subsalient, max(0.0, few - 8 * per_subsalient - num_patches * per_salient)


def _pool(model: SlideModel, salient_BMD: torch.Tensor, num_subsalient: int) -> torch.Tensor:
    """Outputs of the aggregator for these salient embeddings and some sub-salient ones of noise."""
    batch, num, dim = salient_BMD.shape
    subsalient = torch.randn(batch, num_subsalient, dim, device=salient_BMD.device)
    present = [torch.ones(batch, n, dtype=torch.bool, device=salient_BMD.device) for n in (num, num_subsalient)]
    logits: torch.Tensor = model.aggregator(salient_BMD, present[0], subsalient, present[1])
    return logits


def _peak_bytes(model: SlideModel, step: Callable[[torch.Tensor], object], pixels: torch.Tensor) -> int:
    """Peak memory of a step, in bytes, beyond what was in use before it."""
    model.zero_grad(set_to_none=False)
    if pixels.device.type != "cuda":
        with _Alive() as alive:
            step(pixels)
        return alive.peak
    step(pixels)  # first, as libraries allocate their workspaces only once
    torch.cuda.synchronize(pixels.device)
    torch.cuda.reset_peak_memory_stats(pixels.device)
    before = torch.cuda.memory_allocated(pixels.device)
    step(pixels)
    torch.cuda.synchronize(pixels.device)
    return torch.cuda.max_memory_allocated(pixels.device) - before


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are created inside it and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), size=0)  # existed before, unless created here
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._count(storage := tensor.untyped_storage(), size=storage.nbytes())
        return out

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        if id(storage) not in self._known:
            self._known[id(storage)] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, id(storage))

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key)


def _seconds(step: Callable[[torch.Tensor], object], pixels: torch.Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step(pixels)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
