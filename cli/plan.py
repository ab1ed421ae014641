"""`wsi-dbps plan`: what a run would need in memory and time, and settings that fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import Caches, CohortCsv, Columns, Device

if TYPE_CHECKING:
    from wsi_dbps.training.cost import Need
    from wsi_dbps.training.device_cost import Plan
    from wsi_dbps.training.settings import RunConfig


def command(
    cohort: CohortCsv,
    caches: Caches,
    vram: Annotated[str, typer.Option(help="Memory that training may use: 12G, 800M.")],
    config: Annotated[Path | None, typer.Option(help="Settings in TOML; see docs/settings.md.")] = None,
    set_: Annotated[
        list[str], typer.Option("--set", help="Change one: selection.num_salient=8. May be repeated.")
    ] = [],
    device: Device = "auto",
    columns: Columns = [],
) -> None:
    """Estimate time and memory of a run, and settings that fit.

    Measures for a few seconds what patches cost on the device.
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.core.settings import read_toml, with_overrides
    from wsi_dbps.training.settings import build_run_config, size_bytes

    try:
        budget = size_bytes(vram)
    except ValueError as error:
        raise ConfigError(f"--vram: {error}") from None
    chosen = [f"training.device={device}"] if device != "auto" else []
    tables = with_overrides(read_toml(config) if config else {}, [*set_, *chosen])
    source = " with ".join([str(config)] * bool(config) + ["--set"] * bool(set_)) or "plan"
    settings = build_run_config(tables, source)
    whole = read_manifest(cohort, columns=parse_columns(columns), need_label=True)
    from wsi_dbps.training.device_cost import plan

    print_plan(plan(whole, caches, settings, budget), settings, vram, budget)


def print_plan(plan: Plan, asked: RunConfig, vram: str, budget: int) -> None:
    """Print what was asked for, what it needs, what fits, and the settings to get there."""
    from wsi_dbps.training.settings import as_size

    cost, num_patches, found = plan.cost, plan.num_patches, plan.proposal
    print(
        f"{asked.encoder.name} on {plan.device}, {len(num_patches)} train slides of {min(num_patches)} to "
        f"{max(num_patches)} patches of {plan.size_px} px"
    )
    print(plan.parameters_line)
    print(
        f"a patch: forward {cost.forward_seconds * 1e3:.3g} ms, {as_size(cost.forward_bytes)}; with gradient "
        f"{cost.gradient_seconds * 1e3:.3g} ms, {as_size(cost.gradient_bytes)}; read {cost.read_seconds * 1e3:.3g} ms"
    )
    head = ("M", "S", "chunk", "batch", "selection", "gradient", "needs", "s/epoch")
    print(f"{'':<8}" + "".join(f"{name:>12}" for name in head))
    _row("asked", asked, plan.asked)
    if found.changes:
        _row("fits", found.config, found.need)
    if found.changes:
        print(f"\n{vram} ({as_size(budget)}) is too little for what was asked. What fits:")
        for table in ("selection", "training"):
            lines = [change.partition(".")[2] for change in found.changes if change.startswith(f"{table}.")]
            if lines:
                print(f"[{table}]", *lines, sep="\n")
        print("or " + " ".join(f"--set {change.replace(' = ', '=')}" for change in found.changes))
    else:
        print(f"\n{vram} ({as_size(budget)}) is enough.")
    if plan.most_salient is not None and plan.most_salient >= asked.selection.num_salient:
        print(f"With all else as asked it is enough for up to M = {plan.most_salient}.")
    print(f'On a GPU, training.vram = "{vram}" makes the trainer stop if a step needs over 15 % more.')


def _row(name: str, config: RunConfig, need: Need) -> None:
    from wsi_dbps.training.settings import as_size

    s, loop = config.selection, config.training
    salient = "all kept" if s.selector == "all" else str(s.num_salient)
    batch = str(loop.batch_slides) + (f" x {loop.accumulate}" if loop.accumulate > 1 else "")
    values = (salient, str(s.num_subsalient), str(s.chunk_size), batch)
    sizes = tuple(as_size(size) for size in (need.selection_bytes, need.gradient_bytes, need.memory_bytes))
    print(f"{name:<8}" + "".join(f"{value:>12}" for value in (*values, *sizes, f"{need.epoch_seconds:.3g}")))
