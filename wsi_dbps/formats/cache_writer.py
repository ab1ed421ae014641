"""Writing one slide's patches to one HDF5 file. Documented in docs/formats/patch-cache.md."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

import h5py
import numpy as np
import simplejpeg

from wsi_dbps.core import files
from wsi_dbps.core.digests import digest
from wsi_dbps.formats.spec import FORMAT, FORMAT_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.core.geometry import Size, TileGrid

_WRITE_BYTES: Final = 4 << 20
_MOST_AT_ONCE: Final = 1024
"""Buffers that one call writes: the least that POSIX systems take."""
_RESERVE_BYTES: Final = 256 << 20
"""Most space to set aside beyond what is needed now."""


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
    """Digest of the mask file that the manifest names, or the manifest's word in the column `tissue`; empty where there
    is neither. Where another tool chose the tiles, the digest of these tiles (`GivenCoords.fingerprint`)."""


@dataclass(frozen=True)
class PixelSource:
    """How the pixels of a slide's patches are read."""

    path: Literal["copy", "tiles", "reader"]
    """`copy`: the scanner's JPEG tiles, unchanged. `tiles`: decoded from these tiles. `reader`: through the reader."""
    level: int
    """Stored level that is read."""
    scale: int = 1
    """Each tile of it is decoded at 1 / scale of its size."""
    why: str = ""
    """Why the scanner's tiles are not copied."""
    level_px: Size | None = None
    """Size of that level, if patches are its own pixels, neither shrunk nor enlarged; else None."""


@dataclass(frozen=True)
class CacheHead:
    """All that a cache holds besides its patches."""

    grid: TileGrid
    """Row i is patch i."""
    tissue_N: npt.NDArray[np.float32]
    """(N,) share of each tile that is tissue."""
    provenance: Provenance
    spec: dict[str, Any]
    """The `CacheSpec` as plain values."""
    pixels: PixelSource
    thumbnail: bytes
    """Picture of the whole slide, a JPEG file."""
    mask_HW: npt.NDArray[np.bool_]
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
    """Writes patches as they come, directly to their final place in the file.

    The total size of the patches is known only at the end. So the head of the file (everything but the patches) is
    written last, to a temporary file, and its bytes are then copied to both sides of the patches, whose place the
    alignment rule of HDF5 gives beforehand. Every byte of a patch is written once: copying all patches a second time
    took a cache of 200 MB from 0.20 s to 0.55 s.
    """

    def __init__(self, partial: Path, planned: CacheHead) -> None:
        """Begin.

        Args:
            partial: The file to write. The caller holds its lock, and renames it when it is complete.
            planned: The head of the file if no tile is dropped; it tells how much room to leave before the patches.
        """
        self._partial = partial
        needed = 64 * len(planned.grid) + len(planned.thumbnail) + planned.mask_HW.size + len(planned.icc_profile)
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
        """Write all that is not patches; `head.grid` holds the tiles that were added."""
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
        """Write the waiting patches without copying them in memory."""
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
        """Close the file; it may be called twice."""
        self._file.close()

    def _write_head(self, beside: BinaryIO, head: CacheHead) -> int:
        """Write the whole HDF5 file except the patches, and return the byte at which they begin."""
        aligned = {"alignment_threshold": self._room, "alignment_interval": self._room} if self.num_bytes else {}
        with h5py.File(beside, "w", locking=False, libver=("v110", "v110"), **aligned) as file:
            _write_datasets(file, head)
            file.attrs.update(_attributes(head))
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


def _write_datasets(file: h5py.File, head: CacheHead) -> None:
    """All but the patches; the order decides where each lies, so that the same slide gives the same bytes."""
    coords = file.create_dataset("coords", data=head.grid.origins_lv0.astype(np.int64))
    coords.attrs.update(_interop_attributes(head))
    file["tissue"] = head.tissue_N.astype(np.float32)
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


def _attributes(head: CacheHead) -> dict[str, Any]:
    """What the file says of itself, in the order in which it is stored."""
    from wsi_dbps.core.version import __version__

    provenance, grid, pixels, spec = head.provenance, head.grid, head.pixels, head.spec
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "slide_id": provenance.slide_id,
        "slide_fingerprint": provenance.slide_fingerprint,
        "vendor": provenance.vendor,
        "reader": provenance.reader,
        "slide_size": np.array([grid.slide_lv0.width, grid.slide_lv0.height], np.int64),
        "mpp_level0": grid.mpp_lv0_um,
        "mpp_patch": grid.mpp_um,
        "mpp_source": provenance.mpp_source,
        "mask_fingerprint": provenance.mask_fingerprint,
        "patch_size_px": grid.size_px,
        "patch_size_level0": grid.tile_lv0,
        "jpeg_origin": "scanner" if pixels.path == "copy" else "encoded",
        "jpeg_quality": spec["quality"],
        "pixel_path": pixels.path,
        "read_level": pixels.level,
        "read_scale": pixels.scale,
        "icc_profile": head.icc_name,
        "icc_applied": head.icc_applied,
        "spec": json.dumps(spec, sort_keys=True),
        "spec_fingerprint": digest(spec),
        "fingerprint": _fingerprint(spec, provenance, grid.mpp_lv0_um),
        "wsi_dbps_version": __version__,
    }


def _fingerprint(spec: dict[str, Any], provenance: Provenance, mpp_lv0_um: float) -> str:
    same = (spec, provenance.slide_fingerprint, provenance.mask_fingerprint, provenance.reader, mpp_lv0_um)
    return digest(same)


def _interop_attributes(head: CacheHead) -> dict[str, Any]:
    """Attributes on `/coords` by which TRIDENT's and CLAM's own readers know the tiles.

    The magnifications stand in the ratio of tile and patch, from which TRIDENT computes the tile's side. CLAM reads
    `patch_size` pixels of a stored level and resizes nothing: where patches are no level's own pixels it would cut
    other tiles, so its attributes are left out, and it stops at the missing `patch_level`. Folders are ".", as the
    same slide gives the same bytes anywhere; no reader uses them.
    """
    grid, level0_magnification = head.grid, round(10 / head.grid.mpp_lv0_um)
    attributes = {
        "patch_size": grid.size_px,
        "patch_size_level0": round(grid.tile_lv0),
        "level0_magnification": level0_magnification,
        "target_magnification": level0_magnification * grid.size_px / grid.tile_lv0,
        "overlap": head.spec["tiling"]["overlap_px"],
        "level0_width": grid.slide_lv0.width,
        "level0_height": grid.slide_lv0.height,
        "name": head.provenance.slide_id,
        "savetodir": ".",
    }
    if (level := head.pixels.level_px) is not None:
        slide = grid.slide_lv0
        attributes |= {
            "patch_level": head.pixels.level,
            "downsample": np.array([slide.width / level.width, slide.height / level.height]),
            "level_dim": np.array([level.width, level.height], np.int64),
            "downsampled_level_dim": np.array([level.width, level.height], np.int64),
            "save_path": ".",
        }
    return attributes
