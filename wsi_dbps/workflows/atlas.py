"""How a run's buffers moved over training, as numbers and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from wsi_dbps.core.options import options_with, to_stderr
from wsi_dbps.core.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.explain.selection_atlas import SlideCourse
    from wsi_dbps.formats.features import FeatureFile
    from wsi_dbps.formats.patch_cache import PatchCache
    from wsi_dbps.formats.patch_filter import PatchFilter

NUM_SLIDES: Final = 8
"""Slides that are drawn where none are named."""


@settings
class AtlasOptions:
    """The options of `atlas`."""

    slide: Annotated[
        tuple[str, ...], f"Draw this slide, in place of {NUM_SLIDES} of all classes. May be repeated."
    ] = ()


@dataclass(frozen=True)
class AtlasResult:
    """What `atlas` found and drew."""

    courses: Mapping[str, SlideCourse]
    """By slide id, how the buffers of every training slide moved."""
    epochs: Sequence[Mapping[str, Any]]
    """By epoch, quartiles over the slides of churn, overlap and entropy, as atlas.json has them."""
    drawn: tuple[str, ...]
    """Ids of the slides of which there are maps."""
    failed: tuple[str, ...]
    """One line for each slide that could not be drawn, beginning with its id."""
    folder: Path
    """Holds atlas.csv, atlas.json, churn_entropy.png and <slide_id>.atlas.png."""

    @property
    def summary(self) -> str:
        """What the command prints."""
        num, lost = len(self.courses), f", {len(self.failed)} failed" * bool(self.failed)
        return f"{len(self.epochs)} epochs of {num} slides, {len(self.drawn)} of them drawn{lost}: {self.folder}"


def atlas(
    run: PathLike,
    caches: PathLike,
    out: PathLike,
    options: AtlasOptions = AtlasOptions(),
    *,
    say: Say = to_stderr,  # noqa: ARG001 - every workflow has it
    **changes: Any,
) -> AtlasResult:
    """Draw which patches were selected during training, from the record that the run has kept.

    A slide whose cache cannot be used is named in `failed`, and the others are drawn; the numbers are of all slides.

    Args:
        run: Run folder of `train`.
        caches: Folder of the patch caches, or features, that the run was trained on.
        out: Folder to write.
        options: Which slides are drawn.
        say: Takes lines of notice.
        changes: Options to change, by name: `slide="S1"`.

    Raises:
        CheckpointError: If the run kept no record, or a damaged one, or was not trained on a slide that is asked for.
        CacheError: If none of the slides can be drawn.
        OutputError: If a file cannot be written.
    """
    from wsi_dbps.cohort.manifest import read_manifest
    from wsi_dbps.core.errors import CheckpointError
    from wsi_dbps.core.files import write_json, write_text
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.drawing.atlas_pictures import draw_curves
    from wsi_dbps.explain.selection_atlas import (
        FORMAT,
        FORMAT_VERSION,
        atlas_csv,
        quartiles,
        read_courses,
        spread_over_classes,
    )

    options, run, out = options_with(options, changes), Path(run), Path(out)
    courses = {course.slide_id: course for course in read_courses(run)}
    records = {record.slide_id: record for record in read_manifest(run / "cohort.csv").records}
    if unknown := [slide_id for slide_id in options.slide if slide_id not in courses]:
        raise CheckpointError(f"{run}: never trained on {', '.join(unknown)}; the record is of training slides only")
    labels = {slide_id: record.label for slide_id, record in records.items()}
    wanted = tuple(dict.fromkeys(options.slide)) or spread_over_classes(list(courses), labels, NUM_SLIDES)
    found, failed = _caches(run, caches, [courses[slide_id] for slide_id in wanted], records)
    epochs = quartiles(list(courses.values()))
    with output_folder(out, "atlas", ("atlas.csv", "atlas.json", "churn_entropy.png")):
        for slide_id, cache in found.items():
            _draw(out, courses[slide_id], labels.get(slide_id), cache, num_epochs=epochs[-1]["epoch"])
        draw_curves(out / "churn_entropy.png", epochs, f"{run.resolve().name}: {len(courses)} training slides")
        write_text(out / "atlas.csv", atlas_csv(list(courses.values())))
        about = {"format": FORMAT, "format_version": FORMAT_VERSION, "num_slides": len(courses), "slides": list(found)}
        write_json(out / "atlas.json", about | {"epochs": epochs})
    return AtlasResult(courses, epochs, tuple(found), failed, out)


def _caches(
    run: Path, caches: PathLike, courses: Sequence[SlideCourse], records: Mapping[str, SlideRecord]
) -> tuple[dict[str, PatchCache | FeatureFile], tuple[str, ...]]:
    """The cache of each slide to be drawn, and a line for each slide whose cache cannot be used.

    Raises:
        CacheError: If no cache can be used, as the first line says.
    """
    from wsi_dbps.cohort.each_slide import each_slide
    from wsi_dbps.core.errors import CacheError
    from wsi_dbps.core.settings import read_toml
    from wsi_dbps.training.settings import build_run_config

    patch_filter = build_run_config(read_toml(run / "run.toml"), str(run / "run.toml")).patches
    found: dict[str, PatchCache | FeatureFile] = {}

    def one(record: SlideRecord) -> None:
        (course,) = (course for course in courses if course.slide_id == record.slide_id)
        found[record.slide_id] = _cache(caches, course, patch_filter, record.mpp_um)

    failed = each_slide("opening", [records[course.slide_id] for course in courses], one)
    if failed and not found:
        raise CacheError(f"no slide can be drawn; {failed[0]}")
    return found, failed


def _cache(
    caches: PathLike, course: SlideCourse, patch_filter: PatchFilter, mpp_um: float | None
) -> PatchCache | FeatureFile:
    """The patches that the record's ids are rows of.

    Raises:
        CacheError: If the cache is missing or damaged, or has another number of patches than the run saw.
    """
    from wsi_dbps.core.errors import CacheError
    from wsi_dbps.formats.features import open_bag
    from wsi_dbps.formats.patch_cache import PatchCache
    from wsi_dbps.formats.patch_filter import filtered

    bag = open_bag(caches, course.slide_id, mpp_lv0_um=mpp_um)
    bag.thumbnail()  # a damaged one is found before anything is written
    if isinstance(bag, PatchCache):
        bag = filtered(bag, patch_filter)
    if len(bag) != len(course.times_N):
        raise CacheError(
            f"{bag.path}: {len(bag)} patches, where the run saw {len(course.times_N)}; give its own caches"
        )
    return bag


def _draw(out: Path, of: SlideCourse, label: str | None, cache: PatchCache | FeatureFile, *, num_epochs: int) -> None:
    from wsi_dbps.drawing.atlas_pictures import draw_maps

    draw_maps(
        out / f"{of.slide_id}.atlas.png",
        f"{of.slide_id}, {label or 'no label'}: "
        f"{(of.times_N > 0).sum():,} of {len(of.times_N):,} tiles ever salient in {len(of.epochs_V)} visits",
        *(cache.thumbnail(), cache.grid),
        *(of.first_N, of.last_N, of.times_N),
        num_epochs=num_epochs,
    )
