"""A slide's features, one row per patch, in one HDF5 file: writing ours, and reading ours and other tools'.

Documented in docs/formats/features.md. N patches, D numbers each.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
import simplejpeg

from wsi_dbps.core.digests import digest
from wsi_dbps.core.errors import CacheError, SpecMismatchError
from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.formats.hdf5 import DAMAGED, MOST_ROWS, h5_written_whole, plain, reading, translated, why_not_stored
from wsi_dbps.formats.other_features import FORMAT, FORMAT_VERSION, REPAIR, feature_facts, find_bag
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.reuse import is_kept
from wsi_dbps.formats.spec import FORMAT as CACHE_FORMAT
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.sampling import thumbnail
from wsi_dbps.slides.source import sampled_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from wsi_dbps.core.files import PathLike
    from wsi_dbps.slides.base import SlideInfo
    from wsi_dbps.slides.source import SlideFile

_DECIDE: Final = ("cache_fingerprint", "encoder", "encoder_fingerprint", "precision", "batch")
"""Attributes that say what the features of a slide are, to the last bit on one machine, besides the slide."""
_ADD_PATH: Final = "name the slide file in the column path of the manifest, or make the features with `wsi-dbps embed`"
_MOST_DIM: Final = 1 << 20
_MOST_COORD: Final = 2.0**31
"""In level-0 pixels, or µm."""
_THUMBNAIL_PX: Final = 1024
"""Longer side of a thumbnail that is made from the slide."""


@contextmanager
def features_written(path: Path, cache: PatchCache, dim: int, made: Mapping[str, str | int]) -> Iterator[h5py.Dataset]:
    """Yield the (N, D) float32 rows to fill, row i for the cache's patch i; the file is there when all is well.

    Args:
        path: File to write.
        cache: Where the patches come from; its coordinates, with their attributes, and its thumbnail are taken over.
        dim: D.
        made: `encoder`, `encoder_fingerprint`, `checkpoint_fingerprint`, `precision` and `batch`.

    Raises:
        OutputError: If it cannot be written.
    """
    from wsi_dbps.core.version import __version__

    about = {**made, "cache_fingerprint": cache.fingerprint}
    size = len(cache) * (dim * 4 + 16)
    with h5_written_whole(path, size=size) as file, h5py.File(cache.path, "r", locking=False) as source:
        rows = file.create_dataset("features", (len(cache), dim), np.float32)
        rows.attrs.update(name=cache.slide_id, encoder=made["encoder"], savetodir=".")
        file["coords"] = cache.grid.origins_lv0
        file["coords"].attrs.update(source["coords"].attrs)
        if "thumbnail" in source:
            source.copy("thumbnail", file)
        taken = ("slide_id", "slide_size", "mpp_level0", "mpp_patch", "patch_size_px", "patch_size_level0")
        file.attrs.update({name: plain(source.attrs[name]) for name in taken} | about)
        file.attrs.update(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            fingerprint=digest([about[name] for name in _DECIDE]),
            wsi_dbps_version=__version__,
        )
        yield rows


def are_kept(
    path: Path, cache: PatchCache, made: Mapping[str, str | int], *, overwrite: bool, layout: str = "ours"
) -> bool:
    """Whether a slide's features are there already, made from this cache in this way and laid out so.

    Args:
        path: Where they would be.
        cache: What they would be made from.
        made: As for `features_written`.
        overwrite: Make them again, whatever they were made from, if it is we who made them.
        layout: `ours` or `stamp`.

    Raises:
        SpecMismatchError: If they were made otherwise (unless `overwrite`), or the file is none that we wrote.
    """
    if not path.exists():
        return False
    found = _made_with(path)
    if not found:
        raise SpecMismatchError(f"{path}: there already, and no features of ours; name another --out folder")
    wanted = {**made, "cache_fingerprint": cache.fingerprint, "layout": layout}
    asked = {name: wanted[name] for name in ("layout", *_DECIDE)}
    return is_kept(
        path, found, asked, "ask for the same, pass --overwrite, or name another --out folder", overwrite=overwrite
    )


def _made_with(path: Path) -> dict[str, Any]:
    """What decided the features in a file that we wrote, and its layout; empty for any other file."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = {name: plain(value) for name, value in file.attrs.items()}
        if found.get("format") == FORMAT:
            return found | {"layout": "ours"}
        return {**json.loads(found["wsi_dbps"]), "layout": "stamp"}
    except DAMAGED:
        return {}


def holds_features(path: PathLike) -> bool:
    """Whether a file's content is that of features, ours or another tool's; False for anything that is not HDF5."""
    path = Path(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            return file.attrs.get("format") != CACHE_FORMAT and ("features" in file or "feats" in file)
    except DAMAGED:
        return False


class FeatureFile:
    """The features of one slide. It keeps no file open and no row in memory; any number of threads may read at once."""

    def __init__(self, path: PathLike, *, mpp_lv0_um: float | None = None, slide: SlideFile | None = None) -> None:
        """Open and check everything but the rows, which are checked when they are read.

        Args:
            path: A file for which `holds_features` is true.
            mpp_lv0_um: µm per level-0 pixel as the manifest has it, which places coordinates that are in µm.
            slide: The slide file. It is opened only when size, mpp or thumbnail is asked for that `path` does not hold.

        Raises:
            CacheError: If it is damaged, of another version, not one row of numbers per coordinate, or contradicts
                itself.
        """
        path = Path(path)
        self.path, self._mpp_lv0_um, self._slide = path, mpp_lv0_um, slide
        missing = "no such file of features"
        with reading(path, CacheError, "not a readable file of features", REPAIR, missing=missing) as file:
            self._key = "features" if "features" in file else "feats"
            rows, coords = file[self._key], file["coords"]
            named = {**coords.attrs, **rows.attrs, **file.attrs}
            self.facts = feature_facts(path, {name: plain(value) for name, value in named.items()})
            self._check_shapes(rows, coords)
            is_empty = rows.shape in ((0,), (1, 0))  # TRIDENT's of a slide without tissue
            self.dim = 0 if is_empty else int(rows.shape[-1])
            """D; 0 where the file has no row and does not say."""
            self._num, self._lead, self._dtype = int(coords.shape[0]), rows.ndim - 2, rows.dtype
            self._block = rows.chunks[-2] if rows.chunks and not is_empty else 1
            self._place = rows.id.get_offset() if rows.chunks is None else None
            self._check_coords(coords[:])
        self._fingerprint = self.facts.fingerprint or sampled_fingerprint(path)

    def _check_shapes(self, rows: h5py.Dataset, coords: h5py.Dataset) -> None:
        shape = tuple(rows.shape)
        if shape in ((0,), (1, 0)) and coords.shape[:1] == (0,):
            return
        if not (len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)) or shape[-1] < 1 or rows.dtype.kind != "f":
            raise CacheError(
                f"{self.path}: /{rows.name.strip('/')} is {_numbers(rows)} {shape}, not floats (N, D) or (1, N, D)"
            )
        if coords.shape[:1] != shape[-2:-1] or (coords.shape[0] and coords.shape[1:] != (2,)):
            raise CacheError(f"{self.path}: {shape[-2]} rows of features and coordinates {coords.shape}; {REPAIR}")
        if coords.dtype.kind not in "iuf":
            raise CacheError(f"{self.path}: /coords holds {_numbers(coords)}, not numbers; {REPAIR}")
        if shape[-2] > MOST_ROWS or shape[-1] > _MOST_DIM:
            raise CacheError(
                f"{self.path}: claims {shape[-2]} rows of {shape[-1]} numbers; at most {MOST_ROWS} of {_MOST_DIM} are "
                f"read; {REPAIR}"
            )
        for data in (rows, coords):
            if why := why_not_stored(data, self.path.stat().st_size):
                raise CacheError(f"{self.path}: /{data.name.strip('/')} {why}; {REPAIR}")

    def _check_coords(self, coords: npt.NDArray[Any]) -> None:
        usable = np.isfinite(coords) & (abs(coords.astype(np.float64)) < _MOST_COORD)
        if not usable.all():
            row = int(np.argmin(usable.reshape(len(coords), -1).all(axis=1)))
            raise CacheError(
                f"{self.path}: the coordinates of patch {row} are {coords[row].tolist()}, no place on a slide; {REPAIR}"
            )

    def __len__(self) -> int:
        return self._num

    @property
    def slide_id(self) -> str | None:
        """Whose features these are; None where only the file's name says so."""
        return self.facts.slide_id

    @property
    def fingerprint(self) -> str:
        """Tells files apart that hold different features."""
        return self._fingerprint

    @property
    def encoder(self) -> str:
        """What made the features: ours by name and weights, TRIDENT's and STAMP's by name, empty where not known."""
        return self.facts.encoder

    @property
    def grid(self) -> TileGrid:
        """Where the patches lie, read anew each time.

        What the file does not say of slide and patches the manifest or the slide file does, which is opened when it is
        asked for; the tile side is NaN where the file does not say.

        Raises:
            CacheError: If the coordinates are in µm and the slide's mpp is not known, or cannot be read.
            SlideError: If the slide file is needed for that and cannot be opened.
        """
        facts, origins_lv0, tile_lv0 = self.facts, self._origins_lv0(), self._tile_lv0()

        def mpp_um() -> float:
            if facts.size_px is None:
                raise CacheError(f"{self.path}: does not say how large the patches were that its features are of")
            return tile_lv0 * self._mpp_lv0() / facts.size_px

        return TileGrid(origins_lv0, tile_lv0, self._slide_lv0, self._mpp_lv0, facts.size_px, facts.mpp_um or mpp_um)

    def _origins_lv0(self) -> npt.NDArray[np.int64]:
        with reading(self.path, CacheError, "/coords cannot be read", REPAIR) as file:
            coords: npt.NDArray[Any] = file["coords"][:].reshape(-1, 2)
        if self.facts.in_um:
            coords = np.rint(coords.astype(np.float64) / self._mpp_for_um())
        elif self._key == "feats":
            raise CacheError(f"{self.path}: does not say the unit of its coordinates; make the features with STAMP 2")
        return coords.astype(np.int64)

    def _tile_lv0(self) -> float:
        if self.facts.tile_um is not None:
            return self.facts.tile_um / self._mpp_for_um()
        return np.nan if self.facts.tile_lv0 is None else self.facts.tile_lv0

    def _mpp_for_um(self) -> float:
        if self._mpp_lv0_um is not None:
            return self._mpp_lv0_um
        if self._slide is None or (found := self._of_slide.mpp_um) is None:
            raise CacheError(
                f"{self.path}: its coordinates are in µm; add an mpp column for its slide to the manifest, or name a "
                "slide file that has its mpp in the column path"
            )
        return found

    @cached_property
    def _of_slide(self) -> SlideInfo:
        """What the slide file says, which is checked to be as large as the features say.

        Raises:
            SlideError: If it cannot be opened.
            CacheError: If its size contradicts the features.
        """
        assert self._slide is not None
        with open_slide(self._slide) as reader:
            info = reader.info
        if (size := self.facts.slide_lv0) not in (None, info.size_lv0):
            raise CacheError(
                f"{self.path}: features of a slide of {size} px, and {self._slide} has {info.size_lv0}; correct the "
                "path in the manifest"
            )
        return info

    def _slide_lv0(self) -> Size:
        """The slide's size in level-0 pixels, as the file has it, or else the slide.

        Raises:
            CacheError: If neither says.
            SlideError: If the slide is needed and cannot be opened.
        """
        if self.facts.slide_lv0 is not None:
            return self.facts.slide_lv0
        if self._slide is not None:
            return self._of_slide.size_lv0
        raise CacheError(f"{self.path}: does not say how large its slide is; {_ADD_PATH}")

    def _mpp_lv0(self) -> float:
        """µm per level-0 pixel, as the file has it, or else the manifest, or else the slide.

        Raises:
            CacheError: If none says.
            SlideError: If the slide is needed and cannot be opened.
        """
        found = self._mpp_lv0_um if self.facts.mpp_lv0_um is None else self.facts.mpp_lv0_um
        if found is None and self._slide is not None:
            found = self._of_slide.mpp_um
        if found is None:
            raise CacheError(f"{self.path}: does not say its slide's mpp; add an mpp column to the manifest")
        return found

    def step_lv0(self) -> float:
        """Smallest distance between two columns or rows of tiles, in level-0 pixels: the tile side, if none overlap.

        Raises:
            CacheError: If all tiles lie in one place.
        """
        steps = [np.diff(np.unique(places)) for places in self._origins_lv0().T]
        if not any(len(step) for step in steps):
            raise CacheError(f"{self.path}: neither says how large its tiles are, nor has two of them to tell it by")
        return float(min(step.min() for step in steps if len(step)))

    def thumbnail(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) picture of the whole slide, as the file has it, or else made from the slide.

        Raises:
            CacheError: If there is neither, or the slide is not that of the features.
            SlideError: If the slide is needed and cannot be read.
        """
        with reading(self.path, CacheError, "the thumbnail is damaged", REPAIR) as file:
            if "thumbnail" in file:
                picture: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(file["thumbnail"][:].tobytes())
                return picture
        if self._slide is None:
            raise CacheError(f"{self.path}: has no thumbnail to draw on; {_ADD_PATH}")
        with open_slide(self._slide) as reader:
            _ = self._of_slide  # whose check says if it is another slide
            return thumbnail(reader, _THUMBNAIL_PX)

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
        with translated(self.path, CacheError, "features cannot be read", REPAIR), self._opened() as read:
            for first, last in runs if len(rows) else ():
                start = int(rows[first])
                found = read(start, int(rows[last - 1]) + 1)
                out[order[first:last]] = found[rows[first:last] - start]
        if not (finite := np.isfinite(out).all(axis=1)).all():
            raise CacheError(f"{self.path}: the features of patch {ids[int(finite.argmin())]} are not finite; {REPAIR}")
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


def open_bag(
    caches: PathLike, slide_id: str, *, mpp_lv0_um: float | None = None, slide: SlideFile | None = None
) -> PatchCache | FeatureFile:
    """A slide's patch cache, or file of features, in a folder: which of the two its content says.

    CLAM's features may also lie in the folder `h5_files`, TRIDENT's in the one folder of its job that holds features.

    Args:
        caches: The folder.
        slide_id: Whose.
        mpp_lv0_um: µm per level-0 pixel as the manifest has it, for features that do not say.
        slide: The slide file as the manifest has it, for features that do not say its size.

    Raises:
        CacheError: If it is missing or damaged, or belongs to another slide.
    """
    path = find_bag(Path(caches), slide_id)
    found = FeatureFile(path, mpp_lv0_um=mpp_lv0_um, slide=slide) if holds_features(path) else PatchCache(path)
    if found.slide_id not in (None, slide_id):
        raise CacheError(f"{path}: holds slide {found.slide_id!r}, not {slide_id!r}")
    return found


def _numbers(data: h5py.Dataset) -> str:
    """What a dataset holds, in words."""
    return "text" if data.dtype.kind in "OSU" else str(data.dtype)
