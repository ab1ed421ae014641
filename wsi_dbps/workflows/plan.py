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
    from collections.abc import Mapping

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.planning.device_cost import Plan
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
        from wsi_dbps.planning.text import plan_lines

        return "\n".join(plan_lines(self.plan, self.asked, self.vram, self.budget_bytes))


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
