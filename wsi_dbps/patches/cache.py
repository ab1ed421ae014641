"""One slide's patches in one HDF5 file: writing it whole, and reading it from many threads and processes at once."""

from __future__ import annotations

import itertools
import json
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import h5py
import imagecodecs
import numpy as np

from wsi_dbps import files
from wsi_dbps.errors import CacheError
from wsi_dbps.geometry import Size
from wsi_dbps.patches.spec import FORMAT, FORMAT_VERSION, REQUIRED_ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.tiling.plan import TilePlan


_REPAIR: Final = "delete it and tile again"
_DATASETS: Final = ("coords", "tissue", "patches/offsets", "patches/data")
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
    """Of the mask file that the manifest gave; empty where tissue was segmented."""


def encode_jpeg(patch_HWC: npt.NDArray[np.uint8], quality: int) -> bytes:
    """A baseline JPEG file with 4:2:0 chroma, by libjpeg-turbo."""
    return bytes(imagecodecs.jpeg8_encode(patch_HWC, level=quality, subsampling=(2, 2)))


def write_cache(
    path: Path,
    *,
    plan: TilePlan,
    provenance: Provenance,
    spec: dict[str, Any],
    blob: BinaryIO,
    offsets: Sequence[int],
    thumbnail_HWC: npt.NDArray[np.uint8],
    tissue_mask_HW: npt.NDArray[np.bool_],
) -> None:
    """Write a cache file, whole or not at all.

    Args:
        path: `<slide_id>.h5`.
        plan: The tiles; row i is patch i.
        provenance: Where the pixels come from.
        spec: The `CacheSpec` as plain values.
        blob: Every JPEG end to end, positioned anywhere.
        offsets: N + 1 byte offsets into `blob`.
        thumbnail_HWC: Picture of the whole slide.
        tissue_mask_HW: Tissue on a grid over the whole slide, not necessarily the thumbnail's.
    """
    from wsi_dbps.version import __version__

    size_px = plan.spec.size_px
    with files.written_whole(path) as partial:
        with h5py.File(partial, "w", libver=("v110", "v110")) as file:
            coords = file.create_dataset("coords", data=plan.origins_lv0.astype(np.int64))
            coords.attrs.update(_trident_attributes(plan, provenance, path))
            file["tissue"] = plan.tissue_N.astype(np.float32)
            file["thumbnail"] = np.frombuffer(encode_jpeg(thumbnail_HWC, 90), np.uint8)
            file.create_dataset("tissue_mask", data=tissue_mask_HW.astype(np.uint8), compression="gzip")
            patches = file.create_group("patches")  # on the way to a dataset it would be made with a time stamp
            patches["offsets"] = np.asarray(offsets, np.uint64)
            patches["crc32"] = _checksums(blob, offsets)
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            layout.set_obj_track_times(False)  # the same slide gives the same bytes
            shape = h5py.h5s.create_simple((offsets[-1],))
            data = h5py.h5d.create(patches.id, b"data", h5py.h5t.STD_U8LE, shape, dcpl=layout)
            place = data.get_offset()
            file.attrs.update(
                format=FORMAT,
                format_version=FORMAT_VERSION,
                slide_id=provenance.slide_id,
                slide_fingerprint=provenance.slide_fingerprint,
                vendor=provenance.vendor,
                reader=provenance.reader,
                slide_size=np.array([plan.slide_lv0.width, plan.slide_lv0.height], np.int64),
                mpp_level0=plan.mpp_lv0_um,
                mpp_patch=plan.spec.mpp_um,
                mpp_source=provenance.mpp_source,
                mask_fingerprint=provenance.mask_fingerprint,
                patch_size_px=size_px,
                patch_size_level0=plan.tile_lv0,
                jpeg_origin="encoded",
                jpeg_quality=spec["quality"],
                spec=json.dumps(spec, sort_keys=True),
                spec_fingerprint=files.digest(spec),
                fingerprint=_fingerprint(spec, provenance, plan.mpp_lv0_um),
                wsi_dbps_version=__version__,
            )
        if offsets[-1]:
            _copy(blob, partial, place)


def _checksums(blob: BinaryIO, offsets: Sequence[int]) -> npt.NDArray[np.uint32]:
    """(N,) CRC-32 of each JPEG: a decoder makes grey or shifted pixels of a damaged one, and says nothing."""
    blob.seek(0)
    return np.array([zlib.crc32(blob.read(end - start)) for start, end in itertools.pairwise(offsets)], np.uint32)


def _copy(blob: BinaryIO, target: Path, place: int) -> None:
    """Lay the blob into the room that HDF5 has set aside for it: a plain copy, far faster than through HDF5."""
    blob.seek(0)
    with open(target, "rb+") as out:
        out.seek(place)
        while part := blob.read(1 << 22):
            out.write(part)


def _fingerprint(spec: dict[str, Any], provenance: Provenance, mpp_lv0_um: float) -> str:
    same = (spec, provenance.slide_fingerprint, provenance.mask_fingerprint, provenance.reader, mpp_lv0_um)
    return files.digest(same)


def _trident_attributes(plan: TilePlan, provenance: Provenance, path: Path) -> dict[str, Any]:
    """Attributes on `/coords` by which TRIDENT's own readers know the tiles."""
    spec = plan.spec
    return {
        "patch_size": spec.size_px,
        "patch_size_level0": round(plan.tile_lv0),
        "level0_magnification": round(10 / plan.mpp_lv0_um),
        "target_magnification": round(10 / spec.mpp_um),
        "overlap": spec.overlap_px,
        "level0_width": plan.slide_lv0.width,
        "level0_height": plan.slide_lv0.height,
        "name": provenance.slide_id,
        "savetodir": str(path.parent),
    }


class PatchCache:
    """A checked cache. It holds no open file, and any number of threads and processes may read it at once."""

    def __init__(self, path: Path) -> None:
        """Open and check a cache.

        Raises:
            CacheError: If the file is missing, is no cache, is of another version, or is damaged.
        """
        self.path = path
        try:
            with h5py.File(path, "r") as file:
                self.attrs: dict[str, Any] = {name: _plain(value) for name, value in file.attrs.items()}
                self._check_format()
                self.spec: dict[str, Any] = json.loads(self.attrs["spec"])
                """The `CacheSpec` it was made with, as plain values."""
                if missing := [name for name in _DATASETS if name not in file]:
                    raise CacheError(f"{path}: {', '.join(missing)} missing; {_REPAIR}")
                self.coords_N2: npt.NDArray[np.int64] = file["coords"][:].astype(np.int64)
                self.tissue_N: npt.NDArray[np.float32] = file["tissue"][:].astype(np.float32)
                self._offsets = file["patches/offsets"][:].astype(np.int64)
                self._crc32 = file["patches/crc32"][:] if "patches/crc32" in file else None
                data = file["patches/data"]
                self._place, num_bytes = data.id.get_offset(), data.size
            length = path.stat().st_size
        except FileNotFoundError:
            raise CacheError(f"{path}: no such cache; run `wsi-dbps tile` first") from None
        except PermissionError as error:
            raise CacheError(f"{path}: cannot be read: {error.strerror}") from None
        except _HDF5_ERRORS as error:
            raise CacheError(f"{path}: not a readable patch cache: {_line(error)}; {_REPAIR}") from None
        if self._place is None and num_bytes:
            raise CacheError(f"{path}: /patches/data is not one contiguous block; {_REPAIR}")
        if (cut := (self._place or 0) + num_bytes - length) > 0:
            raise CacheError(f"{path}: the file is cut short by {cut} bytes; {_REPAIR}")
        self._check_shapes(num_bytes)

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

    def _check_shapes(self, num_bytes: int) -> None:
        n, ends = self.coords_N2.shape[0], self._offsets
        fitting = self.coords_N2.shape == (n, 2) and self.tissue_N.shape == (n,) and ends.shape == (n + 1,)
        if not fitting or ends[0] != 0 or ends[-1] != num_bytes or (np.diff(ends) < 0).any():
            raise CacheError(f"{self.path}: offsets, coordinates and patches do not fit each other; {_REPAIR}")

    def __len__(self) -> int:
        return len(self.coords_N2)

    @property
    def slide_id(self) -> str:
        """Whose patches these are."""
        return str(self.attrs["slide_id"])

    @property
    def slide_lv0(self) -> Size:
        """The slide's size in level-0 pixels."""
        return Size(*(int(side) for side in self.attrs["slide_size"]))

    @property
    def mpp_lv0_um(self) -> float:
        """µm per level-0 pixel."""
        return float(self.attrs["mpp_level0"])

    @property
    def tile_lv0(self) -> float:
        """Tile side in level-0 pixels; not always whole."""
        return float(self.attrs["patch_size_level0"])

    @property
    def size_px(self) -> int:
        """Patch side."""
        return int(self.attrs["patch_size_px"])

    @property
    def fingerprint(self) -> str:
        """Tells caches of another slide or other settings apart."""
        return str(self.attrs["fingerprint"])

    @property
    def num_bytes(self) -> int:
        """Bytes of all its patches."""
        return int(self._offsets[-1])

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
        start, end = int(self._offsets[i]), int(self._offsets[i + 1])
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
        out = np.empty((len(ids), self.size_px, self.size_px, 3), np.uint8)
        for row, (i, jpeg) in enumerate(zip(ids, self.jpegs(ids), strict=True)):
            try:
                pixels = imagecodecs.jpeg8_decode(jpeg)
            except imagecodecs.Jpeg8Error as error:
                raise CacheError(f"{self.path}: patch {i} is damaged: {_line(error)}; {_REPAIR}") from None
            if pixels.shape != out.shape[1:]:
                raise CacheError(f"{self.path}: patch {i} has shape {pixels.shape}, not {out.shape[1:]}; {_REPAIR}")
            out[row] = pixels
        return out

    def thumbnail(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) picture of the whole slide."""
        try:
            picture: npt.NDArray[np.uint8] = imagecodecs.jpeg8_decode(self._dataset("thumbnail").tobytes())
        except imagecodecs.Jpeg8Error as error:
            raise CacheError(f"{self.path}: the thumbnail is damaged: {_line(error)}; {_REPAIR}") from None
        return picture

    def tissue_mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) tissue on a grid over the whole slide."""
        return self._dataset("tissue_mask").astype(np.bool_)

    def _dataset(self, name: str) -> npt.NDArray[np.uint8]:
        try:
            with h5py.File(self.path, "r") as file:
                values: npt.NDArray[np.uint8] = file[name][:]
                return values
        except _HDF5_ERRORS as error:
            raise CacheError(f"{self.path}: /{name} cannot be read: {_line(error)}; {_REPAIR}") from None


def _plain(value: Any) -> Any:
    """An attribute as Python's own number or text, which reads well in a message; arrays as they are."""
    return value.item() if isinstance(value, np.generic) else value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
