"""`wsi-dbps atlas`: how a run's buffers moved over training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import Bags

if TYPE_CHECKING:
    from wsi_dbps.explain.selection_atlas import SlideCourse
    from wsi_dbps.formats.features import FeatureFile
    from wsi_dbps.formats.patch_cache import PatchCache
    from wsi_dbps.formats.patch_filter import PatchFilter

NUM_SLIDES = 8


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as `wsi-dbps train` wrote it.")],
    caches: Bags,
    out: Annotated[Path, typer.Option(help="Folder for the atlas.")],
    slide: Annotated[
        list[str], typer.Option(help=f"Draw this slide, in place of {NUM_SLIDES} of all classes. May be repeated.")
    ] = [],
) -> None:
    """Draw which patches were selected during training.

    From the record of the run: churn and entropy over the epochs, and per
    slide how often, when first and when last each patch was salient. Numbers in atlas.csv and atlas.json.
    """
    from wsi_dbps.cohort.manifest import read_manifest
    from wsi_dbps.core.errors import CheckpointError
    from wsi_dbps.core.files import write_json, write_text
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.core.settings import read_toml
    from wsi_dbps.drawing.atlas_pictures import draw_curves, draw_maps
    from wsi_dbps.explain.selection_atlas import (
        FORMAT,
        FORMAT_VERSION,
        atlas_csv,
        quartiles,
        read_courses,
        spread_over_classes,
    )
    from wsi_dbps.training.settings import build_run_config

    courses = {course.slide_id: course for course in read_courses(run)}
    records = read_manifest(run / "cohort.csv").records
    labels, mpps_um = ({record.slide_id: getattr(record, of) for record in records} for of in ("label", "mpp_um"))
    patch_filter = build_run_config(read_toml(run / "run.toml"), str(run / "run.toml")).patches
    if unknown := [slide_id for slide_id in slide if slide_id not in courses]:
        raise CheckpointError(f"{run}: never trained on {', '.join(unknown)}; the record is of training slides only")
    drawn = tuple(dict.fromkeys(slide)) or spread_over_classes(list(courses), labels, NUM_SLIDES)
    found = {slide_id: _cache(caches, courses[slide_id], patch_filter, mpps_um.get(slide_id)) for slide_id in drawn}

    epochs = quartiles(list(courses.values()))
    with output_folder(out, "atlas", ("atlas.csv", "atlas.json", "churn_entropy.png")):
        for slide_id, cache in found.items():
            of = courses[slide_id]
            draw_maps(
                out / f"{slide_id}.atlas.png",
                f"{slide_id}, {labels.get(slide_id) or 'no label'}: "
                f"{(of.times_N > 0).sum():,} of {len(of.times_N):,} tiles ever salient in {len(of.epochs_V)} visits",
                *(cache.thumbnail(), cache.grid),
                *(of.first_N, of.last_N, of.times_N),
                num_epochs=epochs[-1]["epoch"],
            )
        draw_curves(out / "churn_entropy.png", epochs, f"{run.resolve().name}: {len(courses)} training slides")
        write_text(out / "atlas.csv", atlas_csv(list(courses.values())))
        about = {"format": FORMAT, "format_version": FORMAT_VERSION, "num_slides": len(courses), "slides": list(drawn)}
        write_json(out / "atlas.json", about | {"epochs": epochs})
    print(f"{len(epochs)} epochs of {len(courses)} slides, {len(drawn)} of them drawn: {out}")


def _cache(
    caches: Path, course: SlideCourse, patch_filter: PatchFilter, mpp_um: float | None
) -> PatchCache | FeatureFile:
    """The patches that the record's ids are rows of.

    Raises:
        CacheError: If the cache is missing, or has another number of patches than the run saw.
    """
    from wsi_dbps.core.errors import CacheError
    from wsi_dbps.formats.features import open_bag
    from wsi_dbps.formats.patch_cache import PatchCache
    from wsi_dbps.formats.patch_filter import filtered

    bag = open_bag(caches, course.slide_id, mpp_lv0_um=mpp_um)
    if isinstance(bag, PatchCache):
        bag = filtered(bag, patch_filter)
    if len(bag) != len(course.times_N):
        raise CacheError(
            f"{bag.path}: {len(bag)} patches, where the run saw {len(course.times_N)}; give its own caches"
        )
    return bag
