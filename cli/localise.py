"""`wsi-dbps localise`: how well heatmaps lie on what a person has drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import CohortCsv, Columns, Score, check_same_model, one_fold

if TYPE_CHECKING:
    from collections.abc import Mapping


def command(
    pred: Annotated[
        Path, typer.Argument(metavar="PRED", help="Folder of predictions, as `wsi-dbps predict` wrote it.")
    ],
    cohort: CohortCsv,
    out: Annotated[
        Path | None, typer.Option(help="Folder for localisation.json; the predictions' own if not given.")
    ] = None,
    score: Annotated[Score, typer.Option(help="What a tile is scored by.")] = Score.ATTENTION,
    caches: Annotated[
        Path | None, typer.Option(help="Caches or features, for size and mpp of the slides, which are then not opened.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(help="Predictions of validation slides, on which the threshold of Dice is chosen.")
    ] = None,
    lesion: Annotated[list[str], typer.Option(help="Only areas of this class. May be repeated.")] = [],
    bootstrap: Annotated[int, typer.Option(help="Resamples of the cases for each interval.")] = 2000,
    seed: Annotated[int, typer.Option(help="Random seed for resampling.")] = 0,
    columns: Columns = [],
) -> None:
    """Measure how well heatmaps agree with annotations.

    Writes localisation.json: patch AUROC, Dice, and FROC by the rule of CAMELYON16, with 95 % intervals by case.

    The manifest's `annotations` column names what was drawn; slides of the first class need none.
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest
    from wsi_dbps.core.errors import PredictionError
    from wsi_dbps.core.files import write_json
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.core.settings import build
    from wsi_dbps.explain.localisation import best_percentile, locate_slides, summarise
    from wsi_dbps.formats.predict_json import read_predict_json
    from wsi_dbps.formats.predictions import read_predicted
    from wsi_dbps.metrics.bootstrap import MetricsConfig
    from wsi_dbps.metrics.thresholds import check_validation, parts

    config = build(MetricsConfig, {"num_bootstrap": bootstrap, "seed": seed}, "localise")
    one_fold(pred)
    whole = read_manifest(cohort, columns=parse_columns(columns))
    if not any(record.annotations for record in whole.records):
        raise PredictionError(f"{cohort}: no slide has annotations; name their files in a column annotations")
    if val:
        check_same_model(pred, val)
    predicted = read_predicted(pred)
    evaluated, validation = parts(predicted, read_predicted(val) if val else None)

    slides, unknown = locate_slides(evaluated, pred, whole, score.value, lesion, caches=caches)
    percentile = None
    if validation is not None:
        check_validation(evaluated, validation)
        percentile = best_percentile(
            locate_slides(validation, val or pred, whole, score.value, lesion, caches=caches)[0]
        )
        if percentile is None and val is not None:
            raise PredictionError(f"{val}: no slide has annotated lesion, so no threshold can be chosen on them")
    found = summarise(slides, unknown, score.value, percentile=percentile, config=config)
    if left_out := len(predicted.slides) - len(evaluated.slides):
        found["reasons"]["splits"] = f"{left_out} predicted slides are not of split test and are left out"
    if failed := read_predict_json(pred).failed:
        found["reasons"]["failed"] = f"{len(failed)} slides could not be predicted and are missing; see predict.json"
    if model := read_predict_json(pred).checkpoint_fingerprint:
        found["checkpoint_fingerprint"] = model
    path = (out or pred) / "localisation.json"
    with output_folder(path.parent, "localise", (path.name,)):
        write_json(path, found)
    said = [
        f"{name} {_estimate(found[key], value)}"
        for key, value, name in (
            ("patch_auroc", "value", "patch AUROC"),
            ("dice", "value", "Dice"),
            ("froc", "score", "FROC"),
        )
        if key in found
    ]
    print(f"{', '.join(said) or 'nothing to measure'} over {len(slides)} slides: {path}")
    for reason in found["reasons"].values():
        print(f"  {reason}")


def _estimate(found: Mapping[str, float], value: str) -> str:
    interval = f" ({_share(found['low'])} to {_share(found['high'])})" if "low" in found else ""
    return f"{_share(found[value])}{interval}"


def _share(value: float) -> str:
    """Three digits; what is below 1 is not rounded up to certainty."""
    return "above 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"
