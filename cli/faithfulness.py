"""`wsi-dbps faithfulness`: do heatmaps show what predictions depend on?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.derive import derived, finish
from wsi_dbps_cli.options import Bags, CohortCsv, Runs

from wsi_dbps.workflows.faithfulness import FaithfulnessOptions, faithfulness


@derived()
def command(
    runs: Runs,
    cohort: CohortCsv,
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Folder for faithfulness.json and stability.json.")],
    options: FaithfulnessOptions,
) -> None:
    """Test whether heatmaps show what predictions depend on.

    Deletes and inserts each slide's top patches, compares with patches in random order, and drops patches at random.
    With several runs, how far their scores agree is said too.
    """
    finish(faithfulness(runs, cohort, caches, out, options))
