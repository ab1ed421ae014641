"""`wsi-dbps faithfulness`: are the heatmaps true?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.options import (
    Bags,
    CohortCsv,
    Columns,
    Device,
    Fold,
    Runs,
    Score,
    Split,
    cohort_part,
    member_runs,
    warn_of_seen,
)


def command(
    runs: Runs,
    cohort: CohortCsv,
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Folder for faithfulness.json and stability.json.")],
    split: Annotated[Split, typer.Option(help="Which slides.")] = Split.TEST,
    fold: Fold = None,
    score: Annotated[Score, typer.Option(help="What ranks the patches.")] = Score.ATTENTION,
    orders: Annotated[int, typer.Option(help="Random orders to hold the curves against.")] = 5,
    drop: Annotated[float, typer.Option(help="Share of the patches that a drop seed takes away.")] = 0.5,
    seeds: Annotated[int, typer.Option(help="Drop seeds.")] = 5,
    seed: Annotated[int, typer.Option(help="Random seed for the orders and drops.")] = 0,
    device: Device = "auto",
    columns: Columns = [],
) -> None:
    """Test whether heatmaps show what predictions depend on.

    Deletes and inserts each slide's top patches, compares with patches in random order, and drops patches at random.
    With several runs, how far their scores agree is said too.
    """
    from wsi_dbps.core.settings import build
    from wsi_dbps.explain.faithfulness import FaithfulnessConfig, faithfulness, faithfulness_json
    from wsi_dbps.training.checkpoint import load_checkpoint

    given = {"score": score.value, "num_random": orders, "drop": drop, "num_seeds": seeds, "seed": seed}
    config = build(FaithfulnessConfig, given, "faithfulness")
    slides = cohort_part(cohort, columns, split, fold)
    members = member_runs(runs, fold)
    for run in members:
        warn_of_seen(run, slides)
    checkpoints = [load_checkpoint(run / "best.pt") for run in members]
    found, failed = faithfulness(checkpoints, slides, caches, out, config, device=device)
    areas = faithfulness_json(found, config)
    for name in ("deletion", "insertion"):
        area = areas[name]["area"]
        interval = f" ({area['low']:.3f} to {area['high']:.3f})" if "low" in area else ""
        print(f"{name}: {area['value']:+.3f}{interval}, area between top and random order")
    print("above 0: the patches that the heatmap marks count for more than random ones; 0: they do not")
    print(f"{len(found)} slides tested, {len(failed)} failed: {out / 'faithfulness.json'}")
    if failed:
        raise typer.Exit(1)
