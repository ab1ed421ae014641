"""Do heatmaps show what predictions depend on?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from wsi_dbps.cohort.given import Columns, Device, Fold, Split, cohort_part
from wsi_dbps.core.options import options_with, to_stderr
from wsi_dbps.core.settings import build, settings
from wsi_dbps.formats.run_folders import member_runs, paths_of, warn_of_seen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.inference.faithfulness import SlideFaithfulness

Score = Literal["attention", "evidence"]
"""What ranks the patches; `evidence` is attribution."""


@settings
class FaithfulnessOptions:
    """The options of `faithfulness`."""

    split: Annotated[Split, "Which slides."] = "test"
    fold: Fold = None
    score: Annotated[Score, "What ranks the patches."] = "attention"
    orders: Annotated[int, "Random orders to hold the curves against."] = 5
    drop: Annotated[float, "Share of the patches that a drop seed takes away."] = 0.5
    seeds: Annotated[int, "Drop seeds."] = 5
    seed: Annotated[int, "Random seed for the orders and drops."] = 0
    device: Device = "auto"
    columns: Columns = ()


@dataclass(frozen=True)
class FaithfulnessResult:
    """How far predictions depend on what heatmaps show."""

    numbers: Mapping[str, Any]
    """The content of faithfulness.json: curves and areas of deletion and insertion, with intervals."""
    stability: Mapping[str, Any]
    """The content of stability.json: how far drop seeds, and runs, move predictions and scores."""
    slides: tuple[SlideFaithfulness, ...]
    """What was found, by slide."""
    failed: tuple[str, ...]
    """One line for each slide that could not be tested, beginning with its id."""
    folder: Path
    """Holds faithfulness.json and stability.json."""

    @property
    def summary(self) -> str:
        """What the command prints: both areas, and how to read them."""
        lines = []
        for name in ("deletion", "insertion"):
            area = self.numbers[name]["area"]
            interval = f" ({area['low']:.3f} to {area['high']:.3f})" if "low" in area else ""
            lines.append(f"{name}: {area['value']:+.3f}{interval}, area between top and random order")
        lines.append("above 0: the patches that the heatmap marks count for more than random ones; 0: they do not")
        path = self.folder / "faithfulness.json"
        return "\n".join([*lines, f"{len(self.slides)} slides tested, {len(self.failed)} failed: {path}"])


def faithfulness(
    runs: PathLike | Sequence[PathLike],
    cohort: Cohort | PathLike,
    caches: PathLike,
    out: PathLike,
    options: FaithfulnessOptions = FaithfulnessOptions(),
    *,
    say: Say = to_stderr,
    **changes: Any,
) -> FaithfulnessResult:
    """Test whether heatmaps show what predictions depend on.

    Deletes and inserts each slide's top patches, compares with patches in random order, and drops patches at random.
    With several runs, how far their scores agree is said too. A slide that cannot be tested is named in `failed`, and
    the others go on.

    Args:
        runs: A run folder of `train`, or several.
        cohort: A cohort, or the path of its manifest.
        caches: Folder of patch caches, or of features, with a file per slide.
        out: Folder for faithfulness.json and stability.json.
        options: Options; see `FaithfulnessOptions`.
        say: Takes lines of notice.
        changes: Options to change, by name: `faithfulness(..., split="val")`.

    Raises:
        PredictionError: If no slide can be tested, or the runs' classes differ.
        ConfigError: If an option is out of its range.
        CheckpointError: If a run has no checkpoint, or a damaged one.
        OutputError: If a file cannot be written.
    """
    from wsi_dbps.inference.faithfulness import FaithfulnessConfig, measure_faithfulness
    from wsi_dbps.training.checkpoint import load_checkpoint

    o = options_with(options, changes)
    given = {"score": o.score, "num_random": o.orders, "drop": o.drop, "num_seeds": o.seeds, "seed": o.seed}
    config = build(FaithfulnessConfig, given, "faithfulness")
    slides = cohort_part(cohort, o.columns, o.split, o.fold)
    members = member_runs(paths_of(runs), o.fold)
    for run in members:
        warn_of_seen(run, slides, say)
    checkpoints = [load_checkpoint(run / "best.pt") for run in members]
    found = measure_faithfulness(checkpoints, slides, Path(caches), Path(out), config, device=o.device)
    return FaithfulnessResult(found.numbers, found.stability, found.slides, found.failed, Path(out))
