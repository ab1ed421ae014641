"""`wsi-dbps evaluate`: predictions become metrics and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import Columns, check_same_model, check_truth_of, prediction_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wsi_dbps.formats.predict_json import PredictedBy
    from wsi_dbps.formats.predictions import Predictions
    from wsi_dbps.metrics.metrics import Metrics
    from wsi_dbps.report.runs import RunRecord


def command(
    preds: Annotated[
        list[Path],
        typer.Argument(
            metavar="PRED...",
            help="Folder of predictions, as `wsi-dbps predict` wrote it; several, or one of folds: they are pooled.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; the predictions' own if not given.")] = None,
    val: Annotated[
        list[Path],
        typer.Option(
            help="Predictions of validation cases, for threshold and temperature; one for each PRED, in order."
        ),
    ] = [],
    by: Annotated[list[str], typer.Option(help="Also by the values of this column of the manifest.")] = [],
    cohort: Annotated[
        Path | None, typer.Option(metavar="COHORT.csv", help="The manifest that --by looks into.")
    ] = None,
    columns: Columns = [],
    bootstrap: Annotated[int, typer.Option(help="Resamples of the cases for each interval.")] = 2000,
    seed: Annotated[int, typer.Option(help="Random seed for resampling.")] = 0,
    run: Annotated[
        list[Path], typer.Option(help="Run that made the predictions, if it has moved since. May be repeated.")
    ] = [],
    heatmaps: Annotated[Path | None, typer.Option(help="Folder of `wsi-dbps heatmap`: pictures of the errors.")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Folder with localisation.json, faithfulness.json, stability.json, or some.")
    ] = None,
    atlas: Annotated[Path | None, typer.Option(help="Folder of pictures of what was selected in training.")] = None,
) -> None:
    """Compute metrics of predictions and write a report.

    Writes metrics.json and report.html, by case and by slide, with 95 % intervals from resampling cases. A folder of
    `predict --folds all` is taken as its folds, whose cases are pooled.

    The report holds a leak check and the training curves where the run of the predictions is still there.
    """
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.core.settings import build
    from wsi_dbps.formats.predict_json import read_predict_json
    from wsi_dbps.formats.predictions import read_predicted
    from wsi_dbps.metrics.metrics import MetricsConfig, evaluate_folds, with_flaws
    from wsi_dbps.metrics.pooling import pool_folds
    from wsi_dbps.metrics.thresholds import parts
    from wsi_dbps.report.report import write_metrics, write_report
    from wsi_dbps.report.runs import find_leaks

    if len(preds) > 1 and out is None:
        raise ConfigError("several folders of predictions: say with --out where the report goes")
    folder, title = out or preds[0], ", ".join(pred.resolve().name for pred in preds)
    preds, val = prediction_folders(preds), prediction_folders(val)
    if val and len(val) != len(preds):
        raise ConfigError(f"--val is given {len(val)} times for {len(preds)} folders of predictions; give one for each")
    if bool(by) != (cohort is not None):
        raise ConfigError("--by and --cohort go together: the column, and the manifest that has it")
    config = build(MetricsConfig, {"num_bootstrap": bootstrap, "seed": seed}, "evaluate")
    for pred, own in zip(preds, val, strict=False):
        check_same_model(pred, own)
    if truth is not None:
        check_truth_of(truth, preds)
    folds = dict(zip(_names(preds), map(read_predicted, preds), strict=True))
    given = [read_predicted(pred) for pred in val]
    tested = {name: parts(fold, None)[0] for name, fold in folds.items()}  # one fold's val cases are another's test
    evaluated = pool_folds(tested)
    groups = _subgroups(evaluated, cohort, columns, by) if cohort else None
    metrics = evaluate_folds(folds, config, validation=dict(zip(folds, given, strict=False)), subgroups=groups)
    runs, why_none = _runs(preds, tested, run)
    failed = [line for pred in preds for line in read_predict_json(pred).failed]
    metrics = with_flaws(metrics, failed=failed, leaked=(leak.case_id for leak in find_leaks(evaluated, runs)))
    with output_folder(folder, "evaluate", ("metrics.json", "report.html")):
        write_metrics(metrics, folder / "metrics.json")
        fold_of_case = {row.case_id: name for name, fold in tested.items() for row in fold.cases}
        write_report(
            folder / "report.html",
            evaluated,
            metrics,
            title=title,
            facts=_facts(preds)
            | ({"Leak check": f"{'in part' if runs else 'not made'}: {why_none}"} if why_none else {}),
            runs=runs,
            fold_of_case=fold_of_case,
            heatmaps=heatmaps,
            truth=truth,
            atlas=atlas,
        )
    print(f"{headline(metrics)}: {folder / 'report.html'}")
    if metrics.flaws:
        print(" ".join(metrics.flaws))


def _names(preds: list[Path]) -> list[str]:
    """What each fold is called: its folder, or the path as given where folders have the same name."""
    from wsi_dbps.core.errors import ConfigError

    names = [pred.resolve().name for pred in preds]
    names = names if len(set(names)) == len(names) else [pred.as_posix() for pred in preds]
    if len(set(names)) < len(names):
        raise ConfigError(f"a folder of predictions is given twice: {', '.join(names)}")
    return names


def _runs(preds: list[Path], folds: Mapping[str, Predictions], given: list[Path]) -> tuple[tuple[RunRecord, ...], str]:
    """The runs behind all predictions; and why some are not there, if so."""
    from wsi_dbps.report.runs import runs_behind

    cases = [{row.case_id for row in fold.cases} for fold in folds.values()]
    found = [runs_behind(pred, of, given) for pred, of in zip(preds, cases, strict=True)]
    reasons = dict.fromkeys(why for _, why in found if why)
    return tuple(record for records, _ in found for record in records), "; ".join(reasons)


def _subgroups(predictions: Predictions, cohort: Path, columns: list[str], by: list[str]) -> dict[str, dict[str, str]]:
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest
    from wsi_dbps.metrics.subgroups import values_of_cases

    whole = read_manifest(cohort, columns=parse_columns(columns), need_path=False)
    return {column: values_of_cases(predictions, whole, column) for column in by}


def headline(metrics: Metrics) -> str:
    """The case-level AUROC with its interval, or why there is none."""
    cases = metrics.cases
    if (auroc := cases.scores.get("auroc")) is None:
        return f"{cases.num} labelled cases, no AUROC ({cases.reasons['auroc']})"
    interval = "" if auroc.low is None else f" ({auroc.low:.3f} to {auroc.high:.3f})"
    return f"AUROC {auroc.value:.3f}{interval} over {cases.num} cases"


def _facts(preds: list[Path]) -> dict[str, str]:
    """What predict.json knows of the making of the predictions, where it is there."""
    from wsi_dbps.formats.predict_json import read_predict_json

    made = [read_predict_json(pred) for pred in preds if (pred / "predict.json").exists()]
    members = [member for one in made for member in one.members]
    if not members:
        return {"predict.json": "cannot be used: it names no checkpoint"} if made else {}

    def each(say: Callable[[PredictedBy], str]) -> str:
        return "; ".join(dict.fromkeys(map(say, members)))

    def selection(member: PredictedBy) -> str:
        of = member.settings["selection"]
        return f"{of['preset']}, M = {of['num_salient']}, S = {of['num_subsalient']}"

    try:
        return {
            "Checkpoint": each(lambda m: f"{m.checkpoint} ({m.checkpoint_fingerprint}), epoch {m.epoch}"),
            "Encoder": each(lambda m: str(m.settings["encoder"]["name"])),
            "Selection": each(selection),
            "Seed": each(lambda m: str(m.settings["training"]["seed"])),
            "wsi-dbps": "; ".join(dict.fromkeys(str(one.wsi_dbps_version) for one in made)),
        }
    except (KeyError, TypeError) as error:  # settings of another version, or edited
        return {"predict.json": f"cannot be used: {type(error).__name__}: {error}"[:200]}
