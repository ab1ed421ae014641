"""`wsi-dbps localise`: how well heatmaps lie on what a person has drawn."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import CohortCsv, Columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.geometry import Size


class By(StrEnum):
    """What a tile is scored by."""

    ATTENTION = "attention"
    EVIDENCE = "evidence"


def command(
    pred: Annotated[
        Path, typer.Argument(metavar="PRED", help="Folder of predictions, as `wsi-dbps predict` wrote it.")
    ],
    cohort: CohortCsv,
    out: Annotated[
        Path | None, typer.Option(help="Folder for localisation.json; the predictions' own if not given.")
    ] = None,
    score: Annotated[By, typer.Option(help="What a tile is scored by.")] = By.ATTENTION,
    caches: Annotated[
        Path | None, typer.Option(help="Caches or features, for size and mpp of the slides, which are then not opened.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(help="Predictions of validation slides, on which the threshold of Dice is chosen.")
    ] = None,
    lesion: Annotated[list[str], typer.Option(help="Only areas of this class. May be repeated.")] = [],
    bootstrap: Annotated[int, typer.Option(help="Resamples of the cases for each interval.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    columns: Columns = [],
) -> None:
    """Write localisation.json: patch AUROC, Dice, and FROC by the rule of CAMELYON16, with 95 % intervals by case.

    The manifest's `annotations` column names what was drawn; slides of the first class need none.
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest
    from wsi_dbps.errors import ConfigError, PredictionError
    from wsi_dbps.evaluation.localisation import best_percentile, locate_slides, summarise
    from wsi_dbps.files import write_json

    if bootstrap < 1 or seed < 0:
        raise ConfigError(f"--bootstrap is at least 1 and --seed at least 0, found {bootstrap} and {seed}")
    whole = read_manifest(cohort, columns=parse_columns(columns))
    if not any(record.annotations for record in whole.records):
        raise PredictionError(f"{cohort}: no slide has annotations; name their files in a column annotations")

    def frame(record: SlideRecord) -> tuple[Size, float]:
        return slide_frame(record, caches)

    slides, unknown = locate_slides(pred, whole, frame, score.value, lesion)
    percentile = None
    if val is not None:
        chosen_on = locate_slides(val, whole, frame, score.value, lesion)[0]
        if shared := sorted({slide.case_id for slide in slides} & {slide.case_id for slide in chosen_on}):
            raise PredictionError(
                f"{val}: has case {shared[0]} ({len(shared)} such cases), which {pred} has too; a threshold must be "
                "chosen on other cases than it is judged on"
            )
        if (percentile := best_percentile(chosen_on)) is None:
            raise PredictionError(f"{val}: no slide has annotated lesion, so no threshold can be chosen on them")
    found = summarise(slides, unknown, score.value, percentile=percentile, num_bootstrap=bootstrap, seed=seed)
    path = (out or pred) / "localisation.json"
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


def slide_frame(record: SlideRecord, caches: Path | None) -> tuple[Size, float]:
    """A slide's size and µm per pixel at level 0: from its cache or features, or else from the slide file itself.

    Raises:
        CacheError: If the folder has no such cache, or features that do not say.
        SlideError: If the slide cannot be opened.
        MissingMppError: If nothing says how large a pixel is.
    """
    from wsi_dbps.errors import SlideError
    from wsi_dbps.patches.cache import PatchCache
    from wsi_dbps.patches.features import FeatureFile, holds_features
    from wsi_dbps.slides.reader import open_slide
    from wsi_dbps.tiling.plan import resolve_mpp

    if caches is not None:
        path = caches / f"{record.slide_id}.h5"
        cache = FeatureFile(path, mpp_lv0_um=record.mpp_um) if holds_features(path) else PatchCache(path)
        return cache.slide_lv0, cache.mpp_lv0_um
    if record.file is None:
        raise SlideError(f"{record.slide_id}: neither --caches nor a path in the manifest say how large the slide is")
    with open_slide(record.file) as slide:
        return slide.info.size_lv0, resolve_mpp(record.slide_id, record.mpp_um, slide.info.mpp_um)[0]


def _estimate(found: Mapping[str, float], value: str) -> str:
    interval = f" ({found['low']:.3f} to {found['high']:.3f})" if "low" in found else ""
    return f"{found[value]:.3f}{interval}"
