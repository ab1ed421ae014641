"""A plan in words, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dbps.training.settings import as_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wsi_dbps.planning.device_cost import Plan
    from wsi_dbps.training.cost import Need
    from wsi_dbps.training.settings import RunConfig


def plan_lines(plan: Plan, asked: RunConfig, vram: str, budget_bytes: int) -> Iterator[str]:
    """What was asked for, what it needs, what fits, and the settings to get there, line by line.

    Args:
        plan: What was measured, what is needed, and what fits.
        asked: The settings that were asked for.
        vram: The memory that was given, as the user wrote it.
        budget_bytes: The same in bytes.
    """
    cost, num_patches, found = plan.cost, plan.num_patches, plan.proposal
    yield (
        f"{asked.encoder.name} on {plan.device}, {len(num_patches)} train slides of {min(num_patches)} to "
        f"{max(num_patches)} patches of {plan.size_px} px"
    )
    yield plan.parameters_line
    yield (
        f"a patch: forward {cost.forward_seconds * 1e3:.3g} ms, {as_size(cost.forward_bytes)}; with gradient "
        f"{cost.gradient_seconds * 1e3:.3g} ms, {as_size(cost.gradient_bytes)}; read {cost.read_seconds * 1e3:.3g} ms"
    )
    head = ("M", "S", "chunk", "batch", "selection", "gradient", "needs", "s/epoch")
    yield f"{'':<8}" + "".join(f"{name:>12}" for name in head)
    yield _row("asked", asked, plan.asked)
    if found.changes:
        yield _row("fits", found.config, found.need)
    yield from _verdict(found.changes, f"{vram} ({as_size(budget_bytes)})")
    if plan.most_salient is not None and plan.most_salient >= asked.selection.num_salient:
        yield f"With all else as asked it is enough for up to M = {plan.most_salient}."
    yield f'On a GPU, training.vram = "{vram}" makes the trainer stop if a step needs over 15 % more.'


def _verdict(changes: Sequence[str], given: str) -> Iterator[str]:
    """Whether the memory is enough, and if not, the settings to change: for a TOML file and for the command line."""
    if not changes:
        yield f"\n{given} is enough."
        return
    yield f"\n{given} is too little for what was asked. What fits:"
    for table in ("selection", "training"):
        lines = [change.partition(".")[2] for change in changes if change.startswith(f"{table}.")]
        if lines:
            yield "\n".join([f"[{table}]", *lines])
    yield "or " + " ".join(f"--set {change.replace(' = ', '=')}" for change in changes)


def _row(name: str, config: RunConfig, need: Need) -> str:
    s, loop = config.selection, config.training
    salient = "all kept" if s.selector == "all" else str(s.num_salient)
    batch = str(loop.batch_slides) + (f" x {loop.accumulate}" if loop.accumulate > 1 else "")
    values = (salient, str(s.num_subsalient), str(s.chunk_size), batch)
    sizes = tuple(as_size(size) for size in (need.selection_bytes, need.gradient_bytes, need.memory_bytes))
    return f"{name:<8}" + "".join(f"{value:>12}" for value in (*values, *sizes, f"{need.epoch_seconds:.3g}"))
