"""One model or several as one predictor: the attention and the prediction of a slide, computed or as it was kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_dbps.bags.bags import PatchReader
from wsi_dbps.core.digests import digest
from wsi_dbps.core.errors import CacheError, PredictionError
from wsi_dbps.formats.attention import ROLES, SlideAttention, attention_path, read_attention
from wsi_dbps.formats.reuse import differences, refuse_others
from wsi_dbps.inference.member import Member
from wsi_dbps.models.device import pick_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from wsi_dbps.bags.bags import BagFile
    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.geometry import TileGrid
    from wsi_dbps.training.checkpoint import Checkpoint


class Predictor:
    """The models of one checkpoint or several, loaded when first needed, and the caches they look at.

    Raises:
        PredictionError: If the checkpoints' classes differ, or two are the same.
        CacheError: If there is no such folder of caches.
    """

    def __init__(
        self, checkpoints: Sequence[Checkpoint], caches: PathLike, *, device: str = "auto", decode_threads: int = 2
    ) -> None:
        caches = Path(caches)
        self.classes = checkpoints[0].classes
        for checkpoint in checkpoints[1:]:
            if checkpoint.classes != self.classes:
                raise PredictionError(
                    f"{checkpoint.path}: has classes {', '.join(checkpoint.classes)}, but {checkpoints[0].path} has "
                    f"{', '.join(self.classes)}; an ensemble needs the same"
                )
        if not caches.is_dir():
            raise CacheError(f"{caches}: no such folder of caches; run `wsi-dbps tile` first")
        self._reader = PatchReader(decode_threads)
        chosen = pick_device(device)
        self.members = tuple(Member(checkpoint, caches, self._reader, chosen) for checkpoint in checkpoints)
        of_content = {member.fingerprint: member for member in self.members}
        if len(of_content) < len(self.members):
            twice = [m.checkpoint.path for m in self.members if of_content[m.fingerprint] is not m]
            raise PredictionError(f"{twice[0]}: the same checkpoint is given twice; an ensemble counts each model once")
        self.fingerprint = _joined([member.fingerprint for member in self.members])

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._reader.close()

    def slide(self, record: SlideRecord) -> SlideAttention:
        """One slide's attention, which holds its prediction; an ensemble's is that of its members `together`.

        Raises:
            PredictionError: If the slide's cache holds no patch, or a model's output is not finite.
            CacheError: If the cache is missing, damaged, or of another kind than a model was trained on.
        """
        return together([member.slide(record) for member in self.members])

    def kept(self, record: SlideRecord, folder: Path) -> SlideAttention:
        """One slide's attention as a folder of predictions has it.

        Raises:
            PredictionError: If it is missing, or comes from another checkpoint or cache.
        """
        path = attention_path(folder, record.slide_id)
        attention = read_attention(path)
        checkpoints = ", ".join(str(member.checkpoint.path) for member in self.members)
        differ = differences(
            {"checkpoint": attention.checkpoint_fingerprint, "cache": attention.cache_fingerprint},
            {"checkpoint": self.fingerprint, "cache": self.cache(record).fingerprint},
            words={
                "checkpoint": f"comes from another checkpoint than {checkpoints}",
                "cache": "comes from another cache of the slide",
            },
        )
        refuse_others(str(path), differ, "predict again", raised=PredictionError)
        return attention

    def kept_or_new(self, record: SlideRecord, folder: Path) -> SlideAttention:
        """One slide's attention as the folder has it, or computed and kept there."""
        try:
            return self.kept(record, folder)
        except PredictionError:
            attention = self.slide(record)
            attention.write(attention_path(folder, record.slide_id))
            return attention

    def cache(self, record: SlideRecord) -> BagFile:
        """What a slide is predicted from: its patch cache, or its features where the run was trained on features.

        Raises:
            CacheError: If it is missing, damaged, or of another kind than the model was trained on.
        """
        return self.members[0].cache(record)


def together(members: Sequence[SlideAttention]) -> SlideAttention:
    """What an ensemble made of one slide.

    Probabilities, weights, evidence and logits are means over the members; the rows of attention logits stand side by
    side. A patch is salient if it is to any member, recycled if it only is recycled. There is no embedding, as the
    members' spaces differ.

    Raises:
        PredictionError: If the members looked at different patches.
    """
    first = members[0]
    if len(members) == 1:
        return first
    check_same_patches(first.slide_id, [member.grid for member in members])

    def mean(field: str) -> npt.NDArray[np.float32]:
        stacked = np.stack([getattr(member, field) for member in members])
        return np.asarray(stacked.mean(axis=0, dtype=np.float64), np.float32)

    roles = [[member.role_N == ROLES.index(name) for member in members] for name in ("salient", "recycled")]
    salient_N, recycled_N = (np.any(of, axis=0) for of in roles)
    probabilities = np.mean([member.prediction.probabilities for member in members], axis=0)
    return replace(
        first,
        prediction=replace(first.prediction, probabilities=tuple(probabilities.tolist())),
        logits_NR=np.concatenate([member.logits_NR for member in members], axis=1),
        weights_N=mean("weights_N"),
        role_N=np.select([salient_N, recycled_N], [1, 2], 0).astype(np.uint8),
        checkpoint_fingerprint=_joined([member.checkpoint_fingerprint for member in members]),
        evidence_NC=mean("evidence_NC"),
        class_logits_C=mean("class_logits_C"),
        empty_logits_C=mean("empty_logits_C"),
        embedding_D=None,
    )


def check_same_patches(slide_id: str, grids: Sequence[TileGrid]) -> None:
    """Refuse runs that cannot be held against each other patch by patch.

    Raises:
        PredictionError: If the corners of their tiles differ.
    """
    if not all(np.array_equal(other.origins_lv0, grids[0].origins_lv0) for other in grids[1:]):
        raise PredictionError(f"{slide_id}: the runs take different patches of it; take each alone")


def _joined(fingerprints: Sequence[str]) -> str:
    """The fingerprint of an ensemble, whatever the order of its members; of one member its own."""
    return fingerprints[0] if len(fingerprints) == 1 else digest(sorted(fingerprints))
