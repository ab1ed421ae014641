"""Predictions become metrics, as objects and in metrics.json, and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from wsi_dbps.cohort.given import Columns, as_cohort
from wsi_dbps.core.errors import ConfigError
from wsi_dbps.core.options import options_with, to_stderr
from wsi_dbps.core.settings import build, settings
from wsi_dbps.formats.run_folders import check_same_model, check_truth_of, paths_of, prediction_folders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.formats.predictions import Predictions
    from wsi_dbps.metrics.metrics import Metrics
    from wsi_dbps.report.runs import Leak, RunRecord


@settings
class EvaluateOptions:
    """The options of `evaluate`."""

    val: Annotated[
        tuple[Path, ...],
        "Predictions of validation cases, for threshold and temperature; one for each PRED, in order.",
    ] = ()
    by: Annotated[tuple[str, ...], "Also by the values of this column of the manifest."] = ()
    cohort: Annotated[Path | None, "The manifest that --by looks into."] = None
    columns: Columns = ()
    bootstrap: Annotated[int, "Resamples of the cases for each interval."] = 2000
    seed: Annotated[int, "Random seed for resampling."] = 0
    run: Annotated[tuple[Path, ...], "Run that made the predictions, if it has moved since. May be repeated."] = ()
    heatmaps: Annotated[Path | None, "Folder of `wsi-dbps heatmap`: pictures of the errors."] = None
    truth: Annotated[Path | None, "Folder with localisation.json, faithfulness.json, stability.json, or some."] = None
    atlas: Annotated[Path | None, "Folder of pictures of what was selected in training."] = None


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` found and wrote."""

    metrics: Metrics
    """As metrics.json has them, by case and by slide, with intervals."""
    predictions: Predictions
    """What was evaluated: the test rows, of all folds together."""
    leaks: tuple[Leak, ...]
    """Evaluated cases that a model which predicted them had seen, as far as was checked."""
    folder: Path
    """Holds metrics.json and report.html."""
    failed: int = 0

    @property
    def report(self) -> Path:
        """The page for people; it needs no other file."""
        return self.folder / "report.html"

    @property
    def summary(self) -> str:
        """What the command prints: the headline, and below it what it must not be read without."""
        flaws = self.metrics.flaws
        return "\n".join([f"{headline(self.metrics)}: {self.report}", *([" ".join(flaws)] if flaws else [])])


def evaluate(
    preds: PathLike | Sequence[PathLike],
    out: PathLike | None = None,
    options: EvaluateOptions = EvaluateOptions(),
    *,
    say: Say = to_stderr,  # noqa: ARG001 - every workflow has it
    **changes: Any,
) -> EvaluateResult:
    """Compute metrics of predictions by case and by slide, with intervals, and write a report.

    A folder of `predict --folds all` is taken as its folds. The cases of several folders are pooled, each with a
    threshold of its own.

    Args:
        preds: A folder of predictions, or several.
        out: Folder for metrics.json and report.html; that of the predictions where None.
        options: How, and what else the report shows.
        say: Takes lines of notice.
        changes: Options to change, by name: `val="validation"`.

    Raises:
        PredictionError: If predictions cannot be read, fit neither each other nor their validation, or share cases.
        ManifestError: If the manifest of `by` cannot be used.
        OutputError: If a file cannot be written.
    """
    from wsi_dbps.formats.predict_json import read_predict_json
    from wsi_dbps.formats.predictions import read_predicted
    from wsi_dbps.metrics.metrics import MetricsConfig, evaluate_folds, with_flaws
    from wsi_dbps.metrics.pooling import pool_folds
    from wsi_dbps.metrics.thresholds import parts
    from wsi_dbps.report.facts import facts_of
    from wsi_dbps.report.runs import find_leaks

    options, given = options_with(options, changes), paths_of(preds)
    if len(given) > 1 and out is None:
        raise ConfigError("several folders of predictions: say with --out where the report goes")
    folders, val = _checked_folders(given, options)
    config = build(MetricsConfig, {"num_bootstrap": options.bootstrap, "seed": options.seed}, "evaluate")
    folds = dict(zip(_names(folders), map(read_predicted, folders), strict=True))
    validation = dict(zip(folds, map(read_predicted, val), strict=False))
    tested = {name: parts(fold, None)[0] for name, fold in folds.items()}  # one fold's val cases are another's test
    evaluated = pool_folds(tested)
    metrics = evaluate_folds(folds, config, validation=validation, subgroups=_subgroups(evaluated, options))
    runs, why_none = _runs(folders, tested, options.run)
    leaks = find_leaks(evaluated, runs)
    failed = [line for pred in folders for line in read_predict_json(pred).failed]
    metrics = with_flaws(metrics, failed=failed, leaked=(leak.case_id for leak in leaks))
    found = EvaluateResult(metrics, evaluated, leaks, Path(given[0] if out is None else out))
    facts = facts_of(folders)
    if why_none:
        facts |= {"Leak check": f"{'in part' if runs else 'not made'}: {why_none}"}
    title = ", ".join(pred.resolve().name for pred in given)
    fold_of_case = {row.case_id: name for name, fold in tested.items() for row in fold.cases}
    _write(found, options, title=title, facts=facts, runs=runs, fold_of_case=fold_of_case)
    return found


def _write(found: EvaluateResult, options: EvaluateOptions, **about: Any) -> None:
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.report.report import write_metrics, write_report

    with output_folder(found.folder, "evaluate", ("metrics.json", "report.html")):
        write_metrics(found.metrics, found.folder / "metrics.json")
        write_report(
            found.report,
            found.predictions,
            found.metrics,
            heatmaps=options.heatmaps,
            truth=options.truth,
            atlas=options.atlas,
            **about,
        )


def _checked_folders(given: Sequence[Path], options: EvaluateOptions) -> tuple[list[Path], list[Path]]:
    """The folders of predictions and of their validation, folds in place of what holds them."""
    preds, val = prediction_folders(given), prediction_folders(options.val)
    if val and len(val) != len(preds):
        raise ConfigError(f"--val is given {len(val)} times for {len(preds)} folders of predictions; give one for each")
    if bool(options.by) != (options.cohort is not None):
        raise ConfigError("--by and --cohort go together: the column, and the manifest that has it")
    for pred, own in zip(preds, val, strict=False):
        check_same_model(pred, own)
    if options.truth is not None:
        check_truth_of(options.truth, preds)
    return preds, val


def _names(preds: Sequence[Path]) -> list[str]:
    """What each fold is called: its folder, or the path as given where folders have the same name."""
    names = [pred.resolve().name for pred in preds]
    names = names if len(set(names)) == len(names) else [pred.as_posix() for pred in preds]
    if len(set(names)) < len(names):
        raise ConfigError(f"a folder of predictions is given twice: {', '.join(names)}")
    return names


def _runs(
    preds: Sequence[Path], folds: Mapping[str, Predictions], given: Sequence[Path]
) -> tuple[tuple[RunRecord, ...], str]:
    """The runs behind all predictions; and why some are not there, if so."""
    from wsi_dbps.report.runs import runs_behind

    cases = [{row.case_id for row in fold.cases} for fold in folds.values()]
    found = [runs_behind(pred, of, given) for pred, of in zip(preds, cases, strict=True)]
    reasons = dict.fromkeys(why for _, why in found if why)
    return tuple(record for records, _ in found for record in records), "; ".join(reasons)


def _subgroups(predictions: Predictions, options: EvaluateOptions) -> dict[str, dict[str, str]] | None:
    from wsi_dbps.metrics.subgroups import values_of_cases

    if options.cohort is None:
        return None
    whole = as_cohort(options.cohort, options.columns)
    return {column: values_of_cases(predictions, whole, column) for column in options.by}


def headline(metrics: Metrics) -> str:
    """The case-level AUROC with its interval, or why there is none."""
    cases = metrics.cases
    if (auroc := cases.scores.get("auroc")) is None:
        return f"{cases.num} labelled cases, no AUROC ({cases.reasons['auroc']})"
    interval = "" if auroc.low is None else f" ({auroc.low:.3f} to {auroc.high:.3f})"
    return f"AUROC {auroc.value:.3f}{interval} over {cases.num} cases"
