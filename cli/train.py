"""`wsi-dbps train`: caches and labels become a run folder with a trained model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import Bags, CohortCsv, Columns, Fold

if TYPE_CHECKING:
    from wsi_dbps.training.loop import TrainingResult


def command(
    cohort: CohortCsv,
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    config: Annotated[Path | None, typer.Option(help="Settings in TOML; see docs/settings.md.")] = None,
    set_: Annotated[
        list[str], typer.Option("--set", help="Change one: selection.num_salient=8. May be repeated.")
    ] = [],
    fold: Fold = None,
    folds: Annotated[
        str | None,
        typer.Option(help="all: train every fold in turn, into RUN/fold0 ...; goes on by itself where it was stopped."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's last.pt, with the settings of its run.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="auto (the first GPU, else the CPU), cpu, cuda, cuda:1 ...: training.device.")
    ] = None,
    columns: Columns = [],
) -> None:
    """Train a model end to end with dual-buffer selection.

    Learns from the `train` slides, chooses the best epoch on the `val` slides; the `test` slides are never opened.

    On several GPUs: torchrun --nproc-per-node=N -m wsi_dbps_cli.main train ...
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.core.settings import read_toml, with_overrides
    from wsi_dbps.training.run_folder import settings_to_go_on
    from wsi_dbps.training.settings import build_run_config

    if folds is not None and (folds != "all" or fold is not None):
        raise ConfigError("--folds takes `all`, and no --fold beside it")
    tables = with_overrides(read_toml(config) if config else {}, set_)
    if device is not None:
        tables = with_overrides(tables, [f"training.device='{device}'"])
    given = [str(config)] * (config is not None) + ["--set"] * bool(set_) + ["--device"] * (device is not None)
    source = " with ".join(given) or "train"
    if resume:
        settings = settings_to_go_on(out if folds is None else out / "fold0", tables, source)
    else:
        settings = build_run_config(tables, source)
    whole = read_manifest(cohort, columns=parse_columns(columns), need_label=True)
    if fold is not None:
        whole = whole.with_fold(fold)
    if folds is not None:
        from wsi_dbps.training.folds import train_folds

        for result in train_folds(whole, caches, out, settings):
            print_result(result)
        return
    from wsi_dbps.training.loop import train

    print_result(train(whole, caches, out, settings, resume=resume))


def print_result(result: TrainingResult) -> None:
    """Print which epoch was kept; of several processes the first does."""
    if os.environ.get("RANK", "0") != "0":
        return
    best = result.best
    auroc = "does not exist" if best["val_auroc"] is None else f"{best['val_auroc']:.3f}"
    print(
        f"best epoch {best['epoch']} of {len(result.history)}: val AUROC {auroc}, val loss {best['val_loss']:.3f}: "
        f"{result.checkpoint}"
    )
