"""One slide's patches in one HDF5 file: writing it whole, and reading it from many threads and processes at once."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from array import array
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

import h5py
import numpy as np
import simplejpeg

from wsi_dbps.core import files
from wsi_dbps.core.digests import digest
from wsi_dbps.core.errors import CacheError, one_line
from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.formats.spec import FORMAT, FORMAT_VERSION, MAX_JPEG_SIDE, REQUIRED_ATTRIBUTES
from wsi_dbps.formats.stored import why_not_stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from wsi_dbps.tiling.plan import TilePlan

    Mask = npt.NDArray[np.bool_]


_REPAIR: Final = "delete it and tile again"
_WRITE_BYTES: Final = 4 << 20
_MOST_AT_ONCE: Final = 1024
"""Buffers that one call writes: the least that POSIX systems take."""
_RESERVE_BYTES: Final = 256 << 20
"""Most space to set aside beyond what is needed now."""
_LEAST_JPEG_BYTES: Final = 100
"""Fewer than any JPEG file has: so many patches may a cache have at most, and so much memory may they take."""
_MOST_PIXELS: Final = 1 << 28
"""Of a thumbnail and of a mask: 800 MB as RGB."""
_SIZE_TOLERANCE: Final = 0.01
"""How far a tile's side may be from what patch side and resolutions make of it, as a share."""
_DATASETS: Final = ("coords", "tissue", "patches/offsets", "patches/data")
_MISFIT: Final = "offsets, coordinates and patches do not fit each other"
_HDF5_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)
"""What h5py raises on damaged files and on objects of another kind than expected."""


@dataclass(frozen=True)
class Provenance:
    """Where a cache's pixels come from: with the spec, all that decides its content."""

    slide_id: str
    slide_fingerprint: str
    vendor: str
    reader: str
    mpp_source: str
    """`file` or `manifest`."""
    mask_fingerprint: str
    """Of the mask file that the manifest gave, or its word in the column `tissue`; empty where it gave neither. Of the
    tiles (`GivenCoords.fingerprint`), where another tool chose them."""


@dataclass(frozen=True)
class PixelSource:
    """How a slide's patches are had."""

    path: Literal["copy", "tiles", "reader"]
    """The scanner's JPEG tiles unchanged; out of these, decoded; or through the reader."""
    level: int
    """Stored level they are read from."""
    scale: int = 1
    """Each tile of it is decoded at 1 / scale of its size."""
    why: str = ""
    """Why they are not copied."""
    level_px: Size | None = None
    """Size of that level, if patches are its very pixels, neither shrunk nor enlarged."""


@dataclass(frozen=True)
class CacheHead:
    """All that a cache holds besides its patches."""

    plan: TilePlan
    """Row i is patch i."""
    provenance: Provenance
    spec: dict[str, Any]
    """The `CacheSpec` as plain values."""
    pixels: PixelSource
    thumbnail: bytes
    """Picture of the whole slide, a JPEG file."""
    mask_HW: Mask
    """Tissue on a grid over the whole slide, not necessarily the thumbnail's."""
    icc_profile: bytes = b""
    """Of the slide's own colours; empty where it has none."""
    icc_name: str = ""
    icc_applied: bool = False
    """Whether the patches were turned into sRGB by it."""
    quality: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """(N,) of each measure of the patches' quality, if they were asked for."""
    dropped_N2: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """(x, y) of planned tiles that could not be decoded."""


def encode_jpeg(patch_HWC: npt.NDArray[np.uint8], quality: int) -> bytes:
    """A baseline JPEG file with 4:2:0 chroma, by libjpeg-turbo."""
    pixels = np.ascontiguousarray(patch_HWC)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420"))


class CacheWriter:
    """Streams patches, whose total size is known only at the end, to where they will lie in the finished file.

    The head of the file (everything but the patches) is made last, beside, and laid in front of them: HDF5 gives the
    patches' place by its alignment rule, so every byte of a patch is written once.
    """

    def __init__(self, partial: Path, planned: CacheHead) -> None:
        """Begin.

        Args:
            partial: The file to write, which the caller holds and gives its name when it is whole.
            planned: The head, if no tile is dropped.
        """
        self._partial = partial
        needed = 64 * len(planned.plan) + len(planned.thumbnail) + planned.mask_HW.size + len(planned.icc_profile)
        needed += 1 << 16
        self._room = 1 << (needed - 1).bit_length()
        self._offsets, self._crc32 = array("Q", [0]), array("I")
        self._file = open(partial, "rb+", buffering=0)  # noqa: SIM115 - closed by `finish`
        self._file.seek(self._room)
        self._waiting: list[bytes] = []
        self._written = self._reserved = 0

    def add(self, jpeg: bytes, crc32: int) -> None:
        """Write the next patch, a complete JPEG file, and its CRC-32 (zlib's)."""
        self._waiting.append(jpeg)
        if self.num_bytes - self._written > _WRITE_BYTES:
            if (needed := self._room + self.num_bytes) > self._reserved:
                self._reserved = needed + min(self.num_bytes, _RESERVE_BYTES)
                files.reserve(self._file.fileno(), self._reserved)
            self._flush()
        self._offsets.append(self._offsets[-1] + len(jpeg))
        self._crc32.append(crc32)

    @property
    def num_bytes(self) -> int:
        """Bytes of all patches so far."""
        return self._offsets[-1]

    def finish(self, head: CacheHead) -> None:
        """Write all that is not patches; `head.plan` holds the tiles that were added."""
        with tempfile.TemporaryFile(dir=self._partial.parent) as beside:
            place = self._write_head(beside, head)
            end = beside.seek(0, os.SEEK_END)
            self._flush()
            with open(self._partial, "rb+") as target:
                if self.num_bytes and place != self._room:  # fewer bytes than the alignment looks at
                    target.seek(self._room)
                    blob = target.read(self.num_bytes)
                    target.seek(place)
                    target.write(blob)
                after = place + self.num_bytes
                for start, stop in ((0, min(place, end)), (after, end)):
                    beside.seek(start)
                    target.seek(start)
                    target.write(beside.read(max(0, stop - start)))
                target.truncate(end)
        self.close()

    def _flush(self) -> None:
        """Write what waits, without copying it once more."""
        self._written += sum(map(len, self._waiting))
        for first in range(0, len(self._waiting), _MOST_AT_ONCE):
            some = self._waiting[first : first + _MOST_AT_ONCE]
            written = os.writev(self._file.fileno(), some)
            if written < sum(map(len, some)):  # the system may stop short
                rest = memoryview(b"".join(some))[written:]
                while rest:
                    rest = rest[self._file.write(rest) :]
        self._waiting.clear()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _write_head(self, beside: BinaryIO, head: CacheHead) -> int:
        """The whole HDF5 file, with a hole in place of the patches; where the hole begins."""
        from wsi_dbps.core.version import __version__

        plan, provenance, spec, pixels = head.plan, head.provenance, head.spec, head.pixels
        aligned = {"alignment_threshold": self._room, "alignment_interval": self._room} if self.num_bytes else {}
        with h5py.File(beside, "w", locking=False, libver=("v110", "v110"), **aligned) as file:
            coords = file.create_dataset("coords", data=plan.grid.origins_lv0.astype(np.int64))
            coords.attrs.update(_interop_attributes(plan, provenance, pixels))
            file["tissue"] = plan.tissue_N.astype(np.float32)
            file["thumbnail"] = np.frombuffer(head.thumbnail, np.uint8)
            file.create_dataset("tissue_mask", data=head.mask_HW.astype(np.uint8), compression="gzip")
            if len(head.dropped_N2):
                file["dropped"] = head.dropped_N2
            if head.icc_profile:
                file["icc_profile"] = np.frombuffer(head.icc_profile, np.uint8)
            if head.quality:
                qc = file.create_group("qc")  # on the way to a dataset it would be made with a time stamp
                for name, values in head.quality.items():
                    qc[name] = values
            file.attrs.update(
                format=FORMAT,
                format_version=FORMAT_VERSION,
                slide_id=provenance.slide_id,
                slide_fingerprint=provenance.slide_fingerprint,
                vendor=provenance.vendor,
                reader=provenance.reader,
                slide_size=np.array([plan.grid.slide_lv0.width, plan.grid.slide_lv0.height], np.int64),
                mpp_level0=plan.grid.mpp_lv0_um,
                mpp_patch=plan.spec.mpp_um,
                mpp_source=provenance.mpp_source,
                mask_fingerprint=provenance.mask_fingerprint,
                patch_size_px=plan.spec.size_px,
                patch_size_level0=plan.grid.tile_lv0,
                jpeg_origin="scanner" if pixels.path == "copy" else "encoded",
                jpeg_quality=spec["quality"],
                pixel_path=pixels.path,
                read_level=pixels.level,
                read_scale=pixels.scale,
                icc_profile=head.icc_name,
                icc_applied=head.icc_applied,
                spec=json.dumps(spec, sort_keys=True),
                spec_fingerprint=digest(spec),
                fingerprint=_fingerprint(spec, provenance, plan.grid.mpp_lv0_um),
                wsi_dbps_version=__version__,
            )
            patches = file.create_group("patches")
            patches["offsets"] = np.asarray(self._offsets, np.uint64)
            patches["crc32"] = np.asarray(self._crc32, np.uint32)
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            layout.set_obj_track_times(False)  # the same slide gives the same bytes
            shape = h5py.h5s.create_simple((self.num_bytes,))
            data = h5py.h5d.create(patches.id, b"data", h5py.h5t.STD_U8LE, shape, dcpl=layout)
            return int(data.get_offset() or 0)


def _fingerprint(spec: dict[str, Any], provenance: Provenance, mpp_lv0_um: float) -> str:
    same = (spec, provenance.slide_fingerprint, provenance.mask_fingerprint, provenance.reader, mpp_lv0_um)
    return digest(same)


def _interop_attributes(plan: TilePlan, provenance: Provenance, pixels: PixelSource) -> dict[str, Any]:
    """Attributes on `/coords` by which TRIDENT's and CLAM's own readers know the tiles.

    The magnifications stand in the ratio of tile and patch, from which TRIDENT computes the tile's side. CLAM reads
    `patch_size` pixels of a stored level and resizes nothing: where patches are no level's own pixels it would cut
    other tiles, so its attributes are left out, and it stops at the missing `patch_level`. Folders are ".", as the
    same slide gives the same bytes anywhere; no reader uses them.
    """
    spec, level0_magnification = plan.spec, round(10 / plan.grid.mpp_lv0_um)
    attributes = {
        "patch_size": spec.size_px,
        "patch_size_level0": round(plan.grid.tile_lv0),
        "level0_magnification": level0_magnification,
        "target_magnification": level0_magnification * spec.size_px / plan.grid.tile_lv0,
        "overlap": spec.overlap_px,
        "level0_width": plan.grid.slide_lv0.width,
        "level0_height": plan.grid.slide_lv0.height,
        "name": provenance.slide_id,
        "savetodir": ".",
    }
    if (level := pixels.level_px) is not None:
        slide = plan.grid.slide_lv0
        attributes |= {
            "patch_level": pixels.level,
            "downsample": np.array([slide.width / level.width, slide.height / level.height]),
            "level_dim": np.array([level.width, level.height], np.int64),
            "downsampled_level_dim": np.array([level.width, level.height], np.int64),
            "save_path": ".",
        }
    return attributes


class PatchCache:
    """A checked cache. It holds no open file, and any number of threads and processes may read it at once."""

    def __init__(self, path: files.PathLike) -> None:
        """Open and check a cache. What it claims to hold is checked before it is read: a damaged one takes no memory.

        Raises:
            CacheError: If the file is missing, is no cache, is of another version, or is damaged.
        """
        self.path = path = Path(path)
        try:
            with h5py.File(path, "r", locking=False) as file:
                self.attrs: dict[str, Any] = {name: _plain(value) for name, value in file.attrs.items()}
                self._check_format()
                self.spec: dict[str, Any] = json.loads(self.attrs["spec"])
                """The `CacheSpec` it was made with, as plain values."""
                if missing := [name for name in _DATASETS if name not in file]:
                    raise CacheError(f"{path}: {', '.join(missing)} missing; {_REPAIR}")
                data = file["patches/data"]
                self._place, num_bytes = data.id.get_offset(), data.size
                if data.ndim != 1 or data.dtype != np.uint8:
                    raise CacheError(f"{path}: /patches/data holds {data.dtype} {data.shape}, not bytes; {_REPAIR}")
                self.grid: TileGrid
                """Where the patches lie."""
                self.tissue_N: npt.NDArray[np.float32]
                self._crc32: npt.NDArray[np.uint32] | None = None
                if (n := len(file["coords"])) * _LEAST_JPEG_BYTES > num_bytes:
                    raise CacheError(f"{path}: {n} patches in {num_bytes} bytes cannot be; {_REPAIR}")
                self.grid = self._grid(self._read(file, "coords", (n, 2)).astype(np.int64))
                self.tissue_N = self._read(file, "tissue", (n,), "f").astype(np.float32)
                offsets: npt.NDArray[np.int64] = self._read(file, "patches/offsets", (n + 1,)).astype(np.int64)
                if "patches/crc32" in file:
                    self._crc32 = self._read(file, "patches/crc32", (n,)).astype(np.uint32)
            length = path.stat().st_size
        except FileNotFoundError:
            raise CacheError(f"{path}: no such cache; run `wsi-dbps tile` first") from None
        except PermissionError as error:
            raise CacheError(f"{path}: cannot be read: {error.strerror}") from None
        except _HDF5_ERRORS as error:
            raise CacheError(f"{path}: not a readable patch cache: {one_line(error)}; {_REPAIR}") from None
        if self._place is None and num_bytes:
            raise CacheError(f"{path}: /patches/data is not one contiguous block; {_REPAIR}")
        if (cut := (self._place or 0) + num_bytes - length) > 0:
            raise CacheError(f"{path}: the file is cut short by {cut} bytes; {_REPAIR}")
        self._check_values(offsets, num_bytes)
        self._starts, self._ends = offsets[:-1], offsets[1:]
        self._rows, self._num_stored = np.arange(n), n
        self._fingerprint = str(self.attrs["fingerprint"])

    def _check_format(self) -> None:
        found, version = self.attrs.get("format"), self.attrs.get("format_version")
        if found != FORMAT:
            is_what = "an HDF5 file without a format attribute" if found is None else f"a {found}"
            raise CacheError(f"{self.path}: {is_what}, not a patch cache; name another file or --out folder")
        if version != FORMAT_VERSION:
            raise CacheError(
                f"{self.path}: patch cache of format version {version}, and this wsi-dbps reads {FORMAT_VERSION}; "
                "use the wsi-dbps that wrote it, or tile again"
            )
        if missing := [name for name in REQUIRED_ATTRIBUTES if name not in self.attrs]:
            raise CacheError(f"{self.path}: attributes {', '.join(missing)} missing; {_REPAIR}")
        for name in ("mpp_level0", "mpp_patch", "patch_size_px", "patch_size_level0", "slide_size"):
            values = np.asarray(self.attrs[name])
            fitting = values.shape == ((2,) if name == "slide_size" else ()) and values.dtype.kind in "fiu"
            fitting &= values.dtype.kind in "iu" or name not in ("patch_size_px", "slide_size")
            most = MAX_JPEG_SIDE if name == "patch_size_px" else np.finfo(np.float64).max
            if not fitting or not ((values > 0) & (values <= most)).all():
                raise CacheError(f"{self.path}: {name} is {self.attrs[name]!r}; {_REPAIR}")
        expected = self.attrs["patch_size_px"] * (self.attrs["mpp_patch"] / self.attrs["mpp_level0"])
        if not abs((found := self.attrs["patch_size_level0"]) - expected) <= _SIZE_TOLERANCE * expected:
            raise CacheError(
                f"{self.path}: patch_size_level0 is {found:g}, and by patch_size_px, mpp_patch and mpp_level0 "
                f"it would be {expected:g}; {_REPAIR}"
            )

    def _grid(self, origins_lv0: npt.NDArray[np.int64]) -> TileGrid:
        a = self.attrs
        size = Size(*(int(side) for side in a["slide_size"]))
        tile_lv0, mpp_lv0_um, mpp_um = (float(a[name]) for name in ("patch_size_level0", "mpp_level0", "mpp_patch"))
        return TileGrid(origins_lv0, tile_lv0, size, mpp_lv0_um, int(a["patch_size_px"]), mpp_um)

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
        if not isinstance(self.spec, dict):
            raise CacheError(f"{self.path}: spec is {self.attrs['spec']!r:.100}, not settings; {_REPAIR}")

    def __len__(self) -> int:
        return len(self.grid)

    @property
    def slide_id(self) -> str:
        """Whose patches these are."""
        return str(self.attrs["slide_id"])

    @property
    def fingerprint(self) -> str:
        """Tells caches of another slide or other settings apart, and other choices of a cache's patches."""
        return self._fingerprint

    @property
    def num_bytes(self) -> int:
        """Bytes of all its patches."""
        return int((self._ends - self._starts).sum())

    def only(self, keep_N: npt.NDArray[np.bool_], why: object) -> PatchCache:
        """The cache as if it held some of its patches only.

        Args:
            keep_N: (N,) which.
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
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                names = list(file["qc"]) if "qc" in file else []
                rows = self._num_stored
                found = {name: self._read(file, f"qc/{name}", (rows,), "f").astype(np.float32) for name in names}
        except _HDF5_ERRORS as error:
            raise CacheError(f"{self.path}: /qc cannot be read: {one_line(error)}; {_REPAIR}") from None
        return {name: values[self._rows] for name, values in found.items()}

    def dropped(self) -> npt.NDArray[np.int64]:
        """(n, 2) level-0 corners (x, y) of planned tiles that could not be decoded."""
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                if "dropped" not in file:
                    return np.empty((0, 2), np.int64)
                return self._read(file, "dropped", (None, 2), most=_MOST_PIXELS).astype(np.int64)
        except _HDF5_ERRORS as error:
            raise CacheError(f"{self.path}: /dropped cannot be read: {one_line(error)}; {_REPAIR}") from None

    def _dataset(self, name: str, shape: tuple[int | None, ...]) -> npt.NDArray[np.uint8]:
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                return self._read(file, name, shape, most=_MOST_PIXELS).astype(np.uint8)
        except _HDF5_ERRORS as error:
            raise CacheError(f"{self.path}: /{name} cannot be read: {one_line(error)}; {_REPAIR}") from None


def _plain(value: Any) -> Any:
    """An attribute as Python's own number or text, which reads well in a message; arrays as they are."""
    return value.item() if isinstance(value, np.generic) else value
