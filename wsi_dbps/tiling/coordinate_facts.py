"""What a file of coordinates of TRIDENT, CLAM or hs2p is, told without its slide: for `wsi-dbps inspect`.

To be used, it is read by `read_coords` of given_coords.py, which checks it against the slide.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from wsi_dbps.core.errors import SlideError, one_line
from wsi_dbps.formats.hdf5 import DAMAGED

if TYPE_CHECKING:
    from pathlib import Path


def coordinate_facts(path: Path) -> dict[str, str] | None:
    """Facts about a file of tile coordinates, by name; None for an HDF5 file that is none or is damaged.

    Raises:
        SlideError: If it is missing; or if it is JSON or .npz, and not hs2p's or damaged.
    """
    if not path.exists():
        raise SlideError(f"{path}: no such file")
    try:
        if path.suffix == ".json":
            return _hs2p_facts(json.loads(path.read_text(encoding="utf-8")))
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                num_tiles = len(arrays["x"])
            beside = path.with_suffix(".meta.json").name
            return {"what": "tile coordinates (hs2p)", "tiles": f"{num_tiles}; their size is in {beside}"}
        with h5py.File(path, "r", locking=False) as file:
            if "coords" not in file:
                return None
            coords, attrs = file["coords"], dict(file["coords"].attrs)
            return _hdf5_facts(coords.shape[0], attrs)
    except DAMAGED as error:
        if path.suffix not in (".json", ".npz"):
            return None
        said = one_line(f"{type(error).__name__}: {error}")
        raise SlideError(f"{path}: not a file of coordinates of hs2p: {said}") from None


def _hdf5_facts(num_tiles: int, attrs: dict[str, Any]) -> dict[str, str] | None:
    if "patch_size_level0" in attrs:
        tool, size = "TRIDENT", f"{attrs['patch_size']} px, {attrs['patch_size_level0']:g} px of level 0"
    elif "patch_level" in attrs:
        tool, size = "CLAM", f"{attrs['patch_size']} px of level {attrs['patch_level']}"
    else:
        return None
    return {
        "what": f"tile coordinates ({tool})",
        "slide": str(attrs.get("name", "not in the file")),
        "tiles": f"{num_tiles} of {size}",
        "use": "wsi-dbps tile --coords FOLDER cuts these tiles",
    }


def _hs2p_facts(meta: Any) -> dict[str, str]:
    tiling = meta["tiling"]
    return {
        "what": "tile coordinates (hs2p)",
        "slide": str(meta["provenance"]["sample_id"]),
        "tiles": f"{tiling['n_tiles']} of {tiling['requested_tile_size_px']} px at "
        f"{tiling['requested_spacing_um']:g} µm/px, {tiling['tile_size_lv0']:g} px of level 0",
        "use": "wsi-dbps tile --coords FOLDER cuts these tiles",
    }
