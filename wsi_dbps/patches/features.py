"""A slide's features, one row per patch, in one HDF5 file: writing ours, reading ours, TRIDENT's, CLAM's and STAMP's.

Source: what the tools' own writers write. Ours is TRIDENT's layout with attributes of the file in addition.
Documented in docs/formats/features.md. N patches, D numbers each.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
import simplejpeg

from wsi_dbps.errors import CacheError, SpecMismatchError
from wsi_dbps.files import digest, written_whole
from wsi_dbps.geometry import Size
from wsi_dbps.patches.cache import PatchCache
from wsi_dbps.patches.spec import FORMAT as CACHE_FORMAT
from wsi_dbps.slides.reader import sampled_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from wsi_dbps.files import PathLike

FORMAT: Final = "wsi-dbps features"
FORMAT_VERSION: Final = 1
_REQUIRED: Final = ("slide_id", "slide_size", "mpp_level0", "patch_size_level0", "encoder", "encoder_fingerprint",
                    "fingerprint")  # fmt: skip
_DECIDE: Final = ("cache_fingerprint", "encoder", "encoder_fingerprint", "precision")
"""Attributes that say what the features of a slide are, besides the slide."""
_AGAIN: Final = "delete it and make the features again"
_DAMAGED: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)


@contextmanager
def features_written(path: Path, cache: PatchCache, dim: int, made: Mapping[str, str]) -> Iterator[h5py.Dataset]:
    """Yield the (N, D) float32 rows to fill, row i for the cache's patch i; the file is there when all is well.

    Args:
        path: File to write.
        cache: Where the patches come from; its coordinates, with their attributes, and its thumbnail are taken over.
        dim: D.
        made: `encoder`, `encoder_fingerprint`, `checkpoint_fingerprint` and `precision`.

    Raises:
        OutputError: If it cannot be written.
    """
    from wsi_dbps.version import __version__

    about = {**made, "cache_fingerprint": cache.fingerprint}
    with written_whole(path) as partial, h5py.File(partial, "w") as file, h5py.File(cache.path, "r") as source:
        rows = file.create_dataset("features", (len(cache), dim), np.float32)
        rows.attrs.update(name=cache.slide_id, encoder=made["encoder"], savetodir=".")
        file["coords"] = cache.coords_N2
        file["coords"].attrs.update(source["coords"].attrs)
        if "thumbnail" in source:
            source.copy("thumbnail", file)
        taken = ("slide_id", "slide_size", "mpp_level0", "mpp_patch", "patch_size_px", "patch_size_level0")
        file.attrs.update({name: cache.attrs[name] for name in taken} | about)
        file.attrs.update(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            fingerprint=digest([about[name] for name in _DECIDE]),
            wsi_dbps_version=__version__,
        )
        yield rows


def are_kept(path: Path, cache: PatchCache, made: Mapping[str, str], *, overwrite: bool) -> bool:
    """Whether a slide's features are there already, made from this cache in this way.

    Raises:
        SpecMismatchError: If they were made otherwise (unless `overwrite`), or the file is none that we wrote.
    """
    if not path.exists():
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = dict(file.attrs)
    except _DAMAGED:
        found = {}
    if found.get("format") != FORMAT:
        raise SpecMismatchError(f"{path}: there already, and no features of ours; name another --out folder")
    wanted = {**made, "cache_fingerprint": cache.fingerprint}
    differ = [f"{k} is {found.get(k)!r} in it, {wanted[k]!r} asked" for k in _DECIDE if found.get(k) != wanted[k]]
    if differ and not overwrite:
        raise SpecMismatchError(
            f"{path} was made otherwise: {'; '.join(differ)}; pass --overwrite, or another --out folder"
        )
    return not overwrite


def holds_features(path: PathLike) -> bool:
    """Whether a file's content is that of features, ours or another tool's; False for anything that is not HDF5."""
    path = Path(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            return file.attrs.get("format") != CACHE_FORMAT and ("features" in file or "feats" in file)
    except _DAMAGED:
        return False


class FeatureFile:
    """The features of one slide. It holds no open file and no row, and any number of threads may read it at once."""

    def __init__(self, path: PathLike, *, mpp_lv0_um: float | None = None) -> None:
        """Open and check.

        Args:
            path: A file for which `holds_features` is true.
            mpp_lv0_um: µm per level-0 pixel as the manifest has it, which places coordinates that are in µm.

        Raises:
            CacheError: If it is damaged, of another version, or not one row of numbers per coordinate.
        """
        path = Path(path)
        self.path, self._mpp_lv0_um = path, mpp_lv0_um
        try:
            with h5py.File(path, "r", locking=False) as file:
                self._key = "features" if "features" in file else "feats"
                rows, coords = file[self._key], file["coords"]
                self.attrs: dict[str, Any] = {**coords.attrs, **rows.attrs, **file.attrs}
                """Those of the coordinates, the features and the file; of the same name the last."""
                self._check(rows, coords)
                self.dim = int(rows.shape[-1])
                """D."""
                self._num, self._lead, self._dtype = int(rows.shape[-2]), rows.ndim - 2, rows.dtype
                self._block = rows.chunks[-2] if rows.chunks else 1
                plain = rows.chunks is None and not rows.is_virtual and not rows.external
                self._place = rows.id.get_offset() if plain else None
        except FileNotFoundError:
            raise CacheError(f"{path}: no such file of features") from None
        except _DAMAGED as error:
            raise CacheError(f"{path}: not a readable file of features: {_line(error)}; {_AGAIN}") from None
        ours = self.attrs.get("format") == FORMAT
        self._fingerprint = str(self.attrs["fingerprint"]) if ours else sampled_fingerprint(path)

    def _check(self, rows: h5py.Dataset, coords: h5py.Dataset) -> None:
        if (found := self.attrs.get("format")) == FORMAT:
            if (version := self.attrs.get("format_version")) != FORMAT_VERSION:
                raise CacheError(
                    f"{self.path}: features of version {version}, and this wsi-dbps reads {FORMAT_VERSION}"
                )
            if missing := [name for name in _REQUIRED if name not in self.attrs]:
                raise CacheError(f"{self.path}: attributes {', '.join(missing)} missing; {_AGAIN}")
        elif found is not None:
            raise CacheError(f"{self.path}: a {found}, and no file of features")
        shape = tuple(rows.shape)
        if not (len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)) or shape[-1] < 1 or rows.dtype.kind != "f":
            raise CacheError(
                f"{self.path}: /{rows.name.strip('/')} is {rows.dtype} {shape}, not floats (N, D) or (1, N, D)"
            )
        if coords.shape[:1] != shape[-2:-1] or (len(coords) and coords.shape[1:] != (2,)):
            raise CacheError(f"{self.path}: {shape[-2]} rows of features and coordinates {coords.shape}; {_AGAIN}")

    def __len__(self) -> int:
        return self._num

    @property
    def slide_id(self) -> str | None:
        """Whose features these are; None where only the file's name says so."""
        return self.attrs.get("slide_id")

    @property
    def fingerprint(self) -> str:
        """Tells files apart that hold other features."""
        return self._fingerprint

    @property
    def encoder(self) -> str:
        """What made the features: ours by name and weights, TRIDENT's and STAMP's by name, empty where not known."""
        name = str(self.attrs.get("encoder", self.attrs.get("extractor", "")))
        return f"{name} {self.attrs['encoder_fingerprint']}" if self.attrs.get("format") == FORMAT else name

    @property
    def coords_N2(self) -> npt.NDArray[np.int64]:  # noqa: N802
        """(N, 2) top-left corners (x, y) in level-0 pixels, read anew each time.

        Raises:
            CacheError: If they are in µm and the slide's mpp is not known, or cannot be read.
        """
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                coords: npt.NDArray[Any] = file["coords"][:].reshape(-1, 2)
        except _DAMAGED as error:
            raise CacheError(f"{self.path}: /coords cannot be read: {_line(error)}; {_AGAIN}") from None
        if self.attrs.get("unit") == "um":
            coords = np.rint(coords.astype(np.float64) / self._mpp_for_um())
        elif self._key == "feats":
            raise CacheError(f"{self.path}: does not say the unit of its coordinates; make the features with STAMP 2")
        return coords.astype(np.int64)

    @property
    def tile_lv0(self) -> float:
        """Tile side in level-0 pixels; NaN where the file does not say.

        Raises:
            CacheError: If it is in µm and the slide's mpp is not known.
        """
        if "tile_size_um" in self.attrs:
            return float(self.attrs["tile_size_um"]) / self._mpp_for_um()
        return float(self.attrs.get("patch_size_level0", np.nan))

    def _mpp_for_um(self) -> float:
        if self._mpp_lv0_um is None:
            raise CacheError(f"{self.path}: its coordinates are in µm; add an mpp column for its slide to the manifest")
        return self._mpp_lv0_um

    @property
    def slide_lv0(self) -> Size:
        """The slide's size in level-0 pixels.

        Raises:
            CacheError: If the file does not say.
        """
        for names in (("slide_size",), ("level0_width", "level0_height")):
            if all(name in self.attrs for name in names):
                return Size(*(int(side) for side in np.concatenate([np.atleast_1d(self.attrs[n]) for n in names])))
        raise CacheError(
            f"{self.path}: does not say how large its slide is, so nothing can be drawn from it; make the features "
            "with `wsi-dbps embed`"
        )

    @property
    def mpp_lv0_um(self) -> float:
        """µm per level-0 pixel.

        Raises:
            CacheError: If neither the file nor the manifest says.
        """
        found = self.attrs.get("mpp_level0", self._mpp_lv0_um)
        if found is None:
            raise CacheError(f"{self.path}: does not say its slide's mpp; add an mpp column to the manifest")
        return float(found)

    def thumbnail(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) picture of the whole slide.

        Raises:
            CacheError: If the file has none.
        """
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                jpeg = file["thumbnail"][:].tobytes() if "thumbnail" in file else None
            if jpeg is not None:
                picture: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(jpeg)
                return picture
        except _DAMAGED as error:
            raise CacheError(f"{self.path}: the thumbnail is damaged: {_line(error)}; {_AGAIN}") from None
        raise CacheError(
            f"{self.path}: has no thumbnail to draw on; make the features with `wsi-dbps embed`, or draw "
            "--format geojson only"
        )

    def patches(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """(n, D) float32 features of the named patches, in the order asked for; no other row is held.

        Rows that HDF5 stores one after the other are read around it; of a file in chunks, whole chunks are.

        Raises:
            CacheError: If a row cannot be read or is not finite.
        """
        order = np.argsort(np.asarray(ids, np.int64), kind="stable")
        rows = np.asarray(ids, np.int64)[order]
        out = np.empty((len(rows), self.dim), np.float32)
        apart = (np.diff(rows) > 1) & (np.diff(rows // self._block) > 0)
        runs = pairwise([0, *(np.flatnonzero(apart) + 1).tolist(), len(rows)])
        try:
            with self._opened() as read:
                for first, last in runs if len(rows) else ():
                    start = int(rows[first])
                    found = read(start, int(rows[last - 1]) + 1)
                    out[order[first:last]] = found[rows[first:last] - start]
        except _DAMAGED as error:
            raise CacheError(f"{self.path}: features cannot be read: {_line(error)}; {_AGAIN}") from None
        if not (finite := np.isfinite(out).all(axis=1)).all():
            raise CacheError(f"{self.path}: the features of patch {ids[int(finite.argmin())]} are not finite; {_AGAIN}")
        return out

    @contextmanager
    def _opened(self) -> Iterator[Callable[[int, int], npt.NDArray[Any]]]:
        """A function that reads rows from one to before another."""
        if self._place is None:
            with h5py.File(self.path, "r", locking=False) as file:
                data = file[self._key]
                yield lambda start, stop: data[0, start:stop] if self._lead else data[start:stop]
            return
        handle, row_bytes = os.open(self.path, os.O_RDONLY), self.dim * self._dtype.itemsize
        place = self._place

        def read(start: int, stop: int) -> npt.NDArray[Any]:
            found = os.pread(handle, (stop - start) * row_bytes, place + start * row_bytes)
            return np.frombuffer(found, self._dtype).reshape(stop - start, self.dim)

        try:
            yield read
        finally:
            os.close(handle)


def open_bag(caches: PathLike, slide_id: str, *, mpp_lv0_um: float | None = None) -> PatchCache | FeatureFile:
    """A slide's patch cache, or file of features, in a folder: which of the two its content says.

    CLAM's features may also lie in the folder `h5_files`.

    Args:
        caches: The folder.
        slide_id: Whose.
        mpp_lv0_um: µm per level-0 pixel as the manifest has it, for features that do not say.

    Raises:
        CacheError: If it is missing or damaged, or belongs to another slide.
    """
    caches = Path(caches)
    path = caches / f"{slide_id}.h5"
    if not path.exists() and (clam := caches / "h5_files" / path.name).exists():
        path = clam
    if not path.exists() and path.with_suffix(".pt").exists():
        raise CacheError(f"{path.with_suffix('.pt')}: features without coordinates; give the folder h5_files beside")
    found = FeatureFile(path, mpp_lv0_um=mpp_lv0_um) if holds_features(path) else PatchCache(path)
    if found.slide_id not in (None, slide_id):
        raise CacheError(f"{path}: holds slide {found.slide_id!r}, not {slide_id!r}")
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
