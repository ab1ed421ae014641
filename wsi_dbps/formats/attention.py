"""The attention file: how a model looked at every patch of one slide. Documented in docs/formats/attention.md."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.core.errors import PredictionError, UnknownGridError
from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.formats.hdf5 import h5_written_whole, reading
from wsi_dbps.formats.predictions import Prediction

if TYPE_CHECKING:
    from collections.abc import Mapping

    import h5py
    import numpy.typing as npt

    from wsi_dbps.core.files import PathLike

ROLES: Final = ("other", "salient", "recycled")
"""Names of the values of `SlideAttention.role_N`: 0 neither, 1 in the fundamental and 2 in the auxiliary buffer."""


@dataclass(frozen=True)
class SlideAttention:
    """How a model looked at every patch of one slide. Row i is row i of the slide's patch cache."""

    slide_id: str
    prediction: Prediction
    """The very prediction that this attention produced."""
    classes: tuple[str, ...]
    grid: TileGrid
    """Where the patches lie. Files of version 1, and features of other tools, do not say all of it (`with_slide`)."""
    logits_NR: npt.NDArray[np.float32]
    """(N, R) attention logits, R = heads x query tokens."""
    weights_N: npt.NDArray[np.float32]
    """(N,) softmax of the logits over the slide, averaged over R; sums to 1."""
    role_N: npt.NDArray[np.uint8]
    """(N,) index into `ROLES`."""
    cache_fingerprint: str
    checkpoint_fingerprint: str
    evidence_NC: npt.NDArray[np.float32] | None = None
    """(N, C) signed contribution of each patch to each class logit (`wsi_dbps.models.aggregators.base.Reading`): of the
    patches in the buffers they sum to `class_logits_C - empty_logits_C`; of the others it is what each would add."""
    class_logits_C: npt.NDArray[np.float32] | None = None
    """(C,) the logits behind the prediction."""
    empty_logits_C: npt.NDArray[np.float32] | None = None
    """(C,) the logits where nothing is pooled."""
    embedding_D: npt.NDArray[np.float32] | None = None
    """(D,) the slide's embedding: what the last linear layer sees."""

    def with_slide(self, grid: TileGrid) -> SlideAttention:
        """The attention, with what its file does not say of the slide taken from the grid of its cache or features."""
        return replace(self, grid=self.grid.completed(grid))

    def write(self, path: PathLike) -> None:
        """Write the attention file (HDF5) atomically; what is not known of the slide is left out of it."""
        with h5_written_whole(Path(path)) as file:
            file.attrs.update(
                format=ATTENTION_FORMAT,
                format_version=ATTENTION_VERSION,
                slide_id=self.slide_id,
                case_id=self.prediction.case_id,
                split=self.prediction.split or "",
                label=self.prediction.label or "",
                classes=json.dumps(self.classes),
                probabilities=np.asarray(self.prediction.probabilities, np.float64),
                tile_lv0=self.grid.tile_lv0,
                **_said_of_slide(self.grid),
                cache_fingerprint=self.cache_fingerprint,
                checkpoint_fingerprint=self.checkpoint_fingerprint,
                roles=json.dumps(ROLES),
            )
            file["coords"] = self.grid.origins_lv0.astype(np.int64)
            file["logits"] = self.logits_NR.astype(np.float32)
            file["weights"] = self.weights_N.astype(np.float32)
            file["role"] = self.role_N.astype(np.uint8)
            for name, field in _MAY.items():
                if (values := getattr(self, field)) is not None:
                    file[name] = values.astype(np.float32)


def _said_of_slide(grid: TileGrid) -> dict[str, Any]:
    known = {name: getattr(grid, field) for name, field in _OF_SLIDE.items() if grid.knows(field)}
    if size := known.get("slide_size"):
        known["slide_size"] = np.array([size.width, size.height], np.int64)
    return known


_OF_SLIDE: Final = {
    "slide_size": "slide_lv0",
    "mpp_level0": "mpp_lv0_um",
    "patch_size_px": "size_px",
    "mpp_patch": "mpp_um",
}
"""Attributes that a file need not have, named as in a patch cache, and their fields in `TileGrid`."""
_MAY: Final = {
    "evidence": "evidence_NC",
    "class_logits": "class_logits_C",
    "empty_logits": "empty_logits_C",
    "embedding": "embedding_D",
}
"""Datasets that a file need not have, and their fields."""
ATTENTION_FORMAT: Final = "wsi-dbps attention"
ATTENTION_VERSION: Final = 2
READS_VERSIONS: Final = (1, 2)
"""Version 1 does not say how large the slide and its pixels are."""


def attention_path(folder: Path, slide_id: str) -> Path:
    """Where a slide's attention lies in a folder of predictions, or of heatmaps."""
    return folder / "attention" / f"{slide_id}.h5"


def read_attention(path: PathLike) -> SlideAttention:
    """Read an attention file.

    Raises:
        PredictionError: If the file is missing, damaged, or of another format or version.
    """
    path = Path(path)
    missing = "no such attention file; run `wsi-dbps predict` first"
    with reading(path, PredictionError, "not a readable attention file", "predict again", missing=missing) as file:
        a = file.attrs
        found = (a.get("format"), a.get("format_version"))
        if found[0] != ATTENTION_FORMAT or found[1] not in READS_VERSIONS:
            raise PredictionError(
                f"{path}: is {found[0]!r} version {found[1]}, not {ATTENTION_FORMAT!r} version 1 or 2"
            )
        coords_N2, probabilities = file["coords"][:], tuple(float(p) for p in a["probabilities"])
        classes = tuple(str(name) for name in json.loads(a["classes"]))
        _check_arrays(path, file, len(classes), len(probabilities))
        prediction = Prediction(
            a["slide_id"], a["case_id"], a["split"] or None, a["label"] or None, len(coords_N2), probabilities
        )
        return SlideAttention(
            slide_id=str(a["slide_id"]),
            prediction=prediction,
            classes=classes,
            grid=_grid(path, coords_N2, a),
            logits_NR=file["logits"][:],
            weights_N=file["weights"][:],
            role_N=file["role"][:],
            cache_fingerprint=a["cache_fingerprint"],
            checkpoint_fingerprint=a["checkpoint_fingerprint"],
            **{field: file[name][:] for name, field in _MAY.items() if name in file},
        )


def _grid(path: Path, coords_N2: npt.NDArray[np.int64], a: Mapping[str, Any]) -> TileGrid:
    """Where the tiles lie; what the file does not say is an error that says so when it is asked for."""

    def absent() -> Any:
        raise UnknownGridError(
            f"{path}: does not say how large its slide is, at which mpp and in which patches; predict again from patch "
            "caches, or give --caches"
        )

    sizes = {name: np.asarray(a[name]) for name in _OF_SLIDE if name in a}
    for name, value in sizes.items():
        shape, kinds = ((2,) if name == "slide_size" else ()), ("iuf" if name.startswith("mpp") else "iu")
        if value.shape != shape or value.dtype.kind not in kinds or not ((value > 0) & np.isfinite(value)).all():
            raise PredictionError(f"{path}: {name} is {a[name]!r}; predict again")
    return TileGrid(
        coords_N2,
        float(a["tile_lv0"]),
        Size(*sizes["slide_size"].tolist()) if "slide_size" in sizes else absent,
        float(sizes["mpp_level0"]) if "mpp_level0" in sizes else absent,
        int(sizes["patch_size_px"]) if "patch_size_px" in sizes else absent,
        float(sizes["mpp_patch"]) if "mpp_patch" in sizes else absent,
    )


_ARRAYS: Final = {
    "coords": ("iu", 2),
    "logits": ("f", 2),
    "weights": ("f", 1),
    "role": ("u", 1),
    "evidence": ("f", 2),
    "class_logits": ("f", 1),
    "empty_logits": ("f", 1),
    "embedding": ("f", 1),
}
"""What kind of numbers each dataset holds, along how many axes."""


def _check_arrays(path: Path, file: h5py.File, num_classes: int, num_probabilities: int) -> None:
    """Refuse arrays of another kind or shape than docs/formats/attention.md says, and roles that have no name."""
    for name in [name for name in _ARRAYS if name in file]:
        kinds, num_axes = _ARRAYS[name]
        found, of_classes = file[name], name in ("evidence", "class_logits", "empty_logits")
        if (
            found.dtype.kind not in kinds
            or found.ndim != num_axes
            or (of_classes and found.shape[-1] != num_classes)
            or num_probabilities != num_classes
        ):
            raise PredictionError(
                f"{path}: /{name} is {found.dtype} {found.shape} beside {num_probabilities} probabilities of "
                f"{num_classes} classes; predict again"
            )
    num_tiles = len(file["coords"])
    rows = [len(file[name]) for name in ("logits", "weights", "role", "evidence") if name in file]
    if file["coords"].shape[1] != 2 or set(rows) != {num_tiles}:
        raise PredictionError(f"{path}: {num_tiles} coordinates for {rows} rows; predict again")
    if (highest := file["role"][:].max(initial=0)) >= len(ROLES):
        raise PredictionError(f"{path}: role {highest} is none of 0 to {len(ROLES) - 1}; predict again")
