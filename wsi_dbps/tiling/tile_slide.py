"""One slide file becomes one patch cache, or an outcome that says why not."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_dbps.core.errors import (
    ForeignFileError,
    OutputError,
    SlideError,
    UnreadableSlideError,
    WsiDbpsError,
    one_line,
)
from wsi_dbps.core.files import BusyError, claimed, put_in_place
from wsi_dbps.core.ownership import refuse_another_kind, refuse_to_replace
from wsi_dbps.core.settings import build, to_dict
from wsi_dbps.formats.cache_writer import CacheHead, CacheWriter, encode_jpeg
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.reuse import differences, refuse_others
from wsi_dbps.formats.spec import FORMAT, CacheSpec
from wsi_dbps.slides.icc import profile_name
from wsi_dbps.slides.source import check_unchanged
from wsi_dbps.tiling.doubts import slide_notes
from wsi_dbps.tiling.outcomes import Busy, Failed, Kept, SlideOutcome, Tiled
from wsi_dbps.tiling.pixels import Patch, slide_patches
from wsi_dbps.tiling.quality import as_arrays
from wsi_dbps.tiling.slide_plan import decide, given_tiles, open_record, provenance_of

if TYPE_CHECKING:
    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.formats.cache_writer import Provenance
    from wsi_dbps.formats.patch_cache import CacheFacts
    from wsi_dbps.slides.base import SlideInfo, SlideReader
    from wsi_dbps.slides.source import SlideFile
    from wsi_dbps.tiling.given_coords import GivenCoords
    from wsi_dbps.tiling.plan import TilePlan
    from wsi_dbps.tiling.slide_plan import SlidePlan

_CHANGED = "the file was changed or removed while it was tiled; tile the slide again"


def cache_path(caches: PathLike, slide_id: str) -> Path:
    """Where a slide's cache lies."""
    return Path(caches) / f"{slide_id}.h5"


def tile_slide(
    record: SlideRecord,
    spec: CacheSpec,
    caches: PathLike,
    *,
    overwrite: bool = False,
    threads: int = 1,
    wait: bool = True,
) -> SlideOutcome:
    """Write one slide's cache, or say why not; only what is wrong with the output folder is raised.

    A cache made from the same slide with the same settings is left as it is. A slide whose failure was not foreseen
    fails alone too, with its traceback in the outcome.

    Args:
        record: The slide.
        spec: What to make.
        caches: Folder to write to.
        overwrite: Tile again what is there already.
        threads: How many decode and encode at a time.
        wait: If another process is tiling this slide, wait for it and keep what it made; else the outcome is `Busy`.

    Raises:
        OutputError: If the cache cannot be written, for instance for want of space.
    """
    stamp, path = _stamp(record.file), cache_path(caches, record.slide_id)
    try:
        return _tiled(record, spec, path, stamp, overwrite=overwrite, threads=threads, wait=wait)
    except BusyError:
        return Busy(record.slide_id)
    except WsiDbpsError as error:
        if isinstance(error, OutputError) and not isinstance(error, ForeignFileError):
            raise
        return Failed(record.slide_id, named(record, error))
    except Exception as error:
        changed = _stamp(record.file) != stamp
        said = _CHANGED if changed else f"unforeseen {type(error).__name__}: {one_line(error)}"
        said = f"{record.slide_id}: {record.file}: {said}"
        return Failed(record.slide_id, said, None if changed else traceback.format_exc())


def _tiled(
    record: SlideRecord,
    spec: CacheSpec,
    path: Path,
    stamp: tuple[int, ...],
    *,
    overwrite: bool,
    threads: int,
    wait: bool,
) -> Tiled | Kept:
    """`tile_slide`, where every failure is raised."""
    start = time.monotonic()
    with open_record(record, spec) as reader:
        given, spec = given_tiles(reader.info, record, spec)
        if path.exists() and not overwrite:
            return _kept(path, reader.info, record, spec, given)
        with claimed(path, wait=wait) as beside:
            if path.exists() and not overwrite:  # finished by another process just now
                return _kept(path, reader.info, record, spec, given)
            refuse_to_replace(path)
            refuse_another_kind(path, FORMAT)
            decided = decide(reader, record, spec, given)
            written = _write(beside, reader, decided, threads)
            _check_unchanged(record.file, stamp, decided.info)
            put_in_place(beside, path)
    return Tiled(
        record.slide_id,
        path,
        num_patches=len(decided.plan) - written.num_dropped,
        num_bytes=written.num_bytes,
        num_dropped=written.num_dropped,
        reader=decided.info.reader,
        pixel_path=decided.pixels.path,
        level=decided.pixels.level,
        mpp_um=decided.plan.spec.mpp_um,
        seconds=time.monotonic() - start,
        notes=(*slide_notes(decided), *written.notes),
    )


def estimate_bytes(decided: SlidePlan, *, sample: int = 8) -> int:
    """Bytes that the slide's patches will take, estimated from `sample` of them.

    Raises:
        SlideError: If the slide cannot be opened or read.
    """
    plan = decided.plan
    if not len(plan):
        return 0
    some = plan.take(np.unique(np.linspace(0, len(plan) - 1, sample).astype(int)))
    with open_record(decided.record, decided.spec) as reader:
        patches = slide_patches(reader, replace(decided, plan=some), 1)
        sizes = [len(patch.jpeg) for patch in patches if isinstance(patch, Patch)]
    return round(float(np.mean(sizes or 0)) * len(plan))


def named(record: SlideRecord, error: WsiDbpsError) -> str:
    """What went wrong with a slide, in one line that begins with the slide and its file, each named once."""
    text = str(error)
    if isinstance(error, SlideError) and record.file is not None and str(record.file) not in text:
        text = f"{record.file}: {text}"
    return f"{record.slide_id}: {text}"


def _stamp(file: SlideFile | None) -> tuple[int, ...]:
    """What the file system says of a local file that changes with its content; nothing of a URL."""
    if not isinstance(file, Path):
        return ()
    try:
        found = file.stat()
    except OSError:  # opening it will say what is wrong with it
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_unchanged(file: SlideFile | None, stamp: tuple[int, ...], info: SlideInfo) -> None:
    """Refuse a slide that was replaced or written to since `stamp` was taken: pixels and fingerprint may not match."""
    if file is None:
        return
    if _stamp(file) != stamp:
        raise SlideError(f"{file}: {_CHANGED}")
    check_unchanged(info, file)


@dataclass(frozen=True)
class _Written:
    num_bytes: int
    num_dropped: int
    notes: tuple[str, ...]


def _write(beside: Path, reader: SlideReader, decided: SlidePlan, threads: int) -> _Written:
    """Write the whole cache to `beside` as the patches come."""
    plan, spec = decided.plan, decided.spec
    bad: dict[int, str] = {}
    measures = []
    head = _head(decided)
    writer = CacheWriter(beside, head)
    try:
        for i, patch in enumerate(slide_patches(reader, decided, threads)):
            if isinstance(patch, Patch):
                writer.add(patch.jpeg, patch.crc32)
                if spec.qc:
                    measures.append(patch.measures)
                continue
            bad[i] = patch.why
            if len(bad) > max(spec.max_damaged * len(plan), 0):
                raise UnreadableSlideError(_too_damaged(bad, plan, spec))
        keep_N = np.ones(len(plan), np.bool_)
        keep_N[list(bad)] = False
        kept = plan.take(keep_N)
        writer.finish(
            replace(
                head,
                grid=kept.grid,
                tissue_N=kept.tissue_N,
                quality=as_arrays(measures) if spec.qc else {},
                dropped_N2=plan.grid.origins_lv0[~keep_N],
            )
        )
    finally:
        writer.close()
    said = f"{len(bad)} of {len(plan)} tiles could not be decoded and were left out; the first:"
    return _Written(writer.num_bytes, len(bad), tuple(f"{said} {why}" for why in [*bad.values()][:1]))


def _head(decided: SlidePlan) -> CacheHead:
    """What the cache holds besides its patches, if no tile is dropped."""
    return CacheHead(
        decided.plan.grid,
        decided.plan.tissue_N,
        decided.provenance,
        to_dict(decided.spec),
        decided.pixels,
        encode_jpeg(decided.thumbnail_HWC, 90),
        decided.mask.mask_HW,
        decided.info.icc_profile,
        profile_name(decided.info.icc_profile),
        bool(decided.info.icc_profile) and decided.spec.icc == "srgb",
    )


def _too_damaged(bad: dict[int, str], plan: TilePlan, spec: CacheSpec) -> str:
    first = next(iter(bad.values()))
    if not spec.max_damaged:
        return first
    most = f"more than {spec.max_damaged:.3g} of its {len(plan)} tiles"
    return f"{most} cannot be decoded (--max-damaged); the first: {first}"


def _kept(path: Path, info: SlideInfo, record: SlideRecord, spec: CacheSpec, given: GivenCoords | None) -> Kept:
    """The outcome for a cache that is there and fits; one that does not fit is an error naming what differs."""
    cache = PatchCache(path)
    mpp_um, provenance = provenance_of(info, record, given)
    made_with = build(CacheSpec, dict(cache.facts.spec), str(path))  # settings that came later have their defaults
    now = record.mask or record.extra.get("tissue") or "none"
    mask_said = f"the manifest's mask or tissue was another one than {now}"
    differ = differences(
        _flat(to_dict(made_with)) | _inputs(cache.slide_id, cache.grid.mpp_lv0_um, cache.facts),
        _flat(to_dict(spec)) | _inputs(record.slide_id, mpp_um, provenance),
        words={
            "slide_fingerprint": f"the slide file was another one than {record.file}",
            "mask_fingerprint": mask_said if given is None else f"its tiles are not those of {given.path}",
        },
    )
    refuse_others(f"{path} was made otherwise", differ, "pass --overwrite, or another --out folder")
    return Kept(record.slide_id, path, num_patches=len(cache))


def _inputs(slide_id: str, mpp_lv0_um: float, of: Provenance | CacheFacts) -> dict[str, Any]:
    """What else than the settings decides the content of a cache, by the name that an error gives it."""
    fingerprints = {"slide_fingerprint": of.slide_fingerprint, "mask_fingerprint": of.mask_fingerprint}
    return {"slide_id": slide_id, "mpp_level0": mpp_lv0_um} | fingerprints


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat
