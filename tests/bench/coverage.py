"""How often do the 95 % intervals hold the true value?

    python tests/bench/coverage.py [--cohorts 2000] [--bootstrap 2000]

Cohorts of two classes are drawn whose log odds are normal (binormal), so that the AUROC is known; the other scores'
true values are those of a cohort of two million cases. Beside what is shipped (BCa; DeLong on log odds; of average
precision the jackknife on log odds; by formula where a cohort shows no error) stand: of average precision, BCa; of the
AUROC, the percentiles of the very same samples and DeLong's plain interval, as R's pROC gives it; of the expected
calibration error, which is shipped without interval, those that it could have.
"""

import argparse
from collections import Counter

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from wsi_dbps.metrics.bootstrap import (
    Estimate,
    _computed,
    _drawn,
    _jackknife_variance,
    _left_out,
    bca_interval,
    log_odds_interval,
)
from wsi_dbps.metrics.delong import auroc_covariance
from wsi_dbps.metrics.metrics import MetricsConfig
from wsi_dbps.metrics.perfect import with_bounds
from wsi_dbps.metrics.scores import Rows, Score, scores_of

SIZES = (15, 30, 100)
AUROCS = (0.8, 0.9)


def cohort(random: np.random.Generator, per_class: int, auroc: float) -> Rows:
    """As many cases of either class; probabilities that are calibrated but for a factor of the log odds."""
    label = np.repeat([0, 1], per_class)
    shift = np.sqrt(2) * norm.ppf(auroc)
    p = expit(0.7 * shift * (random.normal(size=2 * per_class) + shift * (label - 0.5)))
    return Rows(label, np.stack([1 - p, p], 1), (p > 0.5).astype(np.intp), np.arange(2 * per_class), label)


def intervals(rows: Rows, scores: dict[str, Score], config: MetricsConfig) -> dict[str, tuple[float, float]]:
    """BCa of every score, and what else there could be."""
    compute, label = {name: score.on(rows) for name, score in scores.items()}, rows.case_label_K
    value = {name: float(of(np.ones((1, len(label))))[0]) for name, of in compute.items()}
    drawn = _computed(compute, _drawn(label, config, len(label)), rows.case_N)
    left_out = _computed(compute, _left_out(len(label), len(label)), rows.case_N)
    ends = {name: bca_interval(value[name], drawn[name], left_out[name], label, 0.95) for name in compute}
    ends["auprc, BCa"] = ends["auprc"]
    ends["auprc"] = (
        log_odds_interval(value["auprc"], _jackknife_variance(left_out["auprc"], label), 0.95) or ends["auprc"]
    )
    without = {name: Estimate(value[name]) for name, (low, high) in ends.items() if name in value and low == high}
    for name, bound in with_bounds(without, label, ("no", "yes"), 0.95).items():
        if bound.low is not None:
            ends[name] = (bound.low, bound.high)
    for name in ("auroc", "ece"):
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        ends[f"{name}, percentiles"] = (low, high)
    ends["ece, basic"] = (max(0, 2 * value["ece"] - high), 2 * value["ece"] - low)
    (found,), ((variance,),) = auroc_covariance(rows.probability_NC[None, :, 1], label == 1)
    half = norm.ppf(0.975) * np.sqrt(variance)
    ends["auroc, DeLong"] = log_odds_interval(found, variance, 0.95) or (found, found)
    ends["auroc, DeLong plain"] = (max(0, found - half), min(1, found + half))
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=2000)
    parser.add_argument("--bootstrap", type=int, default=2000)
    args = parser.parse_args()
    scores = scores_of(("no", "yes"), 10)
    random = np.random.default_rng(0)
    for auroc in AUROCS:
        large = cohort(random, 1_000_000, auroc)
        once = np.ones((1, 2_000_000))
        true = {name: float(score.compute(once, large)[0]) for name, score in scores.items()} | {"auroc": auroc}
        for per_class in SIZES:
            covered: Counter[str] = Counter()
            for _ in range(args.cohorts):
                rows, seed = cohort(random, per_class, auroc), int(random.integers(2**31))
                ends = intervals(rows, scores, MetricsConfig(num_bootstrap=args.bootstrap, seed=seed))
                for name, (low, high) in ends.items():
                    covered[name] += low - 1e-12 <= true[name.partition(",")[0]] <= high + 1e-12
            shares = "  ".join(f"{name}: {hits / args.cohorts:.1%}" for name, hits in sorted(covered.items()))
            print(f"{per_class} + {per_class} cases, AUROC {auroc}:  {shares}", flush=True)


if __name__ == "__main__":
    main()
