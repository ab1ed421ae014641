"""Presets on equal terms: the same cohort, splits, budget and seeds, beside what colour alone tells.

    python tests/bench/presets.py COHORT.csv --caches CACHES --config run.toml --out RUNS --seed 0 1 2

Runs that are there are kept. Prints, per preset, the test AUROC of each seed and of the seeds' mean probability, with
its bootstrap interval by case; and, where lesions are known (GeoJSON beside each positive slide), the patch AUROC of
attention.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from wsi_dbps.cohort.cohort import Cohort
from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.config import read_toml
from wsi_dbps.evaluation.colour_baseline import ColourBaseline, patch_colours
from wsi_dbps.evaluation.localisation import patch_auroc
from wsi_dbps.evaluation.metrics import Estimate, evaluate
from wsi_dbps.evaluation.pooling import pool_cases
from wsi_dbps.evaluation.predict import attention_path, predict
from wsi_dbps.patches.cache import PatchCache
from wsi_dbps.records import Prediction, Predictions, read_attention, read_predictions
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.config import build_run_config
from wsi_dbps.training.loop import train


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--caches", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", nargs="+", default=["dbps", "ips", "random"])
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    cohort = read_manifest(options.cohort, need_label=True)
    for seed in options.seed:
        for preset in options.preset:
            one_run(cohort, options.caches, options.config, options.out / f"{preset}_{seed}", preset, seed)
    report(cohort, options.caches, options.out, options.preset, options.seed)


def one_run(cohort: Cohort, caches: Path, config: Path, out: Path, preset: str, seed: int) -> None:
    """Train and predict, unless it is there."""
    if (out / "pred" / "predictions.csv").exists():
        return
    tables = read_toml(config)
    tables["selection"] = {k: v for k, v in tables["selection"].items() if preset == "dbps" or k != "num_subsalient"}
    tables["selection"]["preset"] = preset
    tables["training"]["seed"] = seed
    start = time.monotonic()
    result = train(cohort, caches, out, build_run_config(tables, str(config)), resume=(out / "run.json").exists())
    predict(load_checkpoint(result.checkpoint), cohort.part("test"), caches, out / "pred")
    print(f"{preset} seed {seed}: {time.monotonic() - start:.0f} s, best epoch {result.best}", flush=True)


def report(cohort: Cohort, caches: Path, out: Path, presets: list[str], seeds: list[int]) -> None:
    """Print the table."""
    print(f"\n{'':<12} {'AUROC per seed':<24} {'mean of seeds':>14} {'95 % interval':>18} {'on the lesion':>14}")
    for preset in presets:
        runs = [read_predictions(out / f"{preset}_{seed}" / "pred" / "predictions.csv") for seed in seeds]
        each = [auroc(run).value for run in runs]
        mean = auroc(Predictions(runs[0].classes, mean_of(runs), pool_cases(mean_of(runs), runs[0].classes)))
        located = [located_auroc(cohort, out / f"{preset}_{seed}" / "pred") for seed in seeds]
        row(preset, each, mean, np.mean([v for v in located if v is not None] or [np.nan]))
    estimate, located_by_colour = colour_only(cohort, caches)
    row("colour only", [estimate.value], estimate, located_by_colour)


def row(name: str, each: list[float], mean: Estimate, located: float) -> None:
    """Print one row."""
    seeds = " ".join(f"{value:.3f}" for value in each)
    print(f"{name:<12} {seeds:<24} {mean.value:>14.3f} {f'{mean.low:.3f} to {mean.high:.3f}':>18} {located:>14.3f}")


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


def lesion_share(record_path: Path, coords_N2: np.ndarray, tile_lv0: float) -> np.ndarray | None:
    """Share of each tile in the lesion drawn beside the slide; None where there is none."""
    from wsi_dbps.synth.cohort import lesion_share

    outline = record_path.with_suffix(".geojson")
    return lesion_share(outline, coords_N2, tile_lv0) if outline.exists() else None


def located_auroc(cohort: Cohort, folder: Path) -> float | None:
    """Mean over positive test slides of the patch AUROC of attention."""
    found = []
    for record in cohort.part("test").records:
        attention = read_attention(attention_path(folder, record.slide_id))
        share_N = lesion_share(record.path, attention.coords_N2, attention.tile_lv0)
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
        share_N = lesion_share(record.path, cache.coords_N2, cache.tile_lv0)
        if share_N is not None and (value := patch_auroc(model.patch_scores(colours_N6), share_N)) is not None:
            located.append(value)
    predictions = Predictions(cohort.classes, tuple(rows), pool_cases(rows, cohort.classes))
    return auroc(predictions), float(np.mean(located)) if located else float("nan")


if __name__ == "__main__":
    main()
