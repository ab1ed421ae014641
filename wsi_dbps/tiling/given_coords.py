"""Tiles that another tool chose: TRIDENT's, CLAM's and hs2p's coordinate files, and our own caches.

Source: what the tools' own writers write: TRIDENT's `coords_to_h5`, CLAM's `process_contour`, hs2p's `tiling/io.py`.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np

from wsi_dbps.core.digests import digest
from wsi_dbps.core.errors import SlideError
from wsi_dbps.core.geometry import Size
from wsi_dbps.formats.hdf5 import MOST_ROWS, translated, why_not_stored
from wsi_dbps.formats.spec import FORMAT, MAX_JPEG_SIDE, UPSAMPLING_TOLERANCE, TilingSpec
from wsi_dbps.tiling.tissue import TissueMask

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.slides.base import SlideInfo

_NAMES: Final = ("{}_patches.h5", "{}.h5", "{}.coordinates.meta.json")
"""TRIDENT's; CLAM's and ours; hs2p's, whose tiles lie in the .npz beside."""
_PLACES: Final = ("patches", "tiles", "*_overlap/patches")
"""Where in a tool's output folder they lie, besides the folder itself."""
_AGAIN: Final = "make the coordinates anew, or tile without --coords"


@dataclass(frozen=True)
class GivenCoords:
    """The tiles of one slide as a file has them, in its order."""

    path: Path
    origins_lv0: npt.NDArray[np.int64]
    """(N, 2) top-left corners (x, y) in level-0 pixels, each on the slide; N may be 0."""
    tile_lv0: float
    """Tile side in level-0 pixels. Tiles may reach past the slide's right and bottom edge."""
    size_px: int
    """Patch side."""
    overlap_px: int
    """What neighbouring patches share, where the file says so; else 0."""
    tissue_N: npt.NDArray[np.float32]
    """(N,) share of each tile that is tissue, where the file says so; else 1."""

    @property
    def fingerprint(self) -> str:
        """`coords:` and 16 hexadecimal digits from the tiles: the same in a copy, or in another tool's layout."""
        tiles = (self.origins_lv0.tolist(), self.tissue_N.tolist())
        return f"coords:{digest((self.tile_lv0, self.size_px, self.overlap_px, *tiles))}"

    def tiling(self, mpp_lv0_um: float) -> TilingSpec:
        """The tiles' own resolution and size, as settings."""
        return TilingSpec(
            mpp_um=self.tile_lv0 * mpp_lv0_um / self.size_px,
            size_px=self.size_px,
            overlap_px=self.overlap_px,
            tissue="none",
            drop_pen=False,
            min_tissue=0.0,
        )

    def are_cells(self, cell_lv0: float) -> bool:
        """Whether each tile is a cell of the grid of this side that begins in the slide's corner."""
        return abs(self.tile_lv0 - cell_lv0) < 1e-6 * cell_lv0 and not (self.origins_lv0 % cell_lv0).any()

    def covered(self, slide_lv0: Size, grid: Size) -> TissueMask:
        """Where the tiles lie, on a grid over the slide: all that is known of its tissue."""
        mask_HW = np.zeros((grid.height, grid.width), np.bool_)
        scale = np.array([grid.width / slide_lv0.width, grid.height / slide_lv0.height])
        low_N2 = np.floor(self.origins_lv0 * scale).astype(np.int64)
        high_N2 = np.ceil((self.origins_lv0 + self.tile_lv0) * scale).astype(np.int64)
        for (x0, y0), (x1, y1) in zip(low_N2.tolist(), high_N2.tolist(), strict=True):
            mask_HW[y0:y1, x0:x1] = True
        return TissueMask(mask_HW, slide_lv0)


def find_coords(folder: Path, slide_id: str) -> Path:
    """The one coordinate file of a slide in a tool's output folder, or in the folder of it that holds such files.

    Raises:
        SlideError: If there is none, or more than one.
    """
    places = [folder, *(place for pattern in _PLACES for place in sorted(folder.glob(pattern)))]
    names = [name.format(slide_id) for name in _NAMES]
    found = [place / name for place in places for name in names if (place / name).is_file()]
    if len(found) > 1:
        raise SlideError(
            f"{len(found)} files of coordinates: {', '.join(map(str, found))}; give --coords a narrower one"
        )
    if not found:
        raise SlideError(
            f"coordinates {folder}: no {', '.join(names[:-1])} or {names[-1]} there or in {', '.join(_PLACES)}; "
            "files are known by slide_id: name them so, or leave the slide out"
        )
    return found[0]


def read_coords(path: Path, info: SlideInfo) -> GivenCoords:
    """The tiles that a coordinate file names.

    An HDF5 file with our `format` is a patch cache, one with `patch_size_level0` on `/coords` TRIDENT's, one with
    `patch_level` CLAM's; a JSON file is hs2p's.

    Args:
        path: The file, as `find_coords` gives it.
        info: The slide. CLAM's tiles are as large as `patch_size` pixels of this slide's own level.

    Raises:
        SlideError: If the file is of none of these layouts or damaged, its tiles are not those of this slide, or their
            size is not in it or out of range.
    """
    with translated(f"coordinates {path}", SlideError, "cannot be used", _AGAIN):
        try:
            given, slide_lv0 = _from_json(path) if path.suffix == ".json" else _from_hdf5(path, info)
        except KeyError as error:
            raise SlideError(f"coordinates {path}: not in it: {error.args[0]}; {_AGAIN}") from None
    if slide_lv0 not in (None, info.size_lv0):
        raise SlideError(f"coordinates {path}: of a slide of {slide_lv0} px, and this one has {info.size_lv0}")
    if not ((given.tissue_N >= 0) & (given.tissue_N <= 1)).all():
        raise SlideError(f"coordinates {path}: tissue shares outside 0 .. 1; {_AGAIN}")
    _check_on_slide(given, info.size_lv0)
    return given


def _from_hdf5(path: Path, info: SlideInfo) -> tuple[GivenCoords, Size | None]:
    """The tiles, and the slide's size where the file has it."""
    with h5py.File(path, "r", locking=False) as file:
        if "coords" not in file:
            raise KeyError("/coords")
        for name in ("coords", "tissue"):
            if name in file:
                _check_stored(path, file[name])
        coords_N2, attrs, root = file["coords"][:], dict(file["coords"].attrs), dict(file.attrs)
        overlap_px = int(attrs.get("overlap", 0))
        if root.get("format") == FORMAT:
            size_px, tile_lv0 = root["patch_size_px"], float(root["patch_size_level0"])
            made = _given(path, coords_N2, tile_lv0, size_px, overlap_px, file["tissue"][:])
            return made, Size(*(int(side) for side in root["slide_size"]))
    if "patch_size_level0" in attrs:
        size = [int(attrs[name]) for name in ("level0_width", "level0_height") if name in attrs]
        tile_lv0 = float(attrs["patch_size_level0"])
        return _given(path, coords_N2, tile_lv0, attrs["patch_size"], overlap_px), Size(*size) if size else None
    if "patch_level" not in attrs:
        raise KeyError("patch_size_level0 (TRIDENT) or patch_level (CLAM) on /coords")
    size_px, level = attrs["patch_size"], int(attrs["patch_level"])
    if not 0 <= level < len(info.levels):
        raise SlideError(f"coordinates {path}: patch_level is {level}, and the slide has {len(info.levels)} levels")
    found, stored = attrs.get("level_dim"), info.levels[level]
    if found is not None and Size(*(int(side) for side in found)) != stored.size:
        raise SlideError(
            f"coordinates {path}: level {level} has {Size(*found)} px in it, and {stored.size} in the slide: "
            "they are of another slide, or were made through another reader"
        )
    return _given(path, coords_N2, size_px * stored.downsample, size_px, overlap_px), None


def _check_stored(path: Path, data: h5py.Dataset) -> None:
    if data.shape and data.shape[0] > MOST_ROWS:
        raise ValueError(f"{data.name} claims {data.shape[0]} tiles, and up to {MOST_ROWS} are read")
    if why := why_not_stored(data, path.stat().st_size):
        raise ValueError(f"{data.name} {why}")


def _from_json(path: Path) -> tuple[GivenCoords, Size | None]:
    """The tiles, and the slide's size."""
    meta = json.loads(path.read_text(encoding="utf-8"))
    tiling, space = meta["tiling"], meta["artifact"]["coordinate_space"]
    if space != "level0_px":
        raise ValueError(f"coordinate_space is {space!r}, not 'level0_px'")
    coords_N2, tissue_N = np.empty((0, 2), np.int64), np.empty(0, np.float32)
    if tiling["n_tiles"]:  # a slide without tiles has no .npz
        beside = path.with_name(path.name.replace(".meta.json", ".npz"))
        with zipfile.ZipFile(beside) as archive:
            if (most := max((member.file_size for member in archive.infolist()), default=0)) > 8 * MOST_ROWS + 4096:
                raise ValueError(f"the .npz beside unpacks to {most} bytes: more than {MOST_ROWS} tiles are not read")
        with np.load(beside) as arrays:
            coords_N2, tissue_N = np.stack([arrays["x"], arrays["y"]], axis=1), arrays["tissue_fractions"]
    if len(coords_N2) != tiling["n_tiles"]:
        raise ValueError(f"n_tiles is {tiling['n_tiles']}, and the .npz beside has {len(coords_N2)}")
    size_px = tiling["requested_tile_size_px"]
    overlap_px = round(tiling["overlap"] * size_px)
    made = _given(path, coords_N2, float(tiling["tile_size_lv0"]), size_px, overlap_px, tissue_N)
    return made, Size(*meta["slide"]["dimensions"])


def _given(
    path: Path, coords_N2: Any, tile_lv0: float, size_px: Any, overlap_px: int, tissue_N: Any = None
) -> GivenCoords:
    """What was read, in our types; shapes and numbers that can be none are refused."""
    if not coords_N2.size:  # TRIDENT has written (0,) and float64 for a slide without tissue
        coords_N2 = np.empty((0, 2), np.int64)
    if coords_N2.ndim != 2 or coords_N2.shape[1] != 2 or coords_N2.dtype.kind not in "iu":
        raise ValueError(f"coordinates are {coords_N2.dtype} {coords_N2.shape}, not whole numbers (N, 2)")
    tissue_N = np.ones(len(coords_N2)) if tissue_N is None else tissue_N
    if tissue_N.shape != (len(coords_N2),) or not ((tissue_N >= 0) & (tissue_N <= 1)).all():
        raise ValueError("its shares of tissue are not one number from 0 to 1 per tile")
    if int(size_px) != size_px or not 1 <= size_px <= MAX_JPEG_SIDE:
        raise ValueError(f"patches of {size_px} px; a side is a whole number from 1 to {MAX_JPEG_SIDE}")
    if not 0 <= overlap_px < size_px:
        raise ValueError(f"an overlap of {overlap_px} px between patches of {size_px} px")
    if not (math.isfinite(tile_lv0) and tile_lv0 >= size_px * (1 - UPSAMPLING_TOLERANCE)):
        raise ValueError(
            f"{tile_lv0:g} px of level 0 for patches of {size_px} px: they would hold detail that the scanner never saw"
        )
    origins_lv0 = coords_N2.astype(np.int64)
    return GivenCoords(path, origins_lv0, tile_lv0, int(size_px), overlap_px, tissue_N.astype(np.float32))


def _check_on_slide(given: GivenCoords, slide_lv0: Size) -> None:
    origins_lv0 = given.origins_lv0
    outside_N = np.any((origins_lv0 < 0) | (origins_lv0 >= [slide_lv0.width, slide_lv0.height]), axis=1)
    if outside_N.any():
        x, y = origins_lv0[outside_N.argmax()].tolist()
        raise SlideError(
            f"coordinates {given.path}: {outside_N.sum()} of {len(origins_lv0)} tiles begin outside the slide "
            f"({slide_lv0} px), the first at ({x}, {y}): they are of another slide, or not in level-0 pixels"
        )
