"""Do heatmaps show what predictions depend on? Deletion and insertion of top patches, and how far chance moves them.

Deletion takes the patches of highest score away and asks how fast the probability of the class predicted from the whole
slide falls; insertion starts from them alone and asks how fast it rises. Both beside the same with patches in random
order. Source: V. Petsiuk et al., "RISE", BMVC 2018 (deletion and insertion), on patches in place of pixels; patches are
encoded one by one, so that a slide is encoded once and classified again for every share.

F: shares of the patches, N: patches, R: attention rows, C: classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch

from wsi_dbps.cohort.each_slide import each_slide
from wsi_dbps.core.errors import PredictionError
from wsi_dbps.core.files import write_json
from wsi_dbps.core.output_folder import output_folder
from wsi_dbps.core.settings import settings
from wsi_dbps.inference.member import slide_draws
from wsi_dbps.inference.predictor import Predictor, check_same_patches
from wsi_dbps.metrics.bootstrap import TWO_CASES, MetricsConfig, mean_estimate
from wsi_dbps.models.spill import EmbeddingSpill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.inference.member import Member
    from wsi_dbps.training.checkpoint import Checkpoint

FRACTIONS: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the patches that are deleted, or inserted: at insertion 0 a single patch is there."""


@settings
class FaithfulnessConfig:
    """How heatmaps are put to the test."""

    score: Literal["attention", "evidence"] = "attention"
    """What ranks the patches: attention weights, or the evidence for the class that was predicted, less the mean of the
    others'."""
    num_random: int = 5
    """Random orders that the curves are held against."""
    drop: float = 0.5
    """Share of the patches that each drop seed takes away."""
    num_seeds: int = 5
    """Drop seeds."""
    num_bootstrap: int = 2000
    """Samples of cases behind each interval."""
    seed: int = 0
    """Of all that is random."""

    def __post_init__(self) -> None:
        if not 0 < self.drop < 1 or min(self.num_random, self.num_bootstrap, self.num_seeds - 1, self.seed + 1) < 1:
            raise ValueError(
                "drop lies between 0 and 1, num_random and num_bootstrap are at least 1, num_seeds 2, seed 0"
            )


@dataclass(frozen=True)
class SlideFaithfulness:
    """What was found on one slide, the mean of the runs."""

    slide_id: str
    case_id: str
    deletion_F: npt.NDArray[np.float64]
    """Probability of the predicted class without the top share of the patches."""
    deletion_random_F: npt.NDArray[np.float64]
    insertion_F: npt.NDArray[np.float64]
    """With the top share alone."""
    insertion_random_F: npt.NDArray[np.float64]
    probability_sd: float
    """Standard deviation over the drop seeds of the predicted class's probability."""
    flipped: float
    """Share of the drop seeds under which another class is predicted."""
    salient_overlap: float | None
    """Mean Jaccard index of the salient patches of two drop seeds, among the patches that both left; None where they
    never left the same."""
    runs_rank_correlation: float | None
    """Mean Spearman correlation of the scores of two runs; None for one run, or fewer than three patches."""

    @property
    def deletion_area(self) -> float:
        """Mean over the shares by which random order stays above: the larger, the truer."""
        return _area(self.deletion_random_F - self.deletion_F)

    @property
    def insertion_area(self) -> float:
        """Mean over the shares by which the top order is above random."""
        return _area(self.insertion_F - self.insertion_random_F)


def _area(difference_F: npt.NDArray[np.float64]) -> float:
    from scipy.integrate import trapezoid

    return float(trapezoid(difference_F, FRACTIONS) / (FRACTIONS[-1] - FRACTIONS[0]))


@dataclass(frozen=True)
class Faithfulness:
    """What was found on a cohort."""

    slides: tuple[SlideFaithfulness, ...]
    failed: tuple[str, ...]
    """One line for each slide that could not be tested, beginning with its id."""
    numbers: dict[str, Any]
    """The content of faithfulness.json."""
    stability: dict[str, Any]
    """The content of stability.json."""


def measure_faithfulness(
    checkpoints: Sequence[Checkpoint],
    cohort: Cohort,
    caches: Path,
    out: Path,
    config: FaithfulnessConfig | None = None,
    *,
    device: str = "auto",
) -> Faithfulness:
    """Put the heatmaps of one run, or of several, to the test, and write faithfulness.json and stability.json.

    Raises:
        PredictionError: If there is no slide, or no slide could be tested, or the runs' classes differ.
        OutputError: If a file cannot be written.
    """
    config = config or FaithfulnessConfig()
    if not len(cohort):
        raise PredictionError("no slide to test heatmaps on: the cohort, or the split asked for, is empty")
    found: list[SlideFaithfulness] = []
    with (
        output_folder(out, "faithfulness", ("faithfulness.json", "stability.json")),
        Predictor(checkpoints, caches, device=device) as predictor,
    ):
        failed = each_slide(
            "testing heatmaps", cohort.records, lambda record: found.append(_slide(predictor, record, config))
        )
        if not found:
            raise PredictionError(f"no heatmap could be tested; {failed[0]}")
        made = {
            "runs": [str(checkpoint.path.resolve()) for checkpoint in checkpoints],
            "checkpoint_fingerprint": predictor.fingerprint,
            "failed": list(failed),
        }
        numbers = faithfulness_json(found, config) | made
        stability = stability_json(found, config, len(checkpoints)) | made
        write_json(out / "faithfulness.json", numbers)
        write_json(out / "stability.json", stability)
    return Faithfulness(tuple(found), failed, numbers, stability)


def _slide(predictor: Predictor, record: SlideRecord, config: FaithfulnessConfig) -> SlideFaithfulness:
    check_same_patches(record.slide_id, [member.cache(record).grid for member in predictor.members])
    members = [_member(member, record, config) for member in predictor.members]
    deletion_F, deletion_random_F, insertion_F, insertion_random_F = np.mean([m.curves_4F for m in members], axis=0)
    overlaps = [member.salient_overlap for member in members if member.salient_overlap is not None]
    return SlideFaithfulness(
        record.slide_id,
        record.case_id,
        deletion_F,
        deletion_random_F,
        insertion_F,
        insertion_random_F,
        probability_sd=float(np.mean([member.probability_sd for member in members])),
        flipped=float(np.mean([member.flipped for member in members])),
        salient_overlap=float(np.mean(overlaps)) if overlaps else None,
        runs_rank_correlation=_mean_correlation([member.score_N for member in members]),
    )


@dataclass(frozen=True)
class _OneRun:
    score_N: npt.NDArray[np.float64]
    curves_4F: npt.NDArray[np.float64]
    probability_sd: float
    flipped: float
    salient_overlap: float | None


def _member(member: Member, record: SlideRecord, config: FaithfulnessConfig) -> _OneRun:
    bag, model = member.bag(record), member.model
    random = np.random.default_rng([config.seed, *record.slide_id.encode()])
    with EmbeddingSpill(model.encoder.dim) as spill:
        output = model.explained(bag, slide_draws(record), spill)
        member.check_finite(output.logits_C)
        predicted = int(output.logits_C.argmax())

        def classified(ids: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.float64], set[int]]:
            kept = torch.from_numpy(np.sort(ids))
            logits_C, selection = model.classify(spill, output.attention_RN, kept, slide_draws(record))
            return logits_C.double().softmax(dim=0).numpy(), set(selection.salient_M.tolist())

        def probability(ids: npt.NDArray[np.intp]) -> float:
            return float(classified(ids)[0][predicted])

        num = bag.num_patches
        score_N = _score(output.weights_N, output.evidence_NC, predicted, config.score)
        orders = [np.argsort(-score_N, kind="stable"), *(random.permutation(num) for _ in range(config.num_random))]
        curves = np.array([[_deleted(probability, order), _inserted(probability, order)] for order in orders])
        kept = [np.flatnonzero(random.random(num) >= config.drop) for _ in range(config.num_seeds)]
        kept = [ids if len(ids) else np.array([random.integers(num)]) for ids in kept]
        drops = [(set(ids.tolist()), *classified(ids)) for ids in kept]
    chances = [probabilities[predicted] for _, probabilities, _ in drops]
    pairs = [_jaccard(a[2] & b[0], b[2] & a[0]) for a, b in combinations(drops, 2)]
    known = [value for value in pairs if value is not None]
    random_2F = curves[1:].mean(axis=0)
    return _OneRun(
        score_N,
        np.stack([curves[0, 0], random_2F[0], curves[0, 1], random_2F[1]]),
        float(np.std(chances)),
        float(np.mean([probabilities.argmax() != predicted for _, probabilities, _ in drops])),
        float(np.mean(known)) if known else None,
    )


def _score(weights_N: torch.Tensor, evidence_NC: torch.Tensor, predicted: int, kind: str) -> npt.NDArray[np.float64]:
    if kind == "attention":
        return weights_N.double().numpy()
    others = [c for c in range(evidence_NC.shape[1]) if c != predicted]
    return (evidence_NC[:, predicted] - evidence_NC[:, others].mean(dim=1)).double().numpy()


def _deleted(probability: Callable[[npt.NDArray[np.intp]], float], order: npt.NDArray[np.intp]) -> list[float]:
    """At each share: without so many of the first, one patch staying at least."""
    return [probability(order[min(round(share * len(order)), len(order) - 1) :]) for share in FRACTIONS]


def _inserted(probability: Callable[[npt.NDArray[np.intp]], float], order: npt.NDArray[np.intp]) -> list[float]:
    """At each share: so many of the first alone, one at least."""
    return [probability(order[: max(round(share * len(order)), 1)]) for share in FRACTIONS]


def _jaccard(a: set[int], b: set[int]) -> float | None:
    return len(a & b) / len(a | b) if a | b else None


def _mean_correlation(scores: Sequence[npt.NDArray[np.float64]]) -> float | None:
    from scipy.stats import spearmanr

    if len(scores) < 2 or len(scores[0]) < 3 or any(np.ptp(score_N) == 0 for score_N in scores):
        return None
    return float(np.mean([spearmanr(a, b).statistic for a, b in combinations(scores, 2)]))


# ---- what is written


def faithfulness_json(found: Sequence[SlideFaithfulness], config: FaithfulnessConfig) -> dict[str, Any]:
    """Curves, means over the slides, and the areas between with intervals by case."""

    def curves(name: str) -> dict[str, Any]:
        return {
            "fractions": list(FRACTIONS),
            "top": np.mean([getattr(slide, f"{name}_F") for slide in found], axis=0).tolist(),
            "random": np.mean([getattr(slide, f"{name}_random_F") for slide in found], axis=0).tolist(),
            "area": _estimate(found, [getattr(slide, f"{name}_area") for slide in found], config),
        }

    both = {"deletion": curves("deletion"), "insertion": curves("insertion")}
    return {
        "format": "wsi-dbps faithfulness",
        "format_version": 1,
        "score": config.score,
        "num_random": config.num_random,
        "num_slides": len(found),
        **both,
        "slides": [
            {"slide_id": s.slide_id, "deletion_area": s.deletion_area, "insertion_area": s.insertion_area}
            for s in found
        ],
        "reasons": _no_intervals({name: part["area"] for name, part in both.items()}),
    }


def stability_json(found: Sequence[SlideFaithfulness], config: FaithfulnessConfig, num_runs: int) -> dict[str, Any]:
    """How far drop seeds, and runs, move predictions and scores."""
    reasons: dict[str, str] = {}
    values: dict[str, dict[str, float]] = {}
    for name in ("probability_sd", "flipped", "salient_overlap", "runs_rank_correlation"):
        known = [slide for slide in found if getattr(slide, name) is not None]
        if known:
            values[name] = _estimate(known, [getattr(slide, name) for slide in known], config)
        elif name == "runs_rank_correlation" and num_runs < 2:
            reasons[name] = "a single run; give several to compare their scores"
        else:
            reasons[name] = "no slide has patches enough"
    return {
        "format": "wsi-dbps stability",
        "format_version": 1,
        "score": config.score,
        "drop": config.drop,
        "num_seeds": config.num_seeds,
        "num_runs": num_runs,
        "num_slides": len(found),
        **values,
        "reasons": reasons | _no_intervals(values),
    }


def _no_intervals(estimates: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    lacking = [name for name, estimate in estimates.items() if "low" not in estimate]
    return {"intervals": f"{', '.join(lacking)}: {TWO_CASES}"} if lacking else {}


def _estimate(
    found: Sequence[SlideFaithfulness], values: Sequence[float], config: FaithfulnessConfig
) -> dict[str, float]:
    how = MetricsConfig(num_bootstrap=config.num_bootstrap, seed=config.seed)
    return mean_estimate(values, [slide.case_id for slide in found], how).to_dict()
