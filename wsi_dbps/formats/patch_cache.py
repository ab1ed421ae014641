"""One slide's patches in one HDF5 file, read from many threads and processes at once.

Written by `cache_writer.py`. Documented in docs/formats/patch-cache.md.
"""

from __future__ import annotations

import json
import os
import zlib
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import simplejpeg

from wsi_dbps.core.digests import digest
from wsi_dbps.core.errors import CacheError, one_line
from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.formats.hdf5 import plain, reading, why_not_stored
from wsi_dbps.formats.spec import FORMAT, FORMAT_VERSION, MAX_JPEG_SIDE, REQUIRED_ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import h5py
    import numpy.typing as npt

    from wsi_dbps.core.files import PathLike

_REPAIR: Final = "delete it and tile again"
_LEAST_JPEG_BYTES: Final = 100
"""Fewer than any JPEG file has: so many patches may a cache have at most, and so much memory may they take."""
_MOST_PIXELS: Final = 1 << 28
"""Most pixels of a thumbnail or a mask: 800 MB as RGB."""
_SIZE_TOLERANCE: Final = 0.01
"""How far a tile's side may be from what patch side and resolutions make of it, as a share."""
_DATASETS: Final = ("coords", "tissue", "patches/offsets", "patches/data")
_MISFIT: Final = "offsets, coordinates and patches do not fit each other"


@dataclass(frozen=True)
class CacheFacts:
    """What a cache says of itself, in its attributes; sizes and resolutions are in its grid."""

    format_version: int
    wsi_dbps_version: str
    """Of the package that wrote it."""
    slide_id: str
    """Whose patches these are."""
    slide_fingerprint: str
    vendor: str
    reader: str
    """The reader that opened the slide."""
    mpp_source: str
    """Who says the slide's mpp: `file` or `manifest`."""
    mask_fingerprint: str
    """As in `Provenance`."""
    jpeg_origin: str
    """`scanner` or `encoded`."""
    jpeg_quality: int
    pixel_path: str
    """As in `PixelSource`; empty in the first caches."""
    read_level: int | None
    """Stored level that the pixels are from; None in the first caches."""
    icc_profile: str
    """Name of the slide's own profile; empty where it has none."""
    icc_applied: bool
    """Whether the patches were turned into sRGB by it."""
    spec: Mapping[str, Any]
    """The `CacheSpec` it was made with, as plain values."""
    fingerprint: str
    """Tells caches of another slide or other settings apart."""


class PatchCache:
    """A checked cache. It holds no open file, and any number of threads and processes may read it at once."""

    grid: TileGrid
    """Where the patches lie."""
    tissue_N: npt.NDArray[np.float32]
    """(N,) share of each tile that is tissue."""

    def __init__(self, path: PathLike) -> None:
        """Open and check a cache. What it claims to hold is checked before it is read: a damaged one takes no memory.

        Raises:
            CacheError: If the file is missing, is no cache, is of another version, or is damaged.
        """
        self.path = path = Path(path)
        missing = "no such cache; run `wsi-dbps tile` first"
        with reading(path, CacheError, "not a readable patch cache", _REPAIR, missing=missing) as file:
            attributes = {name: plain(value) for name, value in file.attrs.items()}
            _check_attributes(path, attributes)
            self.facts = _facts(path, attributes)
            if absent := [name for name in _DATASETS if name not in file]:
                raise CacheError(f"{path}: {', '.join(absent)} missing; {_REPAIR}")
            data = file["patches/data"]
            self._place, num_bytes = data.id.get_offset(), data.size
            if data.ndim != 1 or data.dtype != np.uint8:
                raise CacheError(f"{path}: /patches/data holds {data.dtype} {data.shape}, not bytes; {_REPAIR}")
            if (n := len(file["coords"])) * _LEAST_JPEG_BYTES > num_bytes:
                raise CacheError(f"{path}: {n} patches in {num_bytes} bytes cannot be; {_REPAIR}")
            self.grid = _grid(self._read(file, "coords", (n, 2)).astype(np.int64), attributes)
            self.tissue_N = self._read(file, "tissue", (n,), "f").astype(np.float32)
            offsets: npt.NDArray[np.int64] = self._read(file, "patches/offsets", (n + 1,)).astype(np.int64)
            has_crc = "patches/crc32" in file
            crc32_N = self._read(file, "patches/crc32", (n,)).astype(np.uint32) if has_crc else None
            length = path.stat().st_size
        if self._place is None and num_bytes:
            raise CacheError(f"{path}: /patches/data is not one contiguous block; {_REPAIR}")
        if (cut := (self._place or 0) + num_bytes - length) > 0:
            raise CacheError(f"{path}: the file is cut short by {cut} bytes; {_REPAIR}")
        self._check_values(offsets, num_bytes)
        self._starts, self._ends, self._crc32 = offsets[:-1], offsets[1:], crc32_N
        self._rows, self._num_stored = np.arange(n), n
        self._fingerprint = self.facts.fingerprint

    def _read(
        self, file: h5py.File, name: str, shape: tuple[int | None, ...], kinds: str = "iu", most: int | None = None
    ) -> npt.NDArray[Any]:
        """A dataset, if it holds numbers of these kinds in this shape, not too many, and all are in the file."""
        dataset = file[name]
        if dataset.dtype.kind not in kinds:
            what = "whole numbers" if kinds == "iu" else "numbers"
            raise CacheError(f"{self.path}: /{name} holds {dataset.dtype}, not {what}; {_REPAIR}")
        if dataset.ndim != len(shape) or any(b not in (None, a) for a, b in zip(dataset.shape, shape, strict=True)):
            raise CacheError(f"{self.path}: {_MISFIT}; {_REPAIR}")
        if most is not None and dataset.size > most:
            raise CacheError(f"{self.path}: /{name} claims {dataset.size} values, at most {most} can be; {_REPAIR}")
        if why := why_not_stored(dataset, self.path.stat().st_size):
            raise CacheError(f"{self.path}: /{name} {why}; {_REPAIR}")
        values: npt.NDArray[Any] = dataset[:]
        return values

    def _check_values(self, ends: npt.NDArray[np.int64], num_bytes: int) -> None:
        if ends[0] != 0 or ends[-1] != num_bytes or (np.diff(ends) < 0).any():
            raise CacheError(f"{self.path}: {_MISFIT}; {_REPAIR}")
        origins_lv0, size = self.grid.origins_lv0, self.grid.slide_lv0
        off_N = ((origins_lv0 < 0) | (origins_lv0 >= (size.width, size.height))).any(axis=1)
        if off_N.any():
            row = int(off_N.argmax())
            x, y = origins_lv0[row].tolist()
            raise CacheError(f"{self.path}: patch {row} lies at ({x}, {y}), off the slide of {size}; {_REPAIR}")
        if not ((self.tissue_N >= 0) & (self.tissue_N <= 1 + 1e-3)).all():
            raise CacheError(f"{self.path}: /tissue has values outside 0 .. 1; {_REPAIR}")

    def __len__(self) -> int:
        return len(self.grid)

    @property
    def slide_id(self) -> str:
        """Whose patches these are."""
        return self.facts.slide_id

    @property
    def fingerprint(self) -> str:
        """Tells caches of another slide or other settings apart, and other choices of a cache's patches."""
        return self._fingerprint

    @property
    def num_bytes(self) -> int:
        """Bytes of all its patches."""
        return int((self._ends - self._starts).sum())

    def only(self, keep_N: npt.NDArray[np.bool_], why: object) -> PatchCache:
        """The cache with some of its patches only; the file stays as it is.

        Args:
            keep_N: (N,) which patches to keep.
            why: What decided it, JSON-able: it becomes part of the fingerprint.
        """
        some = copy(self)
        some.grid, some.tissue_N, some._rows = self.grid.take(keep_N), self.tissue_N[keep_N], self._rows[keep_N]
        some._starts, some._ends = self._starts[keep_N], self._ends[keep_N]
        some._crc32 = self._crc32[keep_N] if self._crc32 is not None else None
        some._fingerprint = digest([self._fingerprint, why])
        return some

    def jpegs(self, ids: Sequence[int]) -> list[bytes]:
        """The named patches as complete JPEG files, in the order asked for.

        Raises:
            CacheError: If the file is gone, or a patch is not what was written.
        """
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise CacheError(f"{self.path}: cannot be read: {error.strerror}") from None
        try:
            return [self._jpeg(handle, i) for i in ids]
        finally:
            os.close(handle)

    def _jpeg(self, handle: int, i: int) -> bytes:
        start, end = int(self._starts[i]), int(self._ends[i])
        try:
            jpeg = os.pread(handle, end - start, self._place + start)
        except OSError as error:
            raise CacheError(f"{self.path}: patch {i} cannot be read: {error.strerror}") from None
        if len(jpeg) != end - start or (self._crc32 is not None and zlib.crc32(jpeg) != self._crc32[i]):
            raise CacheError(f"{self.path}: patch {i} is damaged: not the bytes that were written; {_REPAIR}")
        return jpeg

    def patches(self, ids: Sequence[int]) -> npt.NDArray[np.uint8]:
        """(n, P, P, 3) RGB pixels of the named patches, in the order asked for.

        Raises:
            CacheError: If a patch cannot be read or decoded.
        """
        side_px = self.grid.size_px
        out = np.empty((len(ids), side_px, side_px, 3), np.uint8)
        for row, (i, jpeg) in enumerate(zip(ids, self.jpegs(ids), strict=True)):
            try:
                pixels = simplejpeg.decode_jpeg(jpeg, buffer=out[row], strict=False)
            except ValueError as error:
                raise CacheError(f"{self.path}: patch {i} is damaged: {one_line(error)}; {_REPAIR}") from None
            if pixels.shape != out.shape[1:]:
                raise CacheError(f"{self.path}: patch {i} has shape {pixels.shape}, not {out.shape[1:]}; {_REPAIR}")
        return out

    def thumbnail(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) picture of the whole slide."""
        jpeg = self._dataset("thumbnail", (None,)).tobytes()
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(jpeg, strict=False)
            if height * width > _MOST_PIXELS:
                raise ValueError(f"{width} x {height} px, at most {_MOST_PIXELS} px can be")
            picture: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg)
        except ValueError as error:
            raise CacheError(f"{self.path}: the thumbnail is damaged: {one_line(error)}; {_REPAIR}") from None
        return picture

    def tissue_mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) tissue on a grid over the whole slide."""
        return self._dataset("tissue_mask", (None, None)).astype(np.bool_)

    def quality(self) -> dict[str, npt.NDArray[np.float32]]:
        """(N,) of each measure of the patches' quality; none where they were not asked for."""
        with reading(self.path, CacheError, "/qc cannot be read", _REPAIR) as file:
            names = list(file["qc"]) if "qc" in file else []
            rows = self._num_stored
            found = {name: self._read(file, f"qc/{name}", (rows,), "f").astype(np.float32) for name in names}
        return {name: values[self._rows] for name, values in found.items()}

    def dropped(self) -> npt.NDArray[np.int64]:
        """(n, 2) level-0 corners (x, y) of planned tiles that could not be decoded."""
        with reading(self.path, CacheError, "/dropped cannot be read", _REPAIR) as file:
            if "dropped" not in file:
                return np.empty((0, 2), np.int64)
            return self._read(file, "dropped", (None, 2), most=_MOST_PIXELS).astype(np.int64)

    def _dataset(self, name: str, shape: tuple[int | None, ...]) -> npt.NDArray[np.uint8]:
        with reading(self.path, CacheError, f"/{name} cannot be read", _REPAIR) as file:
            return self._read(file, name, shape, most=_MOST_PIXELS).astype(np.uint8)


def _check_attributes(path: Path, a: Mapping[str, Any]) -> None:
    """Refuse another format or version, and sizes and resolutions that are none or contradict each other."""
    found, version = a.get("format"), a.get("format_version")
    if found != FORMAT:
        is_what = "an HDF5 file without a format attribute" if found is None else f"a {found}"
        raise CacheError(f"{path}: {is_what}, not a patch cache; name another file or --out folder")
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{path}: patch cache of format version {version}, and this wsi-dbps reads {FORMAT_VERSION}; "
            "use the wsi-dbps that wrote it, or tile again"
        )
    if missing := [name for name in REQUIRED_ATTRIBUTES if name not in a]:
        raise CacheError(f"{path}: attributes {', '.join(missing)} missing; {_REPAIR}")
    for name in ("mpp_level0", "mpp_patch", "patch_size_px", "patch_size_level0", "slide_size"):
        values = np.asarray(a[name])
        fitting = values.shape == ((2,) if name == "slide_size" else ()) and values.dtype.kind in "fiu"
        fitting &= values.dtype.kind in "iu" or name not in ("patch_size_px", "slide_size")
        most = MAX_JPEG_SIDE if name == "patch_size_px" else np.finfo(np.float64).max
        if not fitting or not ((values > 0) & (values <= most)).all():
            raise CacheError(f"{path}: {name} is {a[name]!r}; {_REPAIR}")
    expected = a["patch_size_px"] * (a["mpp_patch"] / a["mpp_level0"])
    if not abs(a["patch_size_level0"] - expected) <= _SIZE_TOLERANCE * expected:
        raise CacheError(
            f"{path}: patch_size_level0 is {a['patch_size_level0']:g}, and by patch_size_px, mpp_patch and mpp_level0 "
            f"it would be {expected:g}; {_REPAIR}"
        )


def _facts(path: Path, a: Mapping[str, Any]) -> CacheFacts:
    """Checked attributes as what they mean; what the first caches did not say has its default."""
    if not isinstance(spec := json.loads(a["spec"]), dict):
        raise CacheError(f"{path}: spec is {a['spec']!r:.100}, not settings; {_REPAIR}")
    level = a.get("read_level")
    return CacheFacts(
        format_version=int(a["format_version"]),
        wsi_dbps_version=str(a["wsi_dbps_version"]),
        slide_id=str(a["slide_id"]),
        slide_fingerprint=str(a["slide_fingerprint"]),
        vendor=str(a["vendor"]),
        reader=str(a["reader"]),
        mpp_source=str(a["mpp_source"]),
        mask_fingerprint=str(a["mask_fingerprint"]),
        jpeg_origin=str(a["jpeg_origin"]),
        jpeg_quality=int(a["jpeg_quality"]),
        pixel_path=str(a.get("pixel_path", "")),
        read_level=None if level is None else int(level),
        icc_profile=str(a.get("icc_profile", "")),
        icc_applied=bool(a.get("icc_applied", False)),
        spec=spec,
        fingerprint=str(a["fingerprint"]),
    )


def _grid(origins_lv0: npt.NDArray[np.int64], a: Mapping[str, Any]) -> TileGrid:
    size = Size(*(int(side) for side in a["slide_size"]))
    tile_lv0, mpp_lv0_um, mpp_um = (float(a[name]) for name in ("patch_size_level0", "mpp_level0", "mpp_patch"))
    return TileGrid(origins_lv0, tile_lv0, size, mpp_lv0_um, int(a["patch_size_px"]), mpp_um)
