"""Peak memory of a training step: over bags of different size, and of DBPS beside IPS.

    python tests/bench/memory.py [--encoder resnet18] [--size 224] [--salient 16] [--subsalient 64]
                                   [--patches 2000 50000] [--chunk 64] [--real]

Counts the bytes of all tensors alive at once, operation by operation, weights and their gradients left out. What the
operations compute is not needed for that, so it is left out too (torch's fake tensors): the figures are those of a
whole step, in minutes on any machine. `--real` computes, to check that the count is the same.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from wsi_dbps.models.settings import AggregatorConfig, EncoderConfig, SelectionConfig
from wsi_dbps.models.slide_model import SlideModel

MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made inside that are alive now, and the most that were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(t.untyped_storage()) for t in tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in tensors(out):
            storage = tensor.untyped_storage()
            if id(storage) not in self._alive and id(storage) not in before:
                self._alive.add(id(storage))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        return out

    def _gone(self, key: int, num_bytes: int) -> None:
        self._alive.discard(key)
        self.now -= num_bytes


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested arguments or results."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(tuple(value.values()))


class EmptyBag:
    """A bag of any size whose patches are made as they are read."""

    def __init__(self, num_patches: int, size_px: int) -> None:
        self.num_patches, self._size_px = num_patches, size_px

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for ids in id_lists:
            yield torch.randint(0, 256, (len(ids), 3, self._size_px, self._size_px), dtype=torch.uint8)


def step_bytes(encoder: str, num_patches: int, size_px: int, *, real: bool = False, **selection: Any) -> dict[str, int]:
    """Most bytes alive in selection, in the gradient stage, and in the step; and those saved for the backward pass."""
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor

    parts = (EncoderConfig(name=encoder, pretrained=False), AggregatorConfig(), SelectionConfig(**selection))
    model, bag = SlideModel(2, *parts).train(), EmptyBag(num_patches, size_px)
    fake = None if real else FakeTensorMode()
    for module in model.modules() if fake is not None else ():
        module._parameters = {n: fake.from_tensor(p) if p is not None else None for n, p in module._parameters.items()}
        module._buffers = {n: b if b is None else fake.from_tensor(b) for n, b in module._buffers.items()}
    with fake or nullcontext():
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with LiveBytes() as live:
            chosen = model.select(bag, torch.arange(num_patches), torch.Generator().manual_seed(0))
            selecting, live.peak = live.peak, live.now
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                loss = model([chosen]).logsumexp(1).sum()
            loss.backward()
    return {
        "selection": selecting,
        "gradient": live.peak,
        "step": max(selecting, live.peak),
        "saved": sum(saved.values()),
    }


def main() -> None:
    """Print the figures, in MiB, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--salient", type=int, default=16)
    parser.add_argument("--subsalient", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--patches", type=int, nargs="+", default=[2000, 50000])
    parser.add_argument("--real", action="store_true")
    options = parser.parse_args()
    m, s = options.salient, options.subsalient
    dbps = {"num_salient": m, "num_subsalient": s, "chunk_size": options.chunk}
    rows = [(f"dbps, N = {n}", n, dbps) for n in options.patches]
    few = min(options.patches)
    rows += [
        ("dbps, exact", few, {**dbps, "subsalient_grad": "exact"}),
        (f"ips, M = {m}", few, {**dbps, "num_subsalient": 0}),
        (f"ips, M = {m + s}", few, {**dbps, "num_salient": m + s, "num_subsalient": 0}),
    ]
    print(f"{options.encoder} at {options.size} px, M = {m}, S = {s}, L = {options.chunk}, one bag, fp32; MiB")
    print(f"{'':<20} {'selection':>10} {'gradient':>10} {'step':>10} {'saved':>10}")
    found = {}
    for name, num_patches, selection in rows:
        found[name] = step_bytes(options.encoder, num_patches, options.size, real=options.real, **selection)
        print(f"{name:<20} " + " ".join(f"{value / MIB:>10.1f}" for value in found[name].values()), flush=True)
    first, *others = (found[f"dbps, N = {n}"] for n in options.patches)
    for n, other in zip(options.patches[1:], others, strict=True):
        print(f"step, N = {n} : N = {options.patches[0]}: {other['step'] / first['step']:.4f}")
    few_rows = found[f"dbps, N = {few}"]
    for name in (f"ips, M = {m}", f"ips, M = {m + s}"):
        print(f"gradient stage, dbps : {name}: {few_rows['gradient'] / found[name]['gradient']:.4f}")
    print(f"gradient stage, exact : none: {found['dbps, exact']['gradient'] / few_rows['gradient']:.4f}")


if __name__ == "__main__":
    main()
