"""How a run's buffers moved over training: the numbers of the selection atlas, from the trainer's record.

Documented in docs/formats/atlas.md. N: patches of a slide, V: its training visits.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from wsi_dbps.errors import CheckpointError
from wsi_dbps.training.record import read_selection_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.training.record import VisitRecord

FORMAT: Final = "wsi-dbps selection atlas"
FORMAT_VERSION: Final = 1
CURVES: Final = ("churn", "jaccard", "recycled_churn", "entropy")


@dataclass(frozen=True)
class SlideCourse:
    """One slide over all its visits. Where a number does not exist it is NaN."""

    slide_id: str
    epochs_V: npt.NDArray[np.int64]
    """From 1."""
    explored_V: npt.NDArray[np.bool_]
    """Selected at random, by `selection.exploration`."""
    churn: npt.NDArray[np.float64]
    """(V,) share of the salient patches that were not salient at the visit before."""
    jaccard: npt.NDArray[np.float64]
    """(V,) salient patches of both visits, as a share of those of either."""
    recycled_churn: npt.NDArray[np.float64]
    """(V,) likewise `churn`, of the recycled."""
    entropy: npt.NDArray[np.float64]
    """(V,) of the attention over the chosen patches, 1 where all have the same; NaN where they were not scored."""
    first_N: npt.NDArray[np.int64]
    """Epoch at which each patch was salient for the first time; 0 for never."""
    last_N: npt.NDArray[np.int64]
    """Likewise the last."""
    times_N: npt.NDArray[np.int64]
    """Visits at which it was salient."""


def read_courses(run: Path) -> tuple[SlideCourse, ...]:
    """The course of every training slide, by slide id.

    Raises:
        CheckpointError: If the run kept no record, or one is damaged, or a slide's patches change in number.
    """
    paths = sorted((run / "selection").glob("epoch_[0-9]*[0-9].npz"))
    if not paths:
        raise CheckpointError(f"{run}: no selection record; train with training.record = true")
    visits: dict[str, list[tuple[int, VisitRecord]]] = defaultdict(list)
    for path in paths:
        for visit in read_selection_record(path):
            visits[visit.slide_id].append((int(path.stem.removeprefix("epoch_")), visit))
    for slide_id, those in visits.items():
        if len({len(visit.kept_N) for _, visit in those}) > 1:
            raise CheckpointError(
                f"{run}: {slide_id} has another number of patches in some epochs; records of two runs?"
            )
    return tuple(course(slide_id, visits[slide_id]) for slide_id in sorted(visits))


def course(slide_id: str, visits: Sequence[tuple[int, VisitRecord]]) -> SlideCourse:
    """The course of one slide from its visits and their epochs, in order."""
    epochs_V = np.array([epoch for epoch, _ in visits])
    salient = [visit.salient_M for _, visit in visits]
    recycled = [visit.recycled_S for _, visit in visits]
    first_N, last_N, times_N = np.zeros((3, len(visits[0][1].kept_N)), np.int64)
    for epoch, ids in zip(epochs_V, salient, strict=True):
        last_N[ids] = epoch
        first_N[ids] = np.where(first_N[ids] == 0, epoch, first_N[ids])
        times_N[ids] += 1
    return SlideCourse(
        slide_id,
        epochs_V,
        explored_V=np.array([visit.explored for _, visit in visits]),
        churn=_since_before(salient, lambda new, old: float(np.isin(new, old, invert=True).mean())),
        jaccard=_since_before(salient, lambda new, old: len(np.intersect1d(new, old)) / len(np.union1d(new, old))),
        recycled_churn=_since_before(recycled, lambda new, old: float(np.isin(new, old, invert=True).mean())),
        entropy=np.array([entropy(visit.logits_KR) for _, visit in visits]),
        first_N=first_N,
        last_N=last_N,
        times_N=times_N,
    )


def _since_before(chosen: Sequence[npt.NDArray[np.int64]], of: Any) -> npt.NDArray[np.float64]:
    pairs = zip(chosen[1:], chosen[:-1], strict=True)
    return np.array([np.nan, *(of(new, old) if len(new) and len(old) else np.nan for new, old in pairs)])


def entropy(logits_KR: npt.NDArray[np.floating]) -> float:
    """Entropy of the softmax over K patches, averaged over R, as a share of log K; NaN where unscored or K is 1.

    Examples:
        >>> round(entropy(np.zeros((4, 2))), 6)
        1.0
    """
    from scipy.special import entr, softmax

    if len(logits_KR) < 2 or logits_KR.shape[1] == 0 or np.isnan(logits_KR).any():
        return float("nan")
    weights_K = softmax(logits_KR.astype(np.float64), axis=0).mean(axis=1)
    return float(entr(weights_K).sum() / np.log(len(weights_K)))


def quartiles(courses: Sequence[SlideCourse]) -> list[dict[str, Any]]:
    """Per epoch: how many slides were visited, the share explored, and quartiles of each curve over the slides.

    A curve is absent where no slide has it, such as churn at the first epoch.
    """
    epochs = np.unique(np.concatenate([course.epochs_V for course in courses]))
    rows = []
    for epoch in epochs.tolist():
        at = [(course, course.epochs_V == epoch) for course in courses]
        explored = np.concatenate([course.explored_V[here] for course, here in at])
        row: dict[str, Any] = {"epoch": epoch, "num_slides": len(explored), "explored": float(explored.mean())}
        for name in CURVES:
            values = np.concatenate([getattr(course, name)[here] for course, here in at])
            if (known := values[~np.isnan(values)]).size:
                row[name] = dict(
                    zip(("q1", "median", "q3"), np.quantile(known, (0.25, 0.5, 0.75)).tolist(), strict=True)
                )
        rows.append(row)
    return rows


def atlas_csv(courses: Sequence[SlideCourse]) -> str:
    """A row per slide and visit; empty cells where a number does not exist."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["slide_id", "epoch", "explored", *CURVES])
    for of in courses:
        for i, epoch in enumerate(of.epochs_V.tolist()):
            values = [getattr(of, name)[i] for name in CURVES]
            cells = ["" if np.isnan(value) else f"{value:.6g}" for value in values]
            writer.writerow([of.slide_id, epoch, int(of.explored_V[i]), *cells])
    return out.getvalue()


def spread_over_classes(slide_ids: Sequence[str], labels: Mapping[str, str | None], num: int) -> tuple[str, ...]:
    """At most `num` slides, taken from the classes in turn.

    Examples:
        >>> spread_over_classes(["a", "b", "c", "d"], {"a": "x", "b": "x", "c": "x", "d": "y"}, 3)
        ('a', 'd', 'b')
    """
    of_class: dict[str | None, list[str]] = defaultdict(list)
    for slide_id in slide_ids:
        of_class[labels.get(slide_id)].append(slide_id)
    turns = sorted((i, j, slide_id) for j, those in enumerate(of_class.values()) for i, slide_id in enumerate(those))
    return tuple(slide_id for _, _, slide_id in turns[:num])
