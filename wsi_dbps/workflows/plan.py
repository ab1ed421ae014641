"""Estimate what a run would need in memory and time, and find settings that fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from wsi_dbps.cohort.given import Columns, Device, as_cohort
from wsi_dbps.core.options import options_with, to_stderr
from wsi_dbps.core.settings import settings
from wsi_dbps.training.given_settings import SetOption, run_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.planning.device_cost import Plan
    from wsi_dbps.training.cost import Need
    from wsi_dbps.training.settings import RunConfig


@settings
class PlanOptions:
    """The options of `plan`."""

    config: Annotated[Path | None, "File of settings in TOML; see docs/settings.md."] = None
    set: SetOption = ()
    device: Device = "auto"
    columns: Columns = ()


@dataclass(frozen=True)
class PlanResult:
    """What a run would need, and settings that fit."""

    plan: Plan
    """What was measured, what is needed, and what fits."""
    asked: RunConfig
    """The settings that were asked for."""
    vram: str
    """The memory that was given."""
    budget_bytes: int
    """The same in bytes."""
    failed: int = 0

    @property
    def fits(self) -> RunConfig:
        """Settings that fit: those asked for, or the nearest to them."""
        return self.plan.proposal.config

    @property
    def changes(self) -> tuple[str, ...]:
        """`table.key = value` of each setting that must change to fit."""
        return self.plan.proposal.changes

    @property
    def summary(self) -> str:
        """What the command prints."""
        return "\n".join(_lines(self))


def plan(
    cohort: Cohort | PathLike,
    caches: PathLike,
    vram: str,
    settings: Mapping[str, Any] | PathLike | None = None,
    options: PlanOptions = PlanOptions(),
    *,
    say: Say = to_stderr,  # noqa: ARG001 - every workflow has it
    **changes: Any,
) -> PlanResult:
    """Measure for a few seconds what patches cost on the device, and find settings that fit into its memory.

    Args:
        cohort: A cohort with labels, or the path of its manifest.
        caches: Folder of patch caches.
        vram: Memory that training may use: `12G`, `800M`; G and M are powers of 1024.
        settings: Settings of the run: tables, keys with a dot, or the path of a TOML file; see `run_tables`.
        options: Options; see `PlanOptions`.
        say: Takes lines of notice.
        changes: Options to change, by name.

    Raises:
        ConfigError: If a setting is wrong, or even the smallest settings do not fit.
        TrainingError: If the cohort cannot be trained on.
        CacheError: If a cache is missing, damaged or of another kind.
    """
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.training.settings import build_run_config, size_bytes

    o = options_with(options, changes)
    try:
        budget = size_bytes(vram)
    except ValueError as error:
        raise ConfigError(f"--vram: {error}") from None
    tables, source = run_tables(o.config, settings, o.set, None if o.device == "auto" else o.device)
    asked = build_run_config(tables, source or "plan")
    whole = as_cohort(cohort, o.columns, need_label=True)
    from wsi_dbps.planning.device_cost import plan as measure

    return PlanResult(measure(whole, caches, asked, budget), asked, vram, budget)


def _lines(result: PlanResult) -> Iterator[str]:
    """What was asked for, what it needs, what fits, and the settings to get there."""
    from wsi_dbps.training.settings import as_size

    plan, asked = result.plan, result.asked
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
    yield from _verdict(result)
    if plan.most_salient is not None and plan.most_salient >= asked.selection.num_salient:
        yield f"With all else as asked it is enough for up to M = {plan.most_salient}."
    yield f'On a GPU, training.vram = "{result.vram}" makes the trainer stop if a step needs over 15 % more.'


def _verdict(result: PlanResult) -> Iterator[str]:
    """Whether the memory is enough, and if not, the settings to change: for a TOML file and for the command line."""
    from wsi_dbps.training.settings import as_size

    given = f"{result.vram} ({as_size(result.budget_bytes)})"
    if not result.changes:
        yield f"\n{given} is enough."
        return
    yield f"\n{given} is too little for what was asked. What fits:"
    for table in ("selection", "training"):
        lines = [change.partition(".")[2] for change in result.changes if change.startswith(f"{table}.")]
        if lines:
            yield "\n".join([f"[{table}]", *lines])
    yield "or " + " ".join(f"--set {change.replace(' = ', '=')}" for change in result.changes)


def _row(name: str, config: RunConfig, need: Need) -> str:
    from wsi_dbps.training.settings import as_size

    s, loop = config.selection, config.training
    salient = "all kept" if s.selector == "all" else str(s.num_salient)
    batch = str(loop.batch_slides) + (f" x {loop.accumulate}" if loop.accumulate > 1 else "")
    values = (salient, str(s.num_subsalient), str(s.chunk_size), batch)
    sizes = tuple(as_size(size) for size in (need.selection_bytes, need.gradient_bytes, need.memory_bytes))
    return f"{name:<8}" + "".join(f"{value:>12}" for value in (*values, *sizes, f"{need.epoch_seconds:.3g}"))
