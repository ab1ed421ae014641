"""`wsi-dbps demo`: the whole way from slides to heatmaps, on slides that it makes itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.derive import finish
from wsi_dbps_cli.ending import ending_in_one_line

from wsi_dbps.workflows.atlas import atlas
from wsi_dbps.workflows.evaluate import evaluate
from wsi_dbps.workflows.faithfulness import faithfulness
from wsi_dbps.workflows.heatmap import heatmap
from wsi_dbps.workflows.localise import localise
from wsi_dbps.workflows.predict import predict
from wsi_dbps.workflows.tile import tile
from wsi_dbps.workflows.train import train

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsi_dbps.cohort.cohort import Cohort, SlideRecord

SIDE_PX, MPP_UM, SIZE_PX = 2048, 2.0, 48

SETTINGS = """\
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


def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to fill.")],
    slides: Annotated[int, typer.Option(help="Slides to make.")] = 144,
    seed: Annotated[int, typer.Option(help="Random seed of the slides and of training.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Fewer epochs, for a quick look.")] = None,
) -> None:
    """Run every step on a synthetic cohort.

    Makes a cohort of synthetic slides, tiles it, trains, predicts, draws heatmaps and tests them: CPU, offline,
    minutes.

    Each step is a command of its own, and is printed as you would type it. Run again, it goes on where it was stopped.
    """
    from wsi_dbps.core.output_folder import output_folder

    with output_folder(out, "demo", ("cohort.csv", "demo.toml")):
        _whole_way(out, slides, seed, epochs)


def _whole_way(out: Path, slides: int, seed: int, epochs: int | None) -> None:
    from wsi_dbps.core.files import write_text
    from wsi_dbps.synth.cohort import make_cohort

    start = time.monotonic()
    cohort, caches, run = out / "cohort.csv", out / "caches", out / "run"
    predictions, report, maps = out / "predictions", out / "report", out / "heatmaps"
    print(f"making {slides} slides in {out / 'slides'}")
    make_cohort(out, num_slides=slides, seed=seed, size_px=SIDE_PX)
    config = out / "demo.toml"
    write_text(config, SETTINGS.format(seed=seed))

    _say(f"tile {cohort} --out {caches} --mpp {MPP_UM:g} --size {SIZE_PX}")
    with ending_in_one_line():
        finish(tile(cohort, caches, mpp=MPP_UM, size=SIZE_PX))
    changes = [] if epochs is None else [f"training.epochs={epochs}"]
    resume = (run / "run.json").exists()
    flags = "".join(f" --set {change}" for change in changes) + " --resume" * resume
    _say(f"train {cohort} --caches {caches} --out {run} --config {config}{flags}")
    finish(train(cohort, caches, run, config=config, set=changes, resume=resume))
    validation, truth, atlas_out = out / "validation", out / "truth", out / "atlas"
    for part, folder in (("test", predictions), ("val", validation)):
        _say(f"predict {run} {cohort} --caches {caches} --split {part} --out {folder}")
        print(predict(run, cohort, caches, folder, split=part).summary)
    _say(f"heatmap {run} {cohort} --caches {caches} --predictions {predictions} --split test --out {maps}")
    print(heatmap(run, cohort, caches, maps, predictions=predictions, split="test").summary)
    _say(f"localise {predictions} {cohort} --caches {caches} --val {validation} --out {truth}")
    print(localise(predictions, cohort, truth, caches=caches, val=validation).summary)
    _say(f"faithfulness {run} {cohort} --caches {caches} --out {truth}")
    print(faithfulness(run, cohort, caches, truth).summary)
    _say(f"atlas {run} --caches {caches} --out {atlas_out}")
    print(atlas(run, caches, atlas_out).summary)
    about = f"--val {validation} --heatmaps {maps} --truth {truth} --atlas {atlas_out}"
    _say(f"evaluate {predictions} --out {report} {about}")
    print(evaluate(predictions, report, val=validation, heatmaps=maps, truth=truth, atlas=atlas_out).summary)

    found = _compare(cohort, caches, predictions)
    print(f"\n{'on the test slides':<48} {'dbps':>6} {'colour only':>12}")
    print(f"{'slide AUROC':<48} {found.slide_auroc:>6.3f} {found.colour_slide_auroc:>12.3f}")
    name = f"attention on the lesion, mean patch AUROC of {found.num_positive}"
    print(f"{name:<48} {found.patch_auroc:>6.3f} {found.colour_patch_auroc:>12.3f}")
    print(f"\nreport    {report / 'report.html'}\nheatmaps  {maps}\n{time.monotonic() - start:.0f} s in all")


def _say(line: str) -> None:
    print(f"\n$ wsi-dbps {line}", flush=True)


@dataclass(frozen=True)
class Comparison:
    """The model beside what colour alone tells, on the test slides."""

    slide_auroc: float
    colour_slide_auroc: float
    patch_auroc: float
    """Mean over positive slides of the AUROC of attention against the known lesion."""
    colour_patch_auroc: float
    num_positive: int


def _compare(manifest: Path, caches: Path, folder: Path) -> Comparison:
    import numpy as np
    from sklearn.metrics import roc_auc_score

    from wsi_dbps.cohort.annotations import lesion_shares, read_lesion
    from wsi_dbps.cohort.manifest import read_manifest
    from wsi_dbps.explain.colour_baseline import ColourBaseline, patch_colours
    from wsi_dbps.explain.localisation import patch_auroc
    from wsi_dbps.formats.attention import attention_path, read_attention
    from wsi_dbps.formats.patch_cache import PatchCache
    from wsi_dbps.formats.predictions import read_predicted

    cohort = read_manifest(manifest)
    positive = cohort.classes[1]

    def colours(part: Cohort) -> Mapping[str, np.ndarray]:
        return {r.slide_id: patch_colours(PatchCache(caches / f"{r.slide_id}.h5")) for r in part.records}

    training = cohort.part("train")
    baseline = ColourBaseline.fit(
        list(colours(training).values()), [record.label == positive for record in training.records]
    )
    test, probability = colours(cohort.part("test")), {}
    for row in read_predicted(folder).slides:
        probability[row.slide_id] = row.probabilities[1]
    records = [record for record in cohort.part("test").records if record.slide_id in probability]
    truth = [record.label == positive for record in records]

    def of(record: SlideRecord) -> tuple[float | None, float | None]:
        attention = read_attention(attention_path(folder, record.slide_id))
        lesion = read_lesion(record, PatchCache(caches / f"{record.slide_id}.h5").slide_lv0)
        share_N = lesion_shares(lesion, attention.coords_N2, attention.tile_lv0)
        scores_N = baseline.patch_scores(test[record.slide_id])
        return patch_auroc(attention.weights_N, share_N), patch_auroc(scores_N, share_N)

    located = [pair for r, known in zip(records, truth, strict=True) if known and None not in (pair := of(r))]
    attention, colour = np.mean(np.array(located, np.float64).reshape(-1, 2), axis=0)
    return Comparison(
        slide_auroc=float(roc_auc_score(truth, [probability[r.slide_id] for r in records])),
        colour_slide_auroc=float(roc_auc_score(truth, [baseline.slide_score(test[r.slide_id]) for r in records])),
        patch_auroc=float(attention),
        colour_patch_auroc=float(colour),
        num_positive=len(located),
    )
