"""How well heatmaps agree with what a person has drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from wsi_dbps.cohort.given import Columns, as_cohort, cohort_name
from wsi_dbps.core.options import options_with, to_stderr
from wsi_dbps.core.settings import build, settings
from wsi_dbps.formats.run_folders import check_same_model, one_fold

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.explain.localisation import Located, LocatedSlide
    from wsi_dbps.formats.predictions import Predictions

Score = Literal["attention", "evidence"]
"""What a tile is scored by: attention weights, or attribution (called evidence)."""


@settings
class LocaliseOptions:
    """The options of `localise`."""

    score: Annotated[Score, "What a tile is scored by."] = "attention"
    caches: Annotated[Path | None, "Caches or features, for size and mpp of the slides, which are then not opened."] = (
        None
    )
    val: Annotated[Path | None, "Predictions of validation slides, on which the threshold of Dice is chosen."] = None
    lesion: Annotated[tuple[str, ...], "Only areas of this class. May be repeated."] = ()
    bootstrap: Annotated[int, "Resamples of the cases for each interval."] = 2000
    seed: Annotated[int, "Random seed for resampling."] = 0
    columns: Columns = ()


@dataclass(frozen=True)
class LocaliseResult:
    """What `localise` found and wrote."""

    numbers: Mapping[str, Any]
    """The content of localisation.json: `patch_auroc`, `dice`, `froc` with intervals, each slide's, and `reasons`."""
    slides: tuple[LocatedSlide, ...]
    """The score and the share of lesion of each tile, by slide."""
    failed: tuple[str, ...]
    """One line for each slide that could not be measured, beginning with its id."""
    path: Path
    """localisation.json."""

    @property
    def summary(self) -> str:
        """What the command prints: the numbers, and below them what does not exist and why."""
        return "\n".join(_lines(self))


def localise(
    pred: PathLike,
    cohort: Cohort | PathLike,
    out: PathLike | None = None,
    options: LocaliseOptions = LocaliseOptions(),
    *,
    say: Say = to_stderr,  # noqa: ARG001 - every workflow has it
    **changes: Any,
) -> LocaliseResult:
    """Measure how well heatmaps agree with annotations: patch AUROC, Dice, and FROC by the rule of CAMELYON16.

    The cohort's `annotations` name what was drawn; slides of the first class need none. A slide whose attention or
    annotations cannot be used is named in `failed`, and the others go on.

    Args:
        pred: Folder of predictions, with the attention of every slide.
        cohort: A cohort, or the path of a manifest.
        out: Folder for localisation.json; that of the predictions where None.
        options: What tiles are scored by, and how.
        say: Takes lines of notice.
        changes: Options to change, by name: `caches="caches"`.

    Raises:
        PredictionError: If nothing is annotated, or no annotated slide can be used, or validation shares a case.
        ConfigError: If `pred` holds the predictions of several folds.
        OutputError: If the file cannot be written.
    """
    from wsi_dbps.core.errors import PredictionError
    from wsi_dbps.core.files import write_json
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.explain.localisation import summarise
    from wsi_dbps.formats.predictions import read_predicted
    from wsi_dbps.metrics.bootstrap import MetricsConfig

    options = options_with(options, changes)
    config = build(MetricsConfig, {"num_bootstrap": options.bootstrap, "seed": options.seed}, "localise")
    pred = one_fold(pred)
    whole = as_cohort(cohort, options.columns)
    if not any(record.annotations for record in whole.records):
        raise PredictionError(
            f"{cohort_name(cohort)}: no slide has annotations; name their files in a column annotations"
        )
    if options.val:
        check_same_model(pred, options.val)
    predicted = read_predicted(pred)
    located, validation, percentile = _located(pred, predicted, whole, options)
    numbers = summarise(located.slides, located.unknown, options.score, percentile=percentile, config=config)
    failed = located.failed + (validation.failed if validation else ())
    numbers = numbers | _about(pred, failed) | {"reasons": numbers["reasons"] | _reasons(pred, predicted, failed)}
    path = Path(out or pred) / "localisation.json"
    with output_folder(path.parent, "localise", (path.name,)):
        write_json(path, numbers)
    return LocaliseResult(numbers, located.slides, failed, path)


def _located(
    pred: Path, predicted: Predictions, cohort: Cohort, options: LocaliseOptions
) -> tuple[Located, Located | None, float | None]:
    """The slides to measure, those of validation, and the percentile for Dice that was chosen on them."""
    from wsi_dbps.core.errors import PredictionError
    from wsi_dbps.explain.localisation import best_percentile, locate_slides
    from wsi_dbps.formats.predictions import read_predicted
    from wsi_dbps.metrics.thresholds import check_validation, parts

    val = options.val
    evaluated, validation = parts(predicted, read_predicted(val) if val else None)

    def located(rows: Predictions, folder: Path) -> Located:
        return locate_slides(rows, folder, cohort, options.score, options.lesion, caches=options.caches)

    measured = located(evaluated, pred)
    if validation is None:
        return measured, None, None
    check_validation(evaluated, validation)
    chosen_on = located(validation, val or pred)
    percentile = best_percentile(chosen_on.slides)
    if percentile is None and val is not None:
        raise PredictionError(f"{val}: no slide has annotated lesion, so no threshold can be chosen on them")
    return measured, chosen_on, percentile


def _about(pred: Path, failed: tuple[str, ...]) -> dict[str, Any]:
    """Keys of localisation.json that are there where there is something to say."""
    from wsi_dbps.formats.predict_json import read_predict_json

    about: dict[str, Any] = {}
    if failed:
        about["failed"] = list(failed)
    if model := read_predict_json(pred).checkpoint_fingerprint:
        about["checkpoint_fingerprint"] = model
    return about


def _reasons(pred: Path, predicted: Predictions, failed: tuple[str, ...]) -> dict[str, str]:
    """Which predicted slides are missing from the numbers, and why."""
    from wsi_dbps.formats.predict_json import read_predict_json
    from wsi_dbps.metrics.thresholds import parts

    reasons = {}
    if left_out := len(predicted.slides) - len(parts(predicted, None)[0].slides):
        reasons["splits"] = f"{left_out} predicted slides are not of split test and are left out"
    if unpredicted := read_predict_json(pred).failed:
        reasons["failed"] = f"{len(unpredicted)} slides could not be predicted and are missing; see predict.json"
    if failed:
        reasons["unusable"] = f"{len(failed)} slides could not be measured and are missing: {'; '.join(failed)}"
    return reasons


# ---- what is printed


def _lines(result: LocaliseResult) -> Iterator[str]:
    found = result.numbers
    said = [
        f"{name} {_estimate(found[key], value)}"
        for key, value, name in (
            ("patch_auroc", "value", "patch AUROC"),
            ("dice", "value", "Dice"),
            ("froc", "score", "FROC"),
        )
        if key in found
    ]
    yield f"{', '.join(said) or 'nothing to measure'} over {len(result.slides)} slides: {result.path}"
    for reason in found["reasons"].values():
        yield f"  {reason}"


def _estimate(found: Mapping[str, float], value: str) -> str:
    interval = f" ({_share(found['low'])} to {_share(found['high'])})" if "low" in found else ""
    return f"{_share(found[value])}{interval}"


def _share(value: float) -> str:
    """Three digits; what is below 1 is not rounded up to certainty."""
    return "above 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"
