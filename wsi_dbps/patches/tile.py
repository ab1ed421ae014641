"""From slide files to patch caches: one slide is one function, a cohort is a map over it that collects outcomes."""

from __future__ import annotations

import tempfile
import time
import traceback
from concurrent.futures import BrokenExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_dbps.config import to_dict
from wsi_dbps.errors import OutputError, SlideError, SpecMismatchError, UnreadableSlideError, WsiDbpsError
from wsi_dbps.files import file_digest
from wsi_dbps.geometry import Size
from wsi_dbps.patches.cache import PatchCache, Provenance, encode_jpeg, write_cache
from wsi_dbps.patches.masks import read_mask
from wsi_dbps.slides.reader import open_slide
from wsi_dbps.slides.sampling import best_level, read_box, thumbnail
from wsi_dbps.tiling.plan import TilePlan, is_plausible, plan_tiles, resolve_mpp
from wsi_dbps.tiling.tissue import TissueMask, everywhere, segment_otsu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.patches.spec import CacheSpec
    from wsi_dbps.slides.reader import SlideInfo, SlideReader


MPP_DISAGREEMENT = 0.10
"""A manifest's mpp further than this share from the file's is said, as it is as often a slip as a correction."""


@dataclass(frozen=True)
class SlideOutcome:
    """What became of one slide."""

    slide_id: str
    path: Path | None
    """The cache; None if the slide failed."""
    error: str | None = None
    """Why it failed, in one line, with the slide and its file."""
    traceback: str | None = None
    """Where it failed, if that was not foreseen: a bug, here or in a decoder."""
    notes: tuple[str, ...] = ()
    """What a user should know about a slide that was tiled: that there is nothing on it, or that two mpp disagree."""
    num_patches: int = 0
    skipped: bool = False
    """Whether the cache was there already, made from the same slide with the same settings."""
    seconds: float = 0.0


@dataclass(frozen=True)
class SlidePlan:
    """All that is decided about a slide before its patches are read."""

    info: SlideInfo
    plan: TilePlan
    provenance: Provenance
    thumbnail_HWC: npt.NDArray[np.uint8]
    mask: TissueMask
    read_level: int


def cache_path(caches: Path, slide_id: str) -> Path:
    """Where a slide's cache lies."""
    return caches / f"{slide_id}.h5"


def tile_slide(record: SlideRecord, spec: CacheSpec, caches: Path, *, overwrite: bool = False) -> SlideOutcome:
    """Write one slide's cache, or say why not; only what is wrong with the output folder is raised.

    A cache made from the same slide with the same settings is left as it is. A slide whose failure was not foreseen
    fails alone too, with its traceback in the outcome.

    Raises:
        OutputError: If the cache cannot be written, for instance for want of space.
    """
    start = time.monotonic()
    path = cache_path(caches, record.slide_id)
    try:
        with _open(record, spec) as reader:
            if path.exists() and not overwrite:
                return _reuse(path, reader, record, spec)
            decided = _decide(reader, record, spec)
            _write(path, reader, decided, spec)
    except OutputError:
        raise
    except WsiDbpsError as error:
        return SlideOutcome(record.slide_id, None, named(record, error))
    except Exception as error:
        said = f"{record.slide_id}: {record.path}: unforeseen {type(error).__name__}: {' '.join(str(error).split())}"
        return SlideOutcome(record.slide_id, None, said, traceback.format_exc())
    return SlideOutcome(
        record.slide_id,
        path,
        notes=tuple(notes(decided)),
        num_patches=len(decided.plan),
        seconds=time.monotonic() - start,
    )


def tile_cohort(
    records: Sequence[SlideRecord],
    spec: CacheSpec,
    caches: Path,
    *,
    new_executor: Callable[[int], Executor],
    workers: int,
    overwrite: bool = False,
) -> Iterator[SlideOutcome]:
    """Outcomes of `tile_slide` over a cohort, as they come.

    A worker process that dies (killed for its memory, crashed in a decoder) takes its executor with it. The slides that
    may have been in work then get one executor each, which tells the one that kills it; the rest go on in a new one.

    Args:
        records: The slides.
        spec: What to make.
        caches: Folder to write to.
        new_executor: An executor of as many workers as it is told.
        workers: How many slides are tiled at a time.
        overwrite: Tile again what is there already.

    Raises:
        OutputError: If a cache cannot be written; slides not yet begun are then left alone.
    """
    waiting = list(records)
    while waiting:
        done = set()
        with new_executor(workers) as executor:
            for record, outcome in _mapped(executor, waiting, spec, caches, overwrite=overwrite):
                if outcome is not None:
                    done.add(record.slide_id)
                    yield outcome
        waiting = [record for record in waiting if record.slide_id not in done]
        suspects, waiting = waiting[:workers], waiting[workers:]  # work is begun in order
        for suspect in suspects:
            with new_executor(1) as executor:
                for record, outcome in _mapped(executor, [suspect], spec, caches, overwrite=overwrite):
                    yield outcome or SlideOutcome(
                        record.slide_id,
                        None,
                        f"{record.slide_id}: {record.path}: the process that tiled it was killed, perhaps for want of "
                        "memory, or crashed in the slide's decoder; try it alone, or with another --reader",
                    )


def _mapped(
    executor: Executor, records: Sequence[SlideRecord], spec: CacheSpec, caches: Path, *, overwrite: bool
) -> Iterator[tuple[SlideRecord, SlideOutcome | None]]:
    """Each slide with its outcome, as they come; None where the executor broke before there was one."""
    futures = {}
    try:
        for record in records:
            try:
                futures[executor.submit(tile_slide, record, spec, caches, overwrite=overwrite)] = record
            except BrokenExecutor:
                yield record, None
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except BrokenExecutor:
                outcome = None
            yield futures[future], outcome
    finally:
        for future in futures:
            future.cancel()


def plan_slide(record: SlideRecord, spec: CacheSpec) -> SlidePlan:
    """Decide a slide's tiles without writing anything.

    Raises:
        SlideError: If the slide cannot be opened or tiled.
    """
    with _open(record, spec) as reader:
        return _decide(reader, record, spec)


def estimate_bytes(record: SlideRecord, spec: CacheSpec, decided: SlidePlan, *, sample: int = 8) -> int:
    """Bytes that the slide's patches will take, from `sample` of them encoded."""
    if not len(decided.plan):
        return 0
    rows = np.unique(np.linspace(0, len(decided.plan) - 1, sample).astype(int))
    with _open(record, spec) as reader:
        sizes = [len(encode_jpeg(_patch(reader, decided, int(i)), spec.quality)) for i in rows]
    return round(float(np.mean(sizes)) * len(decided.plan))


def notes(decided: SlidePlan) -> Iterator[str]:
    """What a user should know about a slide before relying on its patches."""
    plan, file_um = decided.plan, decided.info.mpp_um
    known_um = file_um if file_um is not None and is_plausible(file_um) else plan.mpp_lv0_um
    if abs(plan.mpp_lv0_um / known_um - 1) > MPP_DISAGREEMENT:
        yield f"the manifest says {plan.mpp_lv0_um:g} µm/px and the file {file_um:.4g}; the manifest is believed"
    if len(plan):
        return
    if min(plan.slide_lv0.width, plan.slide_lv0.height) < plan.tile_lv0:
        yield f"smaller ({plan.slide_lv0} px) than one tile of {plan.tile_lv0:g} px; no patches"
    elif not decided.mask.mask_HW.any():
        yield "no tissue found; no patches"
    else:
        yield f"no tile holds a share of {plan.spec.min_tissue:g} of tissue; no patches"


def named(record: SlideRecord, error: WsiDbpsError) -> str:
    """What went wrong with a slide, in one line, the slide and its file at the front, once."""
    text = str(error)
    if isinstance(error, SlideError) and record.path is not None and str(record.path) not in text:
        text = f"{record.path}: {text}"
    return f"{record.slide_id}: {text}"


def _open(record: SlideRecord, spec: CacheSpec) -> SlideReader:
    if record.url is not None:
        raise UnreadableSlideError(f"{record.url}: only local files are read; copy or mount it")
    if record.path is None:
        raise UnreadableSlideError("no path in the manifest")
    return open_slide(record.path, spec.reader)


def _decide(reader: SlideReader, record: SlideRecord, spec: CacheSpec) -> SlidePlan:
    info = reader.info
    mpp_um, provenance = _provenance(info, record)
    picture = thumbnail(reader, spec.thumbnail_px)
    if record.mask is not None:
        mask = read_mask(record.mask, info.size_lv0, Size(picture.shape[1], picture.shape[0]))
    elif spec.tiling.tissue == "otsu":
        mask = segment_otsu(picture, info.size_lv0, mpp_um)
    else:
        mask = everywhere(info.size_lv0)
    plan = plan_tiles(mask, mpp_um, spec.tiling)
    level = best_level(info.levels, plan.tile_lv0 / spec.tiling.size_px)
    return SlidePlan(info, plan, provenance, picture, mask, level)


def _provenance(info: SlideInfo, record: SlideRecord) -> tuple[float, Provenance]:
    mpp_um, source = resolve_mpp(record.slide_id, record.mpp_um, info.mpp_um)
    try:
        mask_fingerprint = file_digest(record.mask) if record.mask is not None else ""
    except OSError as error:
        raise SlideError(f"mask {record.mask}: cannot be read: {error.strerror}") from None
    return mpp_um, Provenance(record.slide_id, info.fingerprint, info.vendor, info.reader, source, mask_fingerprint)


def _write(path: Path, reader: SlideReader, decided: SlidePlan, spec: CacheSpec) -> None:
    """Spool the patches, whose total size is known only at the end, then lay everything out in one file."""
    offsets = [0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as blob:
            for i in range(len(decided.plan)):
                offsets.append(offsets[-1] + blob.write(encode_jpeg(_patch(reader, decided, i), spec.quality)))
            write_cache(
                path,
                plan=decided.plan,
                provenance=decided.provenance,
                spec=to_dict(spec),
                blob=blob,
                offsets=offsets,
                thumbnail_HWC=decided.thumbnail_HWC,
                tissue_mask_HW=decided.mask.mask_HW,
            )
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _patch(reader: SlideReader, decided: SlidePlan, i: int) -> npt.NDArray[np.uint8]:
    plan = decided.plan
    x, y = (float(v) for v in plan.origins_lv0[i])
    box_lv0 = (x, y, x + plan.tile_lv0, y + plan.tile_lv0)
    return read_box(reader, decided.read_level, box_lv0, Size(plan.spec.size_px, plan.spec.size_px))


def _reuse(path: Path, reader: SlideReader, record: SlideRecord, spec: CacheSpec) -> SlideOutcome:
    """The outcome for a cache that is there and fits; one that does not fit is an error naming what differs."""
    cache = PatchCache(path)
    mpp_um, provenance = _provenance(reader.info, record)
    asked = _flat(to_dict(spec)) | {"slide_id": record.slide_id, "mpp_level0": mpp_um}
    found = _flat(cache.spec) | {name: cache.attrs[name] for name in ("slide_id", "mpp_level0")}
    differ = [f"{k} is {found.get(k)!r} in it, {v!r} asked" for k, v in asked.items() if found.get(k) != v]
    if cache.attrs["slide_fingerprint"] != provenance.slide_fingerprint:
        differ.append(f"the slide file was another one than {record.path}")
    if cache.attrs["mask_fingerprint"] != provenance.mask_fingerprint:
        differ.append(f"the mask was another one than {record.mask or 'none'}")
    if differ:
        raise SpecMismatchError(
            f"{path} was made otherwise: {'; '.join(differ)}; pass --overwrite, or another --out folder"
        )
    return SlideOutcome(record.slide_id, path, num_patches=len(cache), skipped=True)


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat
