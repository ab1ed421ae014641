"""`wsi-dbps heatmap`: attention becomes pictures."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import Bags, CohortCsv, Columns, Device, Fold, Split, cohort_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsi_dbps.cohort.cohort import SlideRecord


class Format(StrEnum):
    """What is drawn."""

    PNG = "png"
    GEOJSON = "geojson"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as `wsi-dbps train` wrote it.")],
    cohort: CohortCsv,
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Folder for the heatmaps.")],
    predictions: Annotated[
        Path | None, typer.Option(help="Folder of `wsi-dbps predict`, whose attention is drawn as it is.")
    ] = None,
    slide: Annotated[list[str], typer.Option(help="Only this slide. May be repeated.")] = [],
    split: Annotated[Split, typer.Option(help="Which slides.")] = Split.ALL,
    fold: Fold = None,
    format_: Annotated[list[Format], typer.Option("--format", help="May be repeated.")] = [Format.PNG, Format.GEOJSON],
    device: Device = "auto",
    columns: Columns = [],
) -> None:
    """Draw how the model looked at each slide. The slides themselves are not opened: the caches, or features of
    `wsi-dbps embed`, hold all it takes.

    Attention that is there already, from the same checkpoint and cache, is not computed again.
    """
    from wsi_dbps.errors import PredictionError

    records = cohort_part(cohort, columns, split, fold)
    if not len(records):
        raise PredictionError("no slide to draw: the cohort, or the split asked for, is empty")
    if slide:
        records = records.slides(*slide)
    failed = draw(run, records.records, caches, out, predictions, format_, device)
    if failed:
        raise typer.Exit(1)


def draw(
    run: Path,
    records: Sequence[SlideRecord],
    caches: Path,
    out: Path,
    predictions: Path | None,
    formats: Sequence[Format],
    device: str,
) -> int:
    """Draw every slide, name those that cannot be drawn, and say how many these are."""
    from wsi_dbps.errors import OutputError, WsiDbpsError
    from wsi_dbps.evaluation.predict import Predictor
    from wsi_dbps.heatmaps.geojson import write_geojson
    from wsi_dbps.heatmaps.overlay import draw_overlay
    from wsi_dbps.progress import Progress
    from wsi_dbps.training.checkpoint import load_checkpoint

    failed = 0
    predictor = Predictor([load_checkpoint(run / "best.pt")], caches, device=device)
    with Progress("drawing", len(records), "slides") as progress:
        for record in records:
            try:
                kept = predictor.kept(record, predictions) if predictions else None
                attention = kept or predictor.kept_or_new(record, out)
                cache = predictor.cache(record)
                slide_lv0 = cache.slide_lv0
                if Format.PNG in formats:
                    picture = (cache.thumbnail(), slide_lv0, cache.mpp_lv0_um)
                    draw_overlay(out / f"{record.slide_id}.png", attention, *picture)
                if Format.GEOJSON in formats:
                    write_geojson(out / f"{record.slide_id}.geojson", attention, slide_lv0)
            except OutputError:
                raise
            except WsiDbpsError as error:
                failed += 1
                progress.say(f"{record.slide_id}: {error}")
            progress.advance()
    print(f"{len(records) - failed} slides drawn, {failed} failed: {out}")
    return failed
