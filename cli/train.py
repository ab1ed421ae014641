"""`wsi-dbps train`: train a model on caches and labels."""

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

    The model learns from the `train` slides, and the best epoch is chosen on the `val` slides; the `test` slides are
    never opened.

    On several GPUs: torchrun --nproc-per-node=N -m wsi_dbps_cli.main train ...
    """
    finish(train(cohort, caches, out, options=options))
