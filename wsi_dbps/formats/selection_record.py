"""The selection record: what became of every patch at every training visit. Documented in
docs/formats/selection-record.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.core.errors import CheckpointError
from wsi_dbps.core.files import written_whole
from wsi_dbps.formats.hdf5 import translated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

RECORD_FORMAT: Final = "wsi-dbps selection record"
RECORD_VERSION: Final = 1


@dataclass(frozen=True)
class VisitRecord:
    """One training visit to one slide. Ids are rows of the slide's patch cache."""

    slide_id: str
    place: int
    """Position of the visit in its epoch, from 0."""
    explored: bool
    """Selected at random, by `selection.exploration`."""
    kept_N: npt.NDArray[np.bool_]
    """(N,) which patches random drop left."""
    salient_M: npt.NDArray[np.int64]
    """From the highest score down."""
    recycled_S: npt.NDArray[np.int64]
    """From the highest score down."""
    logits_KR: npt.NDArray[np.float32]
    """(M + S, R) attention logits of the salient, then of the recycled; NaN where nothing was scored."""


def record_path(run: Path, epoch: int) -> Path:
    """Where the record of an epoch, counted from 1, lies in a run folder."""
    return run / "selection" / f"epoch_{epoch:04d}.npz"


def write_selection_record(path: Path, epoch: int, visits: Sequence[VisitRecord]) -> None:
    """Write the visits of an epoch in the order of their places, atomically; equal visits give equal bytes."""
    visits = sorted(visits, key=lambda visit: visit.place)
    rows = max(visit.logits_KR.shape[1] for visit in visits)
    unscored = [np.full((len(visit.logits_KR), rows), np.nan, np.float32) for visit in visits]
    arrays: dict[str, Any] = {
        "format": np.array(RECORD_FORMAT),
        "format_version": np.array(RECORD_VERSION),
        "epoch": np.array(epoch),
        "slide_ids": np.array([visit.slide_id for visit in visits]),
        "explored": np.array([visit.explored for visit in visits]),
        "num_patches": np.array([len(visit.kept_N) for visit in visits], np.int64),
        "kept": np.concatenate([np.packbits(visit.kept_N) for visit in visits]),
        "num_salient": np.array([len(visit.salient_M) for visit in visits], np.int64),
        "num_recycled": np.array([len(visit.recycled_S) for visit in visits], np.int64),
        "salient": np.concatenate([visit.salient_M for visit in visits]).astype(np.int32),
        "recycled": np.concatenate([visit.recycled_S for visit in visits]).astype(np.int32),
        "logits": np.concatenate(
            [visit.logits_KR if visit.logits_KR.shape[1] else nan for visit, nan in zip(visits, unscored, strict=True)]
        ).astype(np.float32, order="C"),
    }
    with written_whole(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_selection_record(path: Path) -> tuple[VisitRecord, ...]:
    """The visits of one epoch, in order.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another format or version.
    """
    missing = "no such selection record; train with training.record = true"
    with translated(path, CheckpointError, "not a readable selection record", "train again", missing=missing):
        with np.load(path, allow_pickle=False) as file:
            found = (str(file["format"]), int(file["format_version"]))
            if found != (RECORD_FORMAT, RECORD_VERSION):
                raise CheckpointError(f"{path}: is {found[0]!r} version {found[1]}, not {RECORD_FORMAT!r} version 1")
            a = {name: file[name] for name in file.files}
        chosen = a["num_salient"] + a["num_recycled"]
        parts = zip(
            a["slide_ids"].tolist(),
            a["explored"].tolist(),
            [
                np.unpackbits(packed, count=count).astype(bool)
                for packed, count in zip(_split(a["kept"], -(-a["num_patches"] // 8)), a["num_patches"], strict=True)
            ],
            _split(a["salient"].astype(np.int64), a["num_salient"]),
            _split(a["recycled"].astype(np.int64), a["num_recycled"]),
            _split(a["logits"], chosen),
            strict=True,
        )
        visits = tuple(VisitRecord(slide, i, *rest) for i, (slide, *rest) in enumerate(parts))
        for visit in visits:
            ids = np.concatenate([visit.salient_M, visit.recycled_S])
            if ids.min(initial=0) < 0 or ids.max(initial=-1) >= len(visit.kept_N):
                raise ValueError(f"{visit.slide_id} has {len(visit.kept_N)} patches, and others are chosen")
        return visits


def _split(array: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    if lengths.sum() != len(array):
        raise ValueError(f"{len(array)} entries where {lengths.sum()} belong")
    return np.split(array, np.cumsum(lengths)[:-1])
