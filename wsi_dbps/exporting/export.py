"""A cache's patches as files for other tools, a folder of JPEG or PNG, or a TAR; see docs/formats/export.md."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from wsi_dbps.cohort.names import same_file_key, why_unsafe
from wsi_dbps.core.errors import CacheError, ForeignFileError, ManifestError, SpecMismatchError
from wsi_dbps.core.files import BusyError, claimed, folder_written_whole, put_in_place, write_json
from wsi_dbps.core.ownership import refuse_to_replace
from wsi_dbps.core.settings import settings
from wsi_dbps.core.version import __version__
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.reuse import is_kept

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.core.files import PathLike

TABLE: Final = "coordinates.csv"
FACTS: Final = "slide.json"
_CHUNK: Final = 64
"""Patches held in memory: 200 MB where they are decoded at 1024 px."""
_PNG_LEVEL: Final = 3
"""Of zlib: a third of the time of Pillow's own level 6, for 8 % more bytes."""
LABELS: Final = "labels.csv"
_KNOWN: Final = ("case_id", "label", "split")
_DECIDE: Final = ("slide_id", "cache_fingerprint", "format", "max_patches", "seed", *_KNOWN)


@settings
class ExportSpec:
    """Everything that decides what is exported from a cache."""

    format: Literal["jpeg", "png", "tar"]
    """`jpeg`: the cached files, unchanged. `png`: their pixels. `tar`: the cached files and a JSON beside each."""
    max_patches: int | None = None
    """At most so many patches of each slide, drawn at random; absent: all."""
    seed: int = 0
    """Of that draw."""

    def __post_init__(self) -> None:
        if self.max_patches is not None and self.max_patches < 1:
            raise ValueError(f"max_patches must be at least 1, found {self.max_patches}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, found {self.seed}")


@dataclass(frozen=True)
class ExportOutcome:
    """What became of one cache."""

    path: Path
    """The cache."""
    target: Path | None = None
    """The folder or TAR; None if there is none."""
    error: str | None = None
    """Why it failed, in one line, with the file."""
    num_patches: int = 0
    skipped: bool = False
    """Whether the export was there already, from the same cache with the same settings."""
    busy: bool = False
    """Whether another process was at it; it was left alone."""


def find_caches(paths: Iterable[PathLike]) -> list[Path]:
    """The cache files among `paths` and, by name, in the folders among them, each once.

    Raises:
        CacheError: If a path is not there, a folder has no cache, or two caches are of one slide.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise CacheError(f"{path}: no such cache or folder")
        caches = sorted(p for p in path.glob("*.h5") if not p.name.startswith(".")) if path.is_dir() else [path]
        if not caches:
            raise CacheError(f"{path}: no patch caches (*.h5) in this folder; run `wsi-dbps tile` first")
        found |= {cache.resolve(): cache for cache in caches}
    slides: dict[str, Path] = {}
    for cache in found.values():
        if (other := slides.setdefault(same_file_key(cache.stem), cache)) != cache:
            raise CacheError(f"{other} and {cache} are of one slide; export them one by one, each to its own --out")
    return list(found.values())


def records_of(paths: Iterable[Path], cohort: Cohort) -> dict[str, SlideRecord]:
    """The rows of a manifest for these caches, by slide id; which slide a cache holds its name says.

    Raises:
        ManifestError: If the manifest lacks a slide.
    """
    records = {record.slide_id: record for record in cohort.records}
    if missing := [path.stem for path in paths if path.stem not in records]:
        raise ManifestError(
            f"--labels: {len(missing)} of the slides to export are not in the manifest: {', '.join(missing[:5])}"
            f"{' ...' * (len(missing) > 5)}; add their rows, or name the caches to export one by one"
        )
    return records


def write_labels(out: Path, cohort: Cohort) -> Path:
    """Write OUT/labels.csv, a row for each slide of the cohort that is exported there, and return its path.

    Raises:
        OutputError: If it cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("slide_id", *_KNOWN))
    for record in cohort.records:
        if (out / record.slide_id / FACTS).exists() or (out / f"{record.slide_id}.tar").exists():
            rows.writerow((record.slide_id, *(getattr(record, name) or "" for name in _KNOWN)))
    with claimed(out / LABELS, wait=True) as beside:  # several runs may end at once
        beside.write_text(text.getvalue(), encoding="utf-8", newline="")
        put_in_place(beside, out / LABELS)
    return out / LABELS


def export_caches(
    paths: Sequence[PathLike],
    out: PathLike,
    spec: ExportSpec,
    *,
    records: Mapping[str, SlideRecord] | None = None,
    overwrite: bool = False,
    threads: int = 1,
) -> Iterator[ExportOutcome]:
    """Outcomes of `export_cache` as they come; caches that another run is at are left for the end, and waited for.

    Raises:
        OutputError: If a file cannot be written.
    """
    busy = []
    for path in map(Path, paths):
        record = records[path.stem] if records else None
        outcome = export_cache(path, out, spec, record=record, overwrite=overwrite, threads=threads, wait=False)
        if outcome.busy:
            busy.append(path)
        else:
            yield outcome
    for path in busy:
        yield export_cache(path, out, spec, record=records[path.stem] if records else None, threads=threads)


def export_cache(
    path: PathLike,
    out: PathLike,
    spec: ExportSpec,
    *,
    record: SlideRecord | None = None,
    overwrite: bool = False,
    threads: int = 1,
    wait: bool = True,
) -> ExportOutcome:
    """Write one cache's patches to files, or say why not; only what is wrong with the output folder is raised.

    An export of the same cache with the same settings is left as it is. A cache without patches gives none.

    Args:
        path: The cache.
        out: Folder for the folder or TAR with the slide's name.
        spec: What to write.
        record: The slide's row of the manifest, whose case, label and split are written beside what is known of all
            its patches.
        overwrite: Replace an export that is there already; nothing else is ever replaced.
        threads: How many files are encoded and written at a time.
        wait: If another process is at this slide, wait for it and keep what it made; else `busy`.

    Raises:
        OutputError: If a file cannot be written, for instance for want of space.
    """
    path, out = Path(path), Path(out)
    try:
        cache = PatchCache(path)
        _check_names(cache)
        is_tar = spec.format == "tar"
        target = out / (f"{cache.slide_id}.tar" if is_tar else cache.slide_id)
        ids, facts = _chosen(cache, spec), _facts(cache, spec, record)
        if not ids:
            if target.exists():
                raise SpecMismatchError(f"{target} holds patches, and {path} has none; delete it")
            return ExportOutcome(path)
        kept = ExportOutcome(path, target, num_patches=len(ids), skipped=True)
        if _is_kept(target, facts, overwrite=overwrite):
            return kept
        with claimed(target if is_tar else out / f".{cache.slide_id}", wait=wait) as beside:
            if _is_kept(target, facts, overwrite=overwrite):  # finished by another process just now
                return kept
            refuse_to_replace(target)
            if is_tar:
                _write_tar(beside, cache, ids, facts)
                put_in_place(beside, target)
            else:
                with folder_written_whole(target) as folder:
                    _write_folder(folder, cache, ids, facts, threads)
    except BusyError:
        return ExportOutcome(path, busy=True)
    except (CacheError, ForeignFileError) as error:
        return ExportOutcome(path, error=str(error))
    return ExportOutcome(path, target, num_patches=len(ids))


def sample_key(slide_id: str, x: int, y: int) -> str:
    """A patch's key in a TAR: no dot, at which WebDataset would cut it, and no two patches with the same.

    Examples:
        >>> sample_key("TCGA-1.8F5C", 1024, 0)
        'TCGA-1%2E8F5C_x1024_y0'
    """
    return f"{slide_id.replace('%', '%25').replace('.', '%2E')}_x{x}_y{y}"


def _check_names(cache: PatchCache) -> None:
    """Refuse what would give files wrong names, or two patches one."""
    if why := why_unsafe(cache.slide_id):
        raise CacheError(f"{cache.path}: slide id {cache.slide_id!r} cannot name files: {why}; tile again")
    if same_file_key(cache.slide_id) != same_file_key(cache.path.stem):
        raise CacheError(f"{cache.path}: the patches are those of slide {cache.slide_id}; name it {cache.slide_id}.h5")
    if len(np.unique(cache.grid.origins_lv0, axis=0)) < len(cache):
        raise CacheError(f"{cache.path}: two patches lie at one place; delete it and tile again")


def _chosen(cache: PatchCache, spec: ExportSpec) -> list[int]:
    """Rows to export, in the cache's order."""
    rows = np.arange(len(cache))
    if spec.max_patches is not None and spec.max_patches < len(rows):
        rows = np.sort(np.random.default_rng(spec.seed).choice(rows, spec.max_patches, replace=False))
    return [int(row) for row in rows]


def _facts(cache: PatchCache, spec: ExportSpec, record: SlideRecord | None) -> dict[str, Any]:
    """What holds for all patches of a slide."""
    known = {} if record is None else {name: getattr(record, name) for name in _KNOWN}
    return known | {
        "slide_id": cache.slide_id,
        "mpp": cache.grid.mpp_um,
        "patch_size": cache.grid.size_px,
        "patch_size_level0": cache.grid.tile_lv0,
        "mpp_level0": cache.grid.mpp_lv0_um,
        "slide_size": [cache.grid.slide_lv0.width, cache.grid.slide_lv0.height],
        "cache_fingerprint": cache.fingerprint,
        "format": spec.format,
        "max_patches": spec.max_patches,
        "seed": None if spec.max_patches is None else spec.seed,
        "wsi_dbps_version": __version__,
    }


def _places(cache: PatchCache, ids: Sequence[int]) -> Iterator[tuple[int, int, float]]:
    """(x, y, tissue) of each patch, with as many digits as tell the stored float32."""
    for i in ids:
        x, y = cache.grid.origins_lv0[i]
        yield int(x), int(y), float(str(cache.tissue_N[i]))


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))


def _is_kept(target: Path, facts: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether there is an export that stays; one that differs, and what is no export, is an error."""
    if not target.exists():
        return False
    asked = {name: facts.get(name) for name in _DECIDE}
    made = _made_with(target)
    found = {name: made.get(name) for name in _DECIDE}
    return is_kept(target, found, asked, "pass --overwrite, or another --out folder", overwrite=overwrite)


def _made_with(target: Path) -> dict[str, Any]:
    try:
        if target.is_dir():
            text = (target / FACTS).read_bytes()
        else:
            with tarfile.open(target, "r:") as archive:
                members = [archive.next(), archive.next()]
                file = archive.extractfile(members[1]) if members[1] is not None else None
                text = file.read() if file is not None else b""
        made = json.loads(text)
    except (OSError, tarfile.TarError, ValueError):
        made = None
    if not isinstance(made, dict) or "cache_fingerprint" not in made:
        raise SpecMismatchError(f"{target}: there already, and no export; remove it, or name another --out folder")
    return made


def _write_folder(folder: Path, cache: PatchCache, ids: Sequence[int], facts: dict[str, Any], threads: int) -> None:
    as_png = facts["format"] == "png"
    ending = ".png" if as_png else ".jpg"

    def save(name: str, patch: bytes | npt.NDArray[np.uint8]) -> None:
        (folder / name).write_bytes(patch if isinstance(patch, bytes) else _png(patch))

    with open(folder / TABLE, "w", newline="", encoding="utf-8") as table, ThreadPoolExecutor(threads) as pool:
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("file", "x", "y", "tissue"))
        for chunk in _chunks(ids):
            places = list(_places(cache, chunk))
            names = [f"{cache.slide_id}_x{x}_y{y}{ending}" for x, y, _ in places]
            patches = cache.patches(chunk) if as_png else cache.jpegs(chunk)
            list(pool.map(save, names, patches))
            rows.writerows((name, *place) for name, place in zip(names, places, strict=True))
    write_json(folder / FACTS, facts)


def _write_tar(path: Path, cache: PatchCache, ids: Sequence[int], facts: dict[str, Any]) -> None:
    """Member by member, as `TarFile` would keep a record of each in memory."""
    with open(path, "wb") as file:
        for chunk in _chunks(ids):
            for (x, y, tissue), jpeg in zip(_places(cache, chunk), cache.jpegs(chunk), strict=True):
                key = sample_key(cache.slide_id, x, y)
                about = json.dumps({"x": x, "y": y, "tissue": tissue} | facts, ensure_ascii=False, allow_nan=False)
                file.write(_member(f"{key}.jpg", jpeg))
                file.write(_member(f"{key}.json", about.encode()))
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE))


def _member(name: str, content: bytes) -> bytes:
    """Header, content and padding of a TAR member that belongs to nobody, at the beginning of time."""
    head = tarfile.TarInfo(name)
    head.size = len(content)
    return head.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict") + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _png(patch_HWC: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(patch_HWC).save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()
