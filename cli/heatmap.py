"""`wsi-dbps heatmap`: attention becomes pictures."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import Bags, CohortCsv, Columns, Device, Fold, Runs, Split, cohort_part, member_runs, one_fold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsi_dbps.bags.bags import BagFile
    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.formats.attention import SlideAttention


class Format(StrEnum):
    """What is drawn."""

    PNG = "png"
    OME_TIFF = "ome-tiff"
    GEOJSON = "geojson"
    SHEET = "sheet"
    CSV = "csv"


class Values(StrEnum):
    """Which map is drawn where there can be only one."""

    EVIDENCE = "evidence"
    RAW = "raw"
    PERCENTILE = "percentile"


def command(
    runs: Runs,
    cohort: CohortCsv,
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Folder for the heatmaps.")],
    predictions: Annotated[
        Path | None, typer.Option(help="Folder of `wsi-dbps predict`, whose attention is drawn as it is.")
    ] = None,
    slide: Annotated[list[str], typer.Option(help="Only this slide. May be repeated.")] = [],
    split: Annotated[
        Split | None, typer.Option(help="Which slides; else those of --predictions, or all where there is none.")
    ] = None,
    fold: Fold = None,
    format_: Annotated[list[Format], typer.Option("--format", help="May be repeated.")] = [Format.PNG, Format.GEOJSON],
    values: Annotated[
        Values, typer.Option(help="What coloured TIFFs, levels and crops show. PNGs show all there is.")
    ] = Values.EVIDENCE,
    scale: Annotated[
        float, typer.Option(help="Evidence of full colour, in log-odds; the same for all slides to be compared.")
    ] = 1.0,
    smooth: Annotated[float, typer.Option(min=0, help="Smooth maps by a Gaussian of this standard deviation, µm.")] = 0,
    overlay_level: Annotated[
        int | None,
        typer.Option(min=0, help="Draw the map over the pixels of this pyramid level of the slide file, 0 the finest."),
    ] = None,
    crops: Annotated[
        int,
        typer.Option(
            min=0, help="Draw only this many regions of the level (else of level 0), round the most salient tiles."
        ),
    ] = 0,
    device: Device = "auto",
    columns: Columns = [],
) -> None:
    """Draw attention and evidence of a model over each slide.

    Several runs are drawn together, as an ensemble.

    The slides themselves are opened for --overlay-level and --crops only: for all else the caches, or features of
    `wsi-dbps embed`, hold all it takes. Other tools' features do not: size and thumbnail come from the slides.

    Attention that is there already, from the same checkpoint and cache, is not computed again.
    """
    from wsi_dbps.core.errors import ConfigError, PredictionError
    from wsi_dbps.formats.predictions import read_predicted

    if not 0 < scale < float("inf"):
        raise ConfigError(f"--scale is {scale:g}; it must be a number above 0")
    predictions = one_fold(predictions) if predictions else None
    records = cohort_part(cohort, columns, split or Split.ALL, fold)
    if slide:
        records = records.slides(*slide)
    elif predictions and split is None:
        predicted = {row.slide_id for row in read_predicted(predictions).slides}
        records = records.slides(*(record.slide_id for record in records.records if record.slide_id in predicted))
    if not len(records):
        raise PredictionError("no slide to draw: the cohort, or the part asked for, is empty")
    how = Drawing(tuple(format_), values, scale, smooth, overlay_level, crops)
    failed = draw(member_runs(runs, fold), records.records, caches, out, predictions, how, device)
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Drawing:
    """What is drawn of a slide."""

    formats: tuple[Format, ...]
    values: Values
    scale: float
    """Evidence of full colour."""
    smooth_um: float
    overlay_level: int | None
    crops: int


def draw(
    runs: Sequence[Path],
    records: Sequence[SlideRecord],
    caches: Path,
    out: Path,
    predictions: Path | None,
    how: Drawing,
    device: str,
) -> int:
    """Draw every slide, name those that cannot be drawn, and say how many these are."""
    from wsi_dbps.bags.bags import FeatureKind
    from wsi_dbps.cohort.each_slide import each_slide
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.inference.predict import Predictor
    from wsi_dbps.training.checkpoint import load_checkpoint

    checkpoints = [load_checkpoint(run / "best.pt") for run in runs]
    if Format.SHEET in how.formats and isinstance(checkpoints[0].patch_kind, FeatureKind):
        raise ConfigError(
            f"{runs[0]}: was trained on features, which hold no pixels to show; leave out --format sheet, or draw a "
            "run that was trained on patch caches"
        )
    with output_folder(out, "heatmap"), Predictor(checkpoints, caches, device=device) as predictor:

        def one(record: SlideRecord) -> None:
            kept = predictor.kept(record, predictions) if predictions else None
            attention = kept or predictor.kept_or_new(record, out)
            cache = predictor.cache(record)
            if set(how.formats) - {Format.CSV} or how.overlay_level is not None or how.crops:
                attention = with_tile_side(attention.with_slide(cache.grid), cache)
            draw_formats(out, attention, cache, how)
            if how.overlay_level is not None or how.crops:
                draw_close(out, attention, cache, record, how)

        failed = len(each_slide("drawing", records, one))
    print(f"{len(records) - failed} slides drawn, {failed} failed: {out}")
    return failed


def with_tile_side(attention: SlideAttention, cache: BagFile) -> SlideAttention:
    """The attention, and where its features do not say how large tiles are, the distance of neighbours for it."""
    import math
    from dataclasses import replace

    from wsi_dbps.formats.features import FeatureFile

    if math.isfinite(attention.grid.tile_lv0) or not isinstance(cache, FeatureFile):
        return attention
    step_lv0 = cache.step_lv0()
    print(
        f"{attention.slide_id}: the features do not say how large tiles are; each is drawn {step_lv0:g} px of level 0 "
        "wide, the smallest distance between two",
        file=sys.stderr,
    )
    return replace(attention, grid=attention.grid.with_tile(step_lv0))


def draw_formats(out: Path, attention: SlideAttention, cache: BagFile, how: Drawing) -> None:
    """All formats that need no slide."""
    from wsi_dbps.drawing.geojson import write_geojson
    from wsi_dbps.drawing.ome_tiff import write_coloured_map, write_value_map
    from wsi_dbps.drawing.overlay import draw_overlay
    from wsi_dbps.drawing.placement import drawn_path
    from wsi_dbps.drawing.sheet import draw_sheet
    from wsi_dbps.drawing.tile_csv import write_scores
    from wsi_dbps.drawing.tile_maps import chosen_map
    from wsi_dbps.formats.patch_cache import PatchCache

    def named(ending: str) -> Path:
        return drawn_path(out, attention.slide_id, ending)

    if Format.CSV in how.formats:
        write_scores(named("csv"), attention)
    if set(how.formats) <= {Format.CSV}:
        return
    if Format.GEOJSON in how.formats:
        write_geojson(named("geojson"), attention)
    if Format.OME_TIFF in how.formats:
        write_value_map(named("ome.tiff"), attention, smooth_um=how.smooth_um)
        one = chosen_map(attention, how.values.value, how.scale)
        write_coloured_map(named("rgb.ome.tiff"), attention, one, smooth_um=how.smooth_um)
    if Format.SHEET in how.formats:
        assert isinstance(cache, PatchCache)  # `draw` has refused runs on features
        draw_sheet(named("sheet.png"), attention, cache.patches)
    if Format.PNG in how.formats:
        draw_overlay(named("png"), attention, cache.thumbnail(), smooth_um=how.smooth_um, scale=how.scale)


def draw_close(out: Path, attention: SlideAttention, cache: BagFile, record: SlideRecord, how: Drawing) -> None:
    """The map over the slide's own pixels."""
    from wsi_dbps.core.errors import SlideError, SpecMismatchError
    from wsi_dbps.drawing.closeup import draw_crops, draw_level
    from wsi_dbps.drawing.placement import drawn_path
    from wsi_dbps.drawing.tile_maps import chosen_map
    from wsi_dbps.formats.patch_cache import PatchCache
    from wsi_dbps.slides.open import open_slide

    if record.file is None:
        raise SlideError("no path in the manifest; --overlay-level and --crops read the slide itself")
    level, one = how.overlay_level or 0, chosen_map(attention, how.values.value, how.scale)
    facts = cache.facts if isinstance(cache, PatchCache) else None  # features do not name the reader of the slide
    with open_slide(record.file, facts.reader if facts else "auto") as slide:
        info, expected = slide.info, facts and facts.slide_fingerprint
        if info.size_lv0 != attention.grid.slide_lv0 or (expected is not None and expected != info.fingerprint):
            raise SpecMismatchError(f"{record.file}: is not the file that {cache.path} was made from; mend the path")
        what = (slide.read, info.levels, level)
        if how.crops:
            draw_crops(out, *what, how.crops, attention, one, smooth_um=how.smooth_um)
        else:
            path = drawn_path(out, record.slide_id, f"level{level}.png")
            draw_level(path, *what, attention, one, smooth_um=how.smooth_um)
