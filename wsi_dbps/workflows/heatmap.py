"""Attention and attribution become pictures of slides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from wsi_dbps.cohort.given import Columns, Device, Fold, Split, cohort_part, one_slide
from wsi_dbps.core.errors import ConfigError, PredictionError
from wsi_dbps.core.options import Range, options_with, to_stderr
from wsi_dbps.core.settings import settings
from wsi_dbps.formats.run_folders import member_runs, one_fold, paths_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.inference.predictor import Predictor

Format = Literal["png", "ome-tiff", "geojson", "sheet", "csv"]
"""What is drawn."""
Values = Literal["evidence", "raw", "percentile"]
"""Which map is drawn where there can be only one; `evidence` is attribution."""


@settings
class HeatmapOptions:
    """The options of `heatmap`."""

    predictions: Annotated[Path | None, "Folder of `wsi-dbps predict`, whose attention is drawn as it is."] = None
    slide: Annotated[tuple[str, ...], "Only this slide. May be repeated."] = ()
    split: Annotated[Split | None, "Which slides; else those of --predictions, or all where there is none."] = None
    fold: Fold = None
    format: Annotated[tuple[Format, ...], "May be repeated."] = ("png", "geojson")
    values: Annotated[Values, "What coloured TIFFs, levels and crops show. PNGs show all there is."] = "evidence"
    scale: Annotated[float, "Evidence of full colour, in log-odds; the same for all slides to be compared."] = 1.0
    smooth: Annotated[float, "Smooth maps by a Gaussian of this standard deviation, µm.", Range(0)] = 0
    overlay_level: Annotated[
        int | None, "Draw the map over the pixels of this pyramid level of the slide file, 0 the finest.", Range(0)
    ] = None
    crops: Annotated[
        int, "Draw only this many regions of the level (else of level 0), round the most salient tiles.", Range(0)
    ] = 0
    device: Device = "auto"
    columns: Columns = ()

    @property
    def needs_slide(self) -> bool:
        """Whether the slide files themselves are opened."""
        return self.overlay_level is not None or self.crops > 0


@dataclass(frozen=True)
class DrawnSlide:
    """One slide of which a heatmap was made."""

    record: SlideRecord
    attention: Path
    """The file of the attention that is drawn."""
    files: tuple[Path, ...]
    """What was written, without the attention."""


@dataclass(frozen=True)
class HeatmapResult:
    """The heatmaps that were drawn."""

    slides: tuple[DrawnSlide, ...]
    failed: tuple[str, ...]
    """One line for each slide that could not be drawn, beginning with its id."""
    folder: Path
    """Where the files are."""
    caches: Path
    options: HeatmapOptions
    """How they were drawn, and how `figure` draws."""

    @property
    def summary(self) -> str:
        """What the command prints."""
        return f"{len(self.slides)} slides drawn, {len(self.failed)} failed: {self.folder}"

    def figure(self, slide_id: str | None = None) -> Figure:
        """The picture of a slide as a matplotlib figure, as the PNG shows it; pyplot is not touched.

        Args:
            slide_id: Which slide; the first one where None.

        Raises:
            PredictionError: If the slide was not drawn.
            CacheError: If its cache cannot be read any more.
        """
        from wsi_dbps.drawing.overlay import overlay_figure
        from wsi_dbps.drawing.slide import with_tile_side
        from wsi_dbps.formats.attention import read_attention
        from wsi_dbps.formats.features import open_bag

        drawn = next((one for one in self.slides if slide_id in (None, one.record.slide_id)), None)
        if drawn is None:
            raise PredictionError(f"{slide_id or 'the first slide'}: was not drawn; see `failed` of the result")
        record = drawn.record
        cache = open_bag(self.caches, record.slide_id, mpp_lv0_um=record.mpp_um, slide=record.file)
        attention, _ = with_tile_side(read_attention(drawn.attention), cache)
        o = self.options
        return overlay_figure(attention, cache.thumbnail(), smooth_um=o.smooth, scale=o.scale)


def heatmap(
    runs: PathLike | Sequence[PathLike],
    cohort: Cohort | PathLike,
    caches: PathLike,
    out: PathLike,
    options: HeatmapOptions = HeatmapOptions(),
    *,
    say: Say = to_stderr,
    **changes: Any,
) -> HeatmapResult:
    """Draw attention and attribution of a model over each slide.

    Several runs are drawn together, as an ensemble. Slides themselves are opened for `overlay_level` and `crops` only,
    and for other tools' features, which hold neither size nor thumbnail. Attention that is there already, from the same
    checkpoint and cache, is not computed again. A slide that cannot be drawn is named in `failed`, and the others go
    on.

    Args:
        runs: A run folder of `train`, or several.
        cohort: A cohort, the path of a manifest, or the path of one slide or one cache.
        caches: Folder of patch caches, or of features, with a file per slide.
        out: Folder for the heatmaps, and for attention that is not in the folder of predictions.
        options: What is drawn, and how; see `HeatmapOptions`.
        say: Takes lines of notice.
        changes: Options to change, by name: `heatmap(..., format=["png"])`. No format (`[]`) writes no file, and leaves
            the drawing to `HeatmapResult.figure`.

    Raises:
        PredictionError: If there is no slide to draw.
        ConfigError: If an option cannot be met.
        CheckpointError: If a run has no checkpoint, or a damaged one.
        OutputError: If a file cannot be written.
    """
    from wsi_dbps.bags.bags import FeatureKind
    from wsi_dbps.cohort.each_slide import each_slide
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.inference.predictor import Predictor
    from wsi_dbps.training.checkpoint import load_checkpoint

    o, caches, out = options_with(options, changes), Path(caches), Path(out)
    if not 0 < o.scale < float("inf"):
        raise ConfigError(f"--scale is {o.scale:g}; it must be a number above 0")
    predictions = one_fold(o.predictions) if o.predictions else None
    slides = _slides(cohort, predictions, o)
    members = member_runs(paths_of(runs), o.fold)
    checkpoints = [load_checkpoint(run / "best.pt") for run in members]
    if "sheet" in o.format and isinstance(checkpoints[0].patch_kind, FeatureKind):
        raise ConfigError(
            f"{members[0]}: was trained on features, which hold no pixels to show; leave out --format sheet, or draw a "
            "run that was trained on patch caches"
        )
    drawn: list[DrawnSlide] = []
    with output_folder(out, "heatmap"), Predictor(checkpoints, caches, device=o.device) as predictor:
        failed = each_slide(
            "drawing", slides.records, lambda record: drawn.append(_draw(predictor, record, predictions, out, o, say))
        )
    return HeatmapResult(tuple(drawn), failed, out, caches, o)


def _slides(cohort: Cohort | PathLike, predictions: Path | None, options: HeatmapOptions) -> Cohort:
    """The slides to draw.

    Raises:
        PredictionError: If there is none.
    """
    from wsi_dbps.formats.predictions import read_predicted

    slides = one_slide(cohort) or cohort_part(cohort, options.columns, options.split or "all", options.fold)
    if options.slide:
        slides = slides.slides(*options.slide)
    elif predictions and options.split is None:
        predicted = {row.slide_id for row in read_predicted(predictions).slides}
        slides = slides.slides(*(record.slide_id for record in slides.records if record.slide_id in predicted))
    if not len(slides):
        raise PredictionError("no slide to draw: the cohort, or the part asked for, is empty")
    return slides


def _draw(
    predictor: Predictor, record: SlideRecord, predictions: Path | None, out: Path, options: HeatmapOptions, say: Say
) -> DrawnSlide:
    from wsi_dbps.core.errors import SlideError
    from wsi_dbps.drawing.slide import Shown, draw_close, draw_formats, with_tile_side
    from wsi_dbps.formats.attention import attention_path

    attention = predictor.kept(record, predictions) if predictions else predictor.kept_or_new(record, out)
    cache = predictor.cache(record)
    if set(options.format) - {"csv"} or options.needs_slide:
        attention, notice = with_tile_side(attention, cache)
        if notice:
            say(notice)
    shown = Shown(options.values, options.scale, options.smooth)
    files = draw_formats(out, attention, cache, options.format, shown)
    if options.needs_slide:
        if record.file is None:
            raise SlideError("no path in the manifest; --overlay-level and --crops read the slide itself")
        files += draw_close(out, attention, cache, record.file, options.overlay_level or 0, options.crops, shown)
    return DrawnSlide(record, attention_path(predictions or out, record.slide_id), tuple(files))
