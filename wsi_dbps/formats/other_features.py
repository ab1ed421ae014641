"""Features as TRIDENT, CLAM and STAMP lay them out beside our own: what their attributes say, and where they lie.

Source: what the tools' own writers write. Ours is TRIDENT's layout with attributes of the file in addition.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from wsi_dbps.core.errors import CacheError
from wsi_dbps.core.geometry import Size
from wsi_dbps.formats.hdf5 import h5_written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import h5py

    from wsi_dbps.formats.patch_cache import PatchCache

FORMAT: Final = "wsi-dbps features"
FORMAT_VERSION: Final = 1
STAMP_VERSION: Final = "2.0.0"
"""Said to have written files in STAMP's layout: STAMP refuses files of a version later than its own."""
REPAIR: Final = "delete it and make the features again"
_REQUIRED: Final = ("slide_id", "slide_size", "mpp_level0", "patch_size_level0", "encoder", "encoder_fingerprint",
                    "fingerprint")  # fmt: skip
_LENGTHS: Final = ("patch_size_level0", "tile_size_um", "mpp_level0", "level0_width", "level0_height")
_SIDE_TOLERANCE: Final = 0.05
_TRIDENT_PLACES: Final = ("features_*", "*_overlap/features_*")
_TRIDENT_TILES: Final = "*_overlap/patches"


@dataclass(frozen=True)
class FeatureFacts:
    """What a file of features says of itself and its slide; what it does not say is None."""

    layout: Literal["ours", "TRIDENT", "CLAM", "STAMP"]
    slide_id: str | None
    encoder: str
    """What made the features: ours by name and weights, TRIDENT's and STAMP's by name, empty where not known."""
    fingerprint: str | None
    """Of our own alone."""
    in_um: bool
    """Whether coordinates are in µm, and not in level-0 pixels."""
    tile_lv0: float | None
    tile_um: float | None
    slide_lv0: Size | None
    mpp_lv0_um: float | None
    size_px: int | None
    """Side of the patches that the features were made from."""
    mpp_um: float | None
    """µm per pixel of these patches."""


def feature_facts(path: Path, a: Mapping[str, Any]) -> FeatureFacts:
    """The attributes of a file of features as what they mean.

    Args:
        path: The file, for an error.
        a: The attributes of the coordinates, the features and the file; of the same name the last.

    Raises:
        CacheError: If they are of another format or version, lack something of ours, or contradict each other.
    """
    _check_format(path, a)
    _check_lengths(path, a)
    _check_tile_side(path, a)
    ours = a.get("format") == FORMAT
    name = str(a.get("encoder", a.get("extractor", "")))
    is_stamp = "unit" in a or "tile_size_um" in a
    return FeatureFacts(
        layout="ours" if ours else "STAMP" if is_stamp else "TRIDENT" if "patch_size_level0" in a else "CLAM",
        slide_id=a.get("slide_id"),
        encoder=f"{name} {a['encoder_fingerprint']}" if ours else name,
        fingerprint=str(a["fingerprint"]) if ours else None,
        in_um=a.get("unit") == "um",
        tile_lv0=_number(a, "patch_size_level0"),
        tile_um=_number(a, "tile_size_um"),
        slide_lv0=_slide_size(a),
        mpp_lv0_um=_number(a, "mpp_level0"),
        size_px=_whole(a, "patch_size_px", "patch_size", "tile_size_px"),
        mpp_um=_number(a, "mpp_patch"),
    )


def _check_format(path: Path, a: Mapping[str, Any]) -> None:
    if (found := a.get("format")) == FORMAT:
        if (version := a.get("format_version")) != FORMAT_VERSION:
            raise CacheError(f"{path}: features of version {version}, and this wsi-dbps reads {FORMAT_VERSION}")
        if missing := [name for name in _REQUIRED if name not in a]:
            raise CacheError(f"{path}: attributes {', '.join(missing)} missing; {REPAIR}")
    elif found is not None:
        raise CacheError(f"{path}: a {found}, and no file of features")


def _check_lengths(path: Path, a: Mapping[str, Any]) -> None:
    for name in _LENGTHS:
        if name in a and not _is_length(a[name]):
            raise CacheError(f"{path}: {name} is {a[name]!r}, not a positive number; {REPAIR}")
    size = np.ravel(a.get("slide_size", (1, 1)))
    if len(size) != 2 or not all(_is_length(side) for side in size):
        raise CacheError(f"{path}: slide_size is {a['slide_size']!r}, not width and height; {REPAIR}")


def _check_tile_side(path: Path, a: Mapping[str, Any]) -> None:
    """Refuse a tile side that the file's own resolutions contradict."""
    found = a.get("patch_size_level0")
    for size, factor, divisor in (
        ("patch_size_px", "mpp_patch", "mpp_level0"),  # ours
        ("patch_size", "level0_magnification", "target_magnification"),  # TRIDENT's
    ):
        values: list[Any] = [a.get(name) for name in (size, factor, divisor)]
        if found is None or not all(_is_length(value) for value in values):
            continue
        expected = float(values[0]) * float(values[1]) / float(values[2])
        if abs(float(found) - expected) > max(1.0, _SIDE_TOLERANCE * expected):
            raise CacheError(
                f"{path}: patch_size_level0 is {float(found):g}, but {size} x {factor} / {divisor} = "
                f"{expected:g}; {REPAIR}"
            )


def _slide_size(a: Mapping[str, Any]) -> Size | None:
    for names in (("slide_size",), ("level0_width", "level0_height")):
        if all(name in a for name in names):
            return Size(*(int(side) for side in np.concatenate([np.ravel(a[name]) for name in names])))
    return None


def _number(a: Mapping[str, Any], name: str) -> float | None:
    return float(a[name]) if _is_length(a.get(name)) else None


def _whole(a: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is there, if it is a length."""
    value = next((a[name] for name in names if name in a), None)
    return int(value) if value is not None and _is_length(value) else None


def _is_length(value: Any) -> bool:
    """Whether an attribute is one positive finite number."""
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf" and 0 < float(value) < np.inf


@contextmanager
def stamp_written(path: Path, cache: PatchCache, dim: int, made: Mapping[str, str | int]) -> Iterator[h5py.Dataset]:
    """Yield the (N, D) float16 rows to fill of a file in STAMP's layout; else as `features_written`.

    What decides the rows is kept as JSON in an attribute that STAMP does not read.

    Raises:
        OutputError: If it cannot be written.
    """
    about = {**made, "cache_fingerprint": cache.fingerprint, "slide_id": cache.slide_id}
    with h5_written_whole(path, size=len(cache) * (dim * 2 + 8)) as file:
        rows = file.create_dataset("feats", (len(cache), dim), np.float16)
        file["coords"] = (cache.grid.origins_lv0 * cache.grid.mpp_lv0_um).astype(np.float32)
        file.attrs.update(
            stamp_version=STAMP_VERSION,
            extractor=made["encoder"],
            unit="um",
            tile_size_um=cache.grid.tile_lv0 * cache.grid.mpp_lv0_um,
            tile_size_px=cache.grid.size_px,
            code_hash="",
            feat_type="tile",
            wsi_dbps=json.dumps(about),
        )
        yield rows


def find_bag(caches: Path, slide_id: str) -> Path:
    """The slide's file in a folder, or in a folder of another tool; where there is none, where it would be."""
    name = f"{slide_id}.h5"
    if (path := caches / name).exists():
        return path
    if (clam := caches / "h5_files" / name).exists():
        return clam
    jobs = sorted({folder for place in _TRIDENT_PLACES for folder in caches.glob(place) if folder.is_dir()})
    holding = [folder for folder in jobs if (folder / name).exists()]
    if len(jobs) == 1:
        return jobs[0] / name
    if jobs:
        which = ", ".join(map(str, holding or jobs))
        raise CacheError(f"{caches}: a TRIDENT job with {len(jobs)} folders of features; give --caches one: {which}")
    if sorted(caches.glob(_TRIDENT_TILES)):
        raise CacheError(
            f"{caches}: a TRIDENT job with coordinates and no features; make features with TRIDENT, or cut its tiles "
            f"with `wsi-dbps tile COHORT.csv --coords {caches} --out CACHES` and give --caches CACHES"
        )
    for where in (caches, caches / "tile_embeddings"):
        if any((where / f"{slide_id}{ending}").exists() for ending in (".meta.json", ".npz")):
            raise CacheError(
                f"{where}: tile embeddings of slide2vec, a layout that is not read; cut its tiles with `wsi-dbps tile "
                "COHORT.csv --coords FOLDER --out CACHES`, FOLDER being its output folder that holds tiles/, and give "
                "--caches CACHES, or CACHES embedded with `wsi-dbps embed`"
            )
    for lone in (path.with_suffix(".pt"), caches / "pt_files" / f"{slide_id}.pt"):
        if lone.exists():
            raise CacheError(
                f"{lone}: features without coordinates, which are needed too; give --caches the folder that holds "
                "CLAM's h5_files, or embed the slides with `wsi-dbps embed`"
            )
    return path
