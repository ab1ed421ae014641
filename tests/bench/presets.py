"""The family on equal terms: the same cohort, splits, budget and seeds, beside what colour alone tells.

    python tests/bench/presets.py COHORT.csv --caches CACHES --config run.toml --out RUNS --seed 0 1 2 --lr 1e-4 3e-4

Runs that are there are kept. Each variant is trained at every learning rate with the first seed, and with the other
seeds at the rate whose best epoch did best on validation. Prints, per variant, the test AUROC of each seed and of the
seeds' mean probability, with its bootstrap interval by case; and, where lesions are known (GeoJSON beside each positive
slide), the patch AUROC of attention.
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dbps.cohort.annotations import lesion_shares, read_lesion
from wsi_dbps.cohort.cohort import Cohort, SlideRecord
from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.core.settings import read_toml
from wsi_dbps.explain.colour_baseline import ColourBaseline, patch_colours
from wsi_dbps.explain.localisation import patch_auroc
from wsi_dbps.formats.attention import attention_path, read_attention
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.predictions import Prediction, Predictions, read_predictions
from wsi_dbps.inference.predict import predict
from wsi_dbps.metrics.metrics import Estimate, evaluate
from wsi_dbps.metrics.pooling import pool_cases
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import train
from wsi_dbps.training.settings import build_run_config

VARIANTS: dict[str, dict[str, Any]] = {
    "random": {"selection.preset": "random"},
    "ips": {"selection.preset": "ips"},
    "ips, M + S": {"selection.preset": "ips", "selection.num_salient": "M + S"},
    "dbps": {},
    "dbps concat": {"aggregator.name": "concat"},
    "dbps exact": {"selection.subsalient_grad": "exact"},
    "dbps+": {"selection.preset": "dbps+"},
    "full": {"selection.preset": "full"},
}
"""What each changes in the run's settings; M and S are the settings' own."""
TESTED_WIDE = "ips, tested at M + S"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--caches", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", nargs="+", default=["random", "ips", "dbps"], choices=list(VARIANTS))
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lr", nargs="+", type=float, default=[3e-4], help="of encoder and aggregator alike")
    parser.add_argument("--report-only", action="store_true", help="no new runs; seeds that are not there are left out")
    options = parser.parse_args()
    cohort = read_manifest(options.cohort, need_label=True)
    first, *others = options.seed
    todo = [] if options.report_only else [(first, name, lr) for name in options.variant for lr in options.lr]
    for seed, name, lr in todo:
        one_run(cohort, options.caches, options.config, options.out, name, seed, lr)
    found = {
        name: best_lr([run_folder(options.out, name, first, lr) for lr in options.lr], options.lr)
        for name in options.variant
    }
    print("learning rates:", found, flush=True)
    for seed, name in [] if options.report_only else [(seed, name) for seed in others for name in options.variant]:
        one_run(cohort, options.caches, options.config, options.out, name, seed, found[name])
    report(cohort, options.caches, options.out, found, options.seed)


def best_lr(runs: list[Path], rates: list[float]) -> float:
    """The rate of the run whose best epoch has the highest validation AUROC; of equals the lowest validation loss."""

    def validation(run: Path) -> tuple[float, float]:
        rows = list(csv.DictReader((run / "history.csv").open()))
        return max((float(row["val_auroc"]), -float(row["val_loss"])) for row in rows)

    there = [(validation(run), rate) for run, rate in zip(runs, rates, strict=True) if (run / "history.csv").exists()]
    return max(there)[1]


def one_run(cohort: Cohort, caches: Path, config: Path, runs: Path, name: str, seed: int, lr: float) -> None:
    """Train and predict, unless it is there."""
    out = run_folder(runs, name, seed, lr)
    if (out / "pred" / "predictions.csv").exists():
        return
    tables = read_toml(config) | {}
    wide = tables["selection"]["num_salient"] + tables["selection"]["num_subsalient"]
    for setting, value in VARIANTS[name].items():
        table, _, key = setting.partition(".")
        tables.setdefault(table, {})[key] = wide if value == "M + S" else value
    if tables["selection"].get("preset", "dbps") != "dbps":
        del tables["selection"]["num_subsalient"]  # the preset fixes it
    tables["training"]["seed"] = seed
    tables["optimizer"] = {**tables.get("optimizer", {}), "lr": lr, "encoder_lr": lr}
    start = time.monotonic()
    result = train(cohort, caches, out, build_run_config(tables, str(config)), resume=(out / "run.json").exists())
    seconds, checkpoint = time.monotonic() - start, load_checkpoint(result.checkpoint)
    if name == "ips":
        selection = replace(checkpoint.config.selection, num_salient=wide)
        wider = replace(checkpoint, config=replace(checkpoint.config, selection=selection))
        predict([wider], cohort.part("test"), caches, run_folder(runs, TESTED_WIDE, seed, lr) / "pred")
    predict([checkpoint], cohort.part("test"), caches, out / "pred")
    (out / "seconds.txt").write_text(f"{seconds:.1f}\n")
    print(f"{name} seed {seed} lr {lr:g}: {seconds:.0f} s, best epoch {result.best}", flush=True)


def run_folder(runs: Path, name: str, seed: int, lr: float) -> Path:
    """Where a run lies."""
    return runs / f"{re.sub(r'[^a-z0-9+]+', '_', name.lower())}_{seed}_{lr:g}"


def report(cohort: Cohort, caches: Path, runs: Path, rates: dict[str, float], seeds: list[int]) -> None:
    """Print the table."""
    print("\n| variant | test AUROC, mean of seeds | per seed | of their mean probability | on the lesion | s |")
    print("|---|---|---|---|---|---|")
    for name, lr in [(n, lr) for v, lr in rates.items() for n in ((v, TESTED_WIDE) if v == "ips" else (v,))]:
        folders = [run_folder(runs, name, seed, lr) for seed in seeds]
        folders = [folder for folder in folders if (folder / "pred" / "predictions.csv").exists()]
        found = [read_predictions(folder / "pred" / "predictions.csv") for folder in folders]
        each = [auroc(run).value for run in found]
        mean = auroc(Predictions(found[0].classes, mean_of(found), pool_cases(mean_of(found), found[0].classes)))
        located = [located_auroc(cohort, caches, folder / "pred") for folder in folders]
        taken = [float(f.read_text()) for folder in folders if (f := folder / "seconds.txt").exists()]
        seconds = f"{np.median(taken):.0f}" if taken else ""
        row(name, each, mean, float(np.mean([v for v in located if v is not None] or [np.nan])), seconds)
    estimate, located_by_colour = colour_only(cohort, caches)
    row("colour only", [estimate.value], estimate, located_by_colour, "")


def row(name: str, each: list[float], mean: Estimate, located: float, seconds: str) -> None:
    """Print one row."""
    runs = " ".join(f"{value:.3f}" for value in each)
    print(
        f"| {name} | {np.mean(each):.3f} | {runs} | {mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f}) | "
        f"{located:.3f} | {seconds} |"
    )


def auroc(predictions: Predictions) -> Estimate:
    """Case-level AUROC with its interval."""
    return evaluate(predictions).cases.scores["auroc"]


def mean_of(runs: list[Predictions]) -> tuple[Prediction, ...]:
    """Each slide's probabilities averaged over the runs."""
    return tuple(
        Prediction(
            r.slide_id, r.case_id, r.split, r.label, r.num_patches, tuple(np.mean([s.probabilities for s in same], 0))
        )
        for same in zip(*(run.slides for run in runs), strict=True)
        for r in same[:1]
    )


def lesion_share(record: SlideRecord, cache: PatchCache) -> np.ndarray | None:
    """Share of each tile in the lesion drawn on the slide, or beside it; None where there is none."""
    drawn = record.annotations or record.path.with_suffix(".geojson")
    if not drawn.exists():
        return None
    lesion = read_lesion(replace(record, annotations=drawn), cache.grid.slide_lv0)
    return lesion_shares(lesion, cache.grid)


def located_auroc(cohort: Cohort, caches: Path, folder: Path) -> float | None:
    """Mean over positive test slides of the patch AUROC of attention."""
    found = []
    for record in cohort.part("test").records:
        attention = read_attention(attention_path(folder, record.slide_id))
        share_N = lesion_share(record, PatchCache(caches / f"{record.slide_id}.h5"))
        if share_N is not None and (value := patch_auroc(attention.weights_N, share_N)) is not None:
            found.append(value)
    return float(np.mean(found)) if found else None


def colour_only(cohort: Cohort, caches: Path) -> tuple[Estimate, float]:
    """The colour baseline, learnt from the same training slides."""
    positive = cohort.classes[1]

    def colours(part: str) -> list[np.ndarray]:
        return [patch_colours(PatchCache(caches / f"{r.slide_id}.h5")) for r in cohort.part(part).records]

    model = ColourBaseline.fit(colours("train"), [r.label == positive for r in cohort.part("train").records])
    rows, located = [], []
    for record, colours_N6 in zip(cohort.part("test").records, colours("test"), strict=True):
        p = model.slide_score(colours_N6)
        rows.append(Prediction(record.slide_id, record.case_id, "test", record.label, len(colours_N6), (1 - p, p)))
        cache = PatchCache(caches / f"{record.slide_id}.h5")
        share_N = lesion_share(record, cache)
        if share_N is not None and (value := patch_auroc(model.patch_scores(colours_N6), share_N)) is not None:
            located.append(value)
    predictions = Predictions(cohort.classes, tuple(rows), pool_cases(rows, cohort.classes))
    return auroc(predictions), float(np.mean(located)) if located else float("nan")


if __name__ == "__main__":
    main()
