"""The whole way from slides to a report, on slides that it makes itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from wsi_dbps.core.options import options_with, to_stderr
from wsi_dbps.core.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.explain.colour_baseline import BesideColour

SIDE_PX: Final = 2048
"""Side of a synthetic slide at level 0, which has 0.5 µm per pixel."""
MPP_UM: Final = 2.0
"""µm per pixel of the patches."""
SIZE_PX: Final = 48
"""Side of a patch."""
SETTINGS: Final = """\
# What `wsi-dbps demo` trains with: a small encoder from random weights on a CPU.
[encoder]
name = "small_gn"
dim = 64

[selection]
preset = "dbps"
num_salient = 8
num_subsalient = 16
num_kept = 48
exploration = 0.5  # from random weights attention is no guide: selection begins at random

[aggregator]
num_heads = 1
dropout = 0.0

[optimizer]
lr = 5e-4
encoder_lr = 1e-3
weight_decay = 0.05

[augmentation]
stain_jitter = 0.15

[training]
epochs = 32
batch_slides = 8
seed = {seed}
"""


@settings
class DemoOptions:
    """The options of `demo`."""

    slides: Annotated[int, "Slides to make."] = 144
    seed: Annotated[int, "Random seed of the slides and of training."] = 0
    epochs: Annotated[int | None, "Fewer epochs, for a quick look."] = None


@dataclass(frozen=True)
class DemoResult:
    """What the demo has made and found."""

    folder: Path
    """Holds slides, caches, the run, predictions, heatmaps, atlas and report, each as its command leaves it."""
    found: BesideColour
    """The model on the test slides, beside what colour alone tells."""
    seconds: float
    failed: int = 0

    @property
    def report(self) -> Path:
        """The report of the test slides."""
        return self.folder / "report" / "report.html"

    @property
    def summary(self) -> str:
        """What the command prints at the end."""
        found, name = self.found, f"attention on the lesion, mean patch AUROC of {self.found.num_positive}"
        lines = [
            f"\n{'on the test slides':<48} {'dbps':>6} {'colour only':>12}",
            f"{'slide AUROC':<48} {found.slide_auroc:>6.3f} {found.colour_slide_auroc:>12.3f}",
            f"{name:<48} {found.patch_auroc:>6.3f} {found.colour_patch_auroc:>12.3f}",
            f"\nreport    {self.report}\nheatmaps  {self.folder / 'heatmaps'}\n{self.seconds:.0f} s in all",
        ]
        return "\n".join(lines)


def demo(
    out: PathLike,
    options: DemoOptions = DemoOptions(),
    *,
    say: Say = to_stderr,
    **changes: Any,
) -> DemoResult:
    """Run every step on a synthetic cohort: make slides, tile, train, predict, draw and test heatmaps, evaluate.

    It takes minutes on a CPU and needs no network. Run again, it goes on where it was stopped.

    Args:
        out: Folder to fill.
        options: Options; see `DemoOptions`.
        say: Takes the command line of every step, and below it what the command prints.
        changes: Options to change, by name: `demo("demo", slides=40)`.

    Raises:
        ConfigError: If there are too few slides for every class and split.
        SpecMismatchError: If the folder holds a cohort made with other settings.
        OutputError: If a file cannot be written.
    """
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.explain.colour_baseline import beside_colour

    o, out, start = options_with(options, changes), Path(out), time.monotonic()
    with output_folder(out, "demo", ("cohort.csv", "demo.toml")):
        for line, step in _steps(out, o):
            say(line)
            if summary := step():
                say(summary)
        found = beside_colour(out / "cohort.csv", out / "caches", out / "predictions")
    return DemoResult(out, found, time.monotonic() - start)


def _steps(out: Path, options: DemoOptions) -> list[tuple[str, Callable[[], str | None]]]:
    """Each step as a user would type it, and the call that does the same and returns what the command prints."""
    from wsi_dbps.workflows.atlas import atlas
    from wsi_dbps.workflows.evaluate import evaluate
    from wsi_dbps.workflows.faithfulness import faithfulness
    from wsi_dbps.workflows.heatmap import heatmap
    from wsi_dbps.workflows.localise import localise
    from wsi_dbps.workflows.predict import predict
    from wsi_dbps.workflows.tile import tile
    from wsi_dbps.workflows.train import train

    cohort, caches, run, config = out / "cohort.csv", out / "caches", out / "run", out / "demo.toml"
    test, val, maps, truth = out / "predictions", out / "validation", out / "heatmaps", out / "truth"
    report, pictures = out / "report", out / "atlas"
    changed = [] if options.epochs is None else [f"training.epochs={options.epochs}"]
    resume = (run / "run.json").exists()
    flags = "".join(f" --set {change}" for change in changed) + " --resume" * resume
    return [
        (f"making {options.slides} slides in {out / 'slides'}", lambda: _make(out, options)),
        (
            f"\n$ wsi-dbps tile {cohort} --out {caches} --mpp {MPP_UM:g} --size {SIZE_PX}",
            lambda: tile(cohort, caches, mpp=MPP_UM, size=SIZE_PX).summary,
        ),
        (
            f"\n$ wsi-dbps train {cohort} --caches {caches} --out {run} --config {config}{flags}",
            lambda: train(cohort, caches, run, config=config, set=changed, resume=resume).summary,
        ),
        (
            f"\n$ wsi-dbps predict {run} {cohort} --caches {caches} --split test --out {test}",
            lambda: predict(run, cohort, caches, test, split="test").summary,
        ),
        (
            f"\n$ wsi-dbps predict {run} {cohort} --caches {caches} --split val --out {val}",
            lambda: predict(run, cohort, caches, val, split="val").summary,
        ),
        (
            f"\n$ wsi-dbps heatmap {run} {cohort} --caches {caches} --predictions {test} --split test --out {maps}",
            lambda: heatmap(run, cohort, caches, maps, predictions=test, split="test").summary,
        ),
        (
            f"\n$ wsi-dbps localise {test} {cohort} --caches {caches} --val {val} --out {truth}",
            lambda: localise(test, cohort, truth, caches=caches, val=val).summary,
        ),
        (
            f"\n$ wsi-dbps faithfulness {run} {cohort} --caches {caches} --out {truth}",
            lambda: faithfulness(run, cohort, caches, truth).summary,
        ),
        (f"\n$ wsi-dbps atlas {run} --caches {caches} --out {pictures}", lambda: atlas(run, caches, pictures).summary),
        (
            f"\n$ wsi-dbps evaluate {test} --out {report} --val {val} --heatmaps {maps} --truth {truth} "
            f"--atlas {pictures}",
            lambda: evaluate(test, report, val=val, heatmaps=maps, truth=truth, atlas=pictures).summary,
        ),
    ]


def _make(out: Path, options: DemoOptions) -> None:
    from wsi_dbps.core.files import write_text
    from wsi_dbps.synth.cohort import make_cohort

    make_cohort(out, num_slides=options.slides, seed=options.seed, size_px=SIDE_PX)
    write_text(out / "demo.toml", SETTINGS.format(seed=options.seed))
