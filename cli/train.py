"""`wsi-dbps train`: caches and labels become a run folder with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish
from wsi_dbps_cli.options import Bags, CohortCsv

from wsi_dbps.workflows.train import TrainOptions, train


@derived()
def command(
    cohort: CohortCsv,
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    options: TrainOptions,
) -> None:
    """Train a model end to end with dual-buffer selection.

    Learns from the `train` slides, chooses the best epoch on the `val` slides; the `test` slides are never opened.

    On several GPUs: torchrun --nproc-per-node=N -m wsi_dbps_cli.main train ...
    """
    finish(train(cohort, caches, out, options=options))
