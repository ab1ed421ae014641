"""Find tissue on slides and cache their patches."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from wsi_dbps.cohort.given import Columns, SlidesFolder, as_cohort, cohort_name
from wsi_dbps.core.options import Range, options_with, to_stderr
from wsi_dbps.core.settings import settings
from wsi_dbps.formats.spec import CacheSpec, Codec, Icc, ReaderName, TilingSpec, Tissue

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.formats.patch_cache import PatchCache
    from wsi_dbps.tiling.dry_run import TilingPlan
    from wsi_dbps.tiling.outcomes import Failed, Kept, Tiled

CHOOSING_TILES: Final = {
    "mpp": "--mpp",
    "mag": "--mag",
    "size": "--size",
    "overlap": "--overlap",
    "tissue": "--tissue",
    "drop_pen": "--drop-pen/--keep-pen",
    "min_tissue": "--min-tissue",
}
"""Options that cannot be given with `coords`, whose files decide all of this."""
TIME_LIMIT_S: Final = 3600.0
"""For each slide, where none is given: the slowest decoder on a slow disk needs a part of it."""
_MOST_SECONDS: Final = 30 * 24 * 3600.0


@settings
class TileOptions:
    """The options of `tile`."""

    mpp: Annotated[float, "Resolution of the patches, µm per pixel."] = TilingSpec.mpp_um
    mag: Annotated[float | None, "The same as a magnification: 10 / mpp, so that 20 is 0.5.", Range(0.1)] = None
    size: Annotated[int, "Patch side in pixels."] = TilingSpec.size_px
    overlap: Annotated[int, "Pixels that neighbouring patches share."] = TilingSpec.overlap_px
    tissue: Annotated[
        Tissue,
        "How tissue is found. stain: more colour than the slide's glass. otsu: colour, by Otsu's threshold. "
        "hsv: the hues of H&E and common immunostains. entropy: structure. none: everything is tissue.",
    ] = TilingSpec.tissue
    drop_pen: Annotated[bool, "Leave out strokes of green, blue and black pens."] = TilingSpec.drop_pen
    min_tissue: Annotated[float, "Smallest fraction of a tile that must be tissue."] = TilingSpec.min_tissue
    coords: Annotated[
        Path | None,
        "Cut the tiles that TRIDENT, CLAM, hs2p or another run of this chose, instead of looking for tissue: "
        "the folder it wrote. Their size and resolution come from there.",
    ] = None
    codec: Annotated[
        Codec,
        "copy: the scanner's own JPEG tiles, unchanged. jpeg: decoded and encoded. auto: copied where patches "
        "are the scanner's tiles. reader: through the reader alone, without the fast path.",
    ] = CacheSpec.codec
    native_tolerance: Annotated[
        float, "Largest relative difference between a level's mpp and --mpp at which its tiles are copied."
    ] = CacheSpec.native_tolerance
    quality: Annotated[int, "JPEG quality of patches that are encoded, 1 to 100."] = CacheSpec.quality
    max_damaged: Annotated[float, "Largest fraction of a slide's tiles that may be left out as damaged."] = (
        CacheSpec.max_damaged
    )
    icc: Annotated[Icc, "keep: colours as stored. srgb: the slide's ICC profile is applied, where it has one."] = (
        CacheSpec.icc
    )
    qc: Annotated[bool, "Measure each patch: sharpness, fraction of white, fraction of pen. Slower."] = CacheSpec.qc
    reader: Annotated[ReaderName, "What opens the slides; auto chooses by each file's format."] = CacheSpec.reader
    workers: Annotated[int, "Slides tiled at once, shared out over the cores; 0: one per core.", Range(0, 1024)] = 0
    shard: Annotated[str | None, "Only every Nth slide, from the Ith: for job arrays; I from 1."] = None
    dask: Annotated[str | None, "Tile on the dask.distributed cluster at this address."] = None
    slide: Annotated[tuple[str, ...], "Only this slide of the manifest. May be repeated."] = ()
    time_limit: Annotated[
        float | None,
        "Seconds after which a slide fails; 0: no limit. Unless given: 3600; none for a single slide or --dask.",
    ] = None
    sheet: Annotated[bool, "Also draw contact-sheet.html, a page that shows every slide."] = True
    overwrite: Annotated[bool, "Tile again slides whose cache is there already."] = False
    columns: Columns = ()
    slides: SlidesFolder = None

    def spec(self) -> CacheSpec:
        """What each cache is made with.

        Raises:
            ConfigError: If a value is out of its range.
        """
        from wsi_dbps.core.settings import build

        tiling = {
            "mpp_um": self.mpp if self.mag is None else 10 / self.mag,
            "size_px": self.size,
            "overlap_px": self.overlap,
            "tissue": self.tissue,
            "drop_pen": self.drop_pen,
            "min_tissue": self.min_tissue,
        }
        same = ("codec", "native_tolerance", "quality", "max_damaged", "icc", "qc", "reader")
        return build(CacheSpec, {"tiling": tiling, **{name: getattr(self, name) for name in same}}, "tile")


@dataclass(frozen=True)
class TileResult:
    """What became of every slide."""

    out: Path
    """The folder of caches."""
    outcomes: tuple[Tiled | Kept | Failed, ...]
    """One for each slide, in the order in which they were ready."""
    sheet: Path | None
    """The contact sheet, if it was drawn."""
    seconds: float

    @property
    def tiled(self) -> tuple[Tiled, ...]:
        """The slides that were tiled now."""
        from wsi_dbps.tiling.outcomes import Tiled

        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Tiled))

    @property
    def kept(self) -> tuple[Kept, ...]:
        """The slides whose cache was there already."""
        from wsi_dbps.tiling.outcomes import Kept

        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Kept))

    @property
    def failed(self) -> tuple[Failed, ...]:
        """The slides that could not be tiled."""
        from wsi_dbps.tiling.outcomes import Failed

        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Failed))

    @property
    def summary(self) -> str:
        """What the command prints."""
        patches = sum(outcome.num_patches for outcome in self.tiled)
        return (
            f"{len(self.tiled)} slides tiled ({patches} patches, {patches / self.seconds:.0f}/s), "
            f"{len(self.kept)} kept as they were, {len(self.failed)} failed: {self.out}"
        )


def tile(
    cohort: Cohort | PathLike,
    out: PathLike,
    options: TileOptions = TileOptions(),
    *,
    say: Say = to_stderr,
    **changes: Any,
) -> TileResult:
    """Find tissue on each slide and write its patches to a cache, an HDF5 file.

    A cache made from the same slide with the same settings is kept, so a run that was killed continues where it was. A
    slide that fails does not stop the others.

    Args:
        cohort: A cohort, or the path of its manifest. Every slide needs a file.
        out: Folder for the caches, one HDF5 file per slide.
        options: Options; see `TileOptions`.
        say: Takes lines of notice: which slide failed, and what to look at on the others.
        changes: Options to change, by name: `tile(cohort, "caches", mpp=0.25, size=512)`.

    Raises:
        ManifestError: If the manifest cannot be used.
        ConfigError: If an option is wrong.
        OutputError: If the folder cannot be written.
    """
    from wsi_dbps.core.ownership import refuse_to_replace
    from wsi_dbps.tiling import contact_sheet, overview
    from wsi_dbps.tiling.tile_slide import cache_path

    o, out = options_with(options, changes), Path(out)
    spec = o.spec()
    whole, records = chosen_slides(cohort, o, changes)
    for name in (overview.NAME, contact_sheet.NAME):
        refuse_to_replace(out / name)
    start = time.monotonic()
    outcomes = _tile_all(records, spec, out, o, say)
    overview.add_to_table(out, outcomes)
    seconds, sheet = time.monotonic() - start, None
    if o.sheet:  # of the whole cohort: with a shard, other runs add their slides
        rows, ids = overview.read_table(out), [record.slide_id for record in whole]
        there = [slide_id for slide_id in ids if slide_id in rows or cache_path(out, slide_id).exists()]
        sheet = contact_sheet.write_contact_sheet(there, out)
    return TileResult(out, tuple(outcomes), sheet, seconds)


def plan_tiling(
    cohort: Cohort | PathLike, options: TileOptions = TileOptions(), *, say: Say = lambda _: None, **changes: Any
) -> TilingPlan:
    """Plan what `tile` would do with the same options, without writing anything.

    Args:
        cohort: A cohort, or the path of its manifest.
        options: Options; see `TileOptions`.
        say: Takes the table's header, and each row as soon as it is ready; `print` shows them. Nothing by default.
        changes: Options to change, by name.

    Raises:
        ManifestError: If the manifest cannot be used.
        ConfigError: If an option is wrong.
    """
    from wsi_dbps.tiling.dry_run import plan_slides

    o = options_with(options, changes)
    _, records = chosen_slides(cohort, o, changes)
    return plan_slides(records, o.spec(), say)


def tile_slide(
    slide: SlideRecord | PathLike, out: PathLike, options: TileOptions = TileOptions(), **changes: Any
) -> PatchCache:
    """Tile one slide, and open its cache; no table and no contact sheet is written.

    Args:
        slide: A slide file, whose name becomes the slide_id, or a record.
        out: Folder for the cache.
        options: Options; see `TileOptions`. Those that choose among slides or share them out do nothing here.
        changes: Options to change, by name.

    Raises:
        SlideError: If the slide cannot be tiled.
        ConfigError: If an option is wrong.
        OutputError: If the cache cannot be written.
    """
    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.core.cores import num_cores
    from wsi_dbps.core.errors import SlideError
    from wsi_dbps.formats.patch_cache import PatchCache
    from wsi_dbps.tiling import tile_slide as tiling
    from wsi_dbps.tiling.outcomes import Kept, Tiled

    o = options_with(options, changes)
    record = slide if isinstance(slide, SlideRecord) else SlideRecord.of_file(slide)
    if o.coords is not None:
        _check_coords(o, changes)
        record = replace(record, coords=o.coords)
    outcome = tiling.tile_slide(record, o.spec(), out, overwrite=o.overwrite, threads=num_cores())
    if isinstance(outcome, Tiled | Kept):
        return PatchCache(outcome.path)
    raise SlideError(getattr(outcome, "error", f"{record.slide_id}: another process is tiling it"))


def chosen_slides(
    cohort: Cohort | PathLike, options: TileOptions, changes: Collection[str] = ()
) -> tuple[tuple[SlideRecord, ...], tuple[SlideRecord, ...]]:
    """All slides of a cohort, and those that the options choose.

    Args:
        cohort: A cohort, or the path of its manifest.
        options: The options.
        changes: Names of the options that were given, also if as their default.

    Raises:
        ManifestError: If the manifest cannot be used.
        ConfigError: If an option is wrong, or names a slide that is not in the cohort.
    """
    _check_time_limit(options.time_limit)
    whole = as_cohort(cohort, options.columns, need_path=True, slides=options.slides).records
    records = _named_slides(whole, options.slide, cohort_name(cohort)) if options.slide else whole
    if options.coords is not None:
        _check_coords(options, changes)
        records = tuple(replace(record, coords=options.coords) for record in records)
    if options.shard is not None:
        index, count = _shard(options.shard)
        records = records[index - 1 :: count]
    return whole, records


def _tile_all(
    records: Sequence[SlideRecord], spec: CacheSpec, out: Path, o: TileOptions, say: Say
) -> list[Tiled | Kept | Failed]:
    """Tile slides where and with as many workers as the options say, reporting each as it is ready."""
    from wsi_dbps.core.cores import num_cores
    from wsi_dbps.core.progress import Progress
    from wsi_dbps.tiling.outcomes import Failed
    from wsi_dbps.tiling.tile_cohort import tile_cohort

    cores = num_cores()
    workers = max(1, min(o.workers or cores, len(records)))
    new_executor, time_limit_s = _executor(len(records), o)
    outcomes: list[Tiled | Kept | Failed] = []
    num_patches = 0
    with Progress("tiling", len(records), "slides") as progress:
        tell = progress.say if say is to_stderr else say
        for outcome in tile_cohort(
            records,
            spec,
            out,
            new_executor=new_executor,
            workers=workers,
            threads=max(1, cores // workers),
            time_limit_s=time_limit_s,
            overwrite=o.overwrite,
        ):
            outcomes.append(outcome)
            for line in _notices(outcome):
                tell(line)
            num_patches += 0 if isinstance(outcome, Failed) else outcome.num_patches
            progress.advance(extra=f"{num_patches} patches")
    return outcomes


def _notices(outcome: Tiled | Kept | Failed) -> Iterable[str]:
    from wsi_dbps.tiling.outcomes import Failed, Tiled

    if isinstance(outcome, Failed):
        return filter(None, (outcome.error, outcome.traceback))
    return (f"{outcome.slide_id}: {note}" for note in outcome.notes) if isinstance(outcome, Tiled) else ()


def _executor(
    num_slides: int, o: TileOptions
) -> tuple[Callable[[int], AbstractContextManager[Executor]], float | None]:
    """Where to tile, and the time limit of each slide in seconds.

    Unless one is given, the limit is the default one where each slide has a process of its own, which alone can be
    ended without the others.
    """
    from wsi_dbps.tiling.executors import in_processes, in_this_process, on_cluster

    if o.dask is not None:
        return on_cluster(o.dask), o.time_limit or None
    if num_slides == 1 and not o.time_limit:
        return in_this_process, None
    return in_processes, (TIME_LIMIT_S if o.time_limit is None else o.time_limit) or None


def _check_coords(options: TileOptions, changes: Collection[str]) -> None:
    """Refuse a folder of coordinates that is not there, and options that its files decide."""
    from wsi_dbps.core.errors import ConfigError

    coords = options.coords
    if coords is None or not coords.is_dir():
        raise ConfigError(f"--coords {coords}: no such folder; name the one that the tool wrote its coordinates to")
    for name, said in CHOOSING_TILES.items():
        if name in changes or getattr(options, name) != getattr(TileOptions, name):
            raise ConfigError(f"--coords {coords}: which tiles, and how large, its files say; leave out {said}")


def _check_time_limit(time_limit_s: float | None) -> None:
    """Refuse a time limit that no clock can keep."""
    from wsi_dbps.core.errors import ConfigError

    if time_limit_s is not None and time_limit_s != 0 and not 1 <= time_limit_s <= _MOST_SECONDS:
        raise ConfigError(
            f"--time-limit {time_limit_s:g}: expected 1 to {_MOST_SECONDS:.0f} seconds (30 days), or 0 for no limit"
        )


def _named_slides(records: Sequence[SlideRecord], ids: Sequence[str], cohort: str) -> tuple[SlideRecord, ...]:
    """The records of these slides, in the manifest's order."""
    from wsi_dbps.core.errors import ConfigError

    known = {record.slide_id for record in records}
    if unknown := [name for name in ids if name not in known]:
        raise ConfigError(f"--slide {unknown[0]}: {cohort} has no slide of this id; name one of its column slide_id")
    return tuple(record for record in records if record.slide_id in ids)


def _shard(text: str) -> tuple[int, int]:
    """(I, N) of `I/N`."""
    from wsi_dbps.core.errors import ConfigError

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--shard {text}: expected I/N with I from 1 to N, for instance 3/8")
    return int(index), int(count)
