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

from wsi_dbps.core.errors import CheckpointError
from wsi_dbps.formats.selection_record import read_selection_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.formats.selection_record import VisitRecord

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
    running: dict[str, _Running] = {}
    for path in paths:
        for visit in read_selection_record(path):
            of = running.setdefault(visit.slide_id, _Running(len(visit.kept_N)))
            if len(visit.kept_N) != len(of.times_N):
                raise CheckpointError(
                    f"{run}: {visit.slide_id} has another number of patches in some epochs; records of two runs?"
                )
            of.add(int(path.stem.removeprefix("epoch_")), visit)
    return tuple(running[slide_id].course(slide_id) for slide_id in sorted(running))


def course(slide_id: str, visits: Sequence[tuple[int, VisitRecord]]) -> SlideCourse:
    """The course of one slide from its visits and their epochs, in order."""
    of = _Running(len(visits[0][1].kept_N))
    for epoch, visit in visits:
        of.add(epoch, visit)
    return of.course(slide_id)


class _Running:
    """A course as it grows: of each visit its numbers stay, of the patches chosen only those of the last."""

    def __init__(self, num_patches: int) -> None:
        self.first_N, self.last_N, self.times_N = np.zeros((3, num_patches), np.int64)
        self._rows: list[tuple[int, bool, float, float, float, float]] = []
        self._before: VisitRecord | None = None

    def add(self, epoch: int, visit: VisitRecord) -> None:
        """The next visit."""
        ids, old = visit.salient_M, self._before
        self.last_N[ids] = epoch
        self.first_N[ids] = np.where(self.first_N[ids] == 0, epoch, self.first_N[ids])
        self.times_N[ids] += 1
        churn = recycled = jaccard = float("nan")
        if old is not None:
            churn, recycled = _churn(ids, old.salient_M), _churn(visit.recycled_S, old.recycled_S)
            if len(ids) and len(old.salient_M):
                jaccard = len(np.intersect1d(ids, old.salient_M)) / len(np.union1d(ids, old.salient_M))
        self._rows.append((epoch, visit.explored, churn, jaccard, recycled, entropy(visit.logits_KR)))
        self._before = visit

    def course(self, slide_id: str) -> SlideCourse:
        """All visits so far."""
        columns = (np.array(values) for values in zip(*self._rows, strict=True))
        epochs_V, explored_V, churn, jaccard, recycled, spread = columns
        return SlideCourse(
            slide_id,
            epochs_V,
            explored_V,
            churn=churn,
            jaccard=jaccard,
            recycled_churn=recycled,
            entropy=spread,
            first_N=self.first_N,
            last_N=self.last_N,
            times_N=self.times_N,
        )


def _churn(new: npt.NDArray[np.int64], old: npt.NDArray[np.int64]) -> float:
    return float(np.isin(new, old, invert=True).mean()) if len(new) and len(old) else float("nan")


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
