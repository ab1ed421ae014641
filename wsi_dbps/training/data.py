"""The bags of a training run, of the splits train and val; the split test is never opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from wsi_dbps.bags.bags import CacheBag, FeatureKind, PatchKind, PatchReader, open_cache, patch_kind
from wsi_dbps.cohort.cohort import SPLITS
from wsi_dbps.core.errors import CacheError, ConfigError, TrainingError
from wsi_dbps.tasks.classification import Classification

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from wsi_dbps.bags.bags import BagFile
    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.formats.patch_filter import PatchFilter
    from wsi_dbps.models.settings import EncoderConfig
    from wsi_dbps.tasks.task import Task
    from wsi_dbps.training.settings import LoopConfig


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from, what it chooses its best epoch by, and what the slides are asked."""

    train: tuple[CacheBag, ...]
    val: tuple[CacheBag, ...]
    task: Task
    kind: PatchKind | FeatureKind
    left_out: tuple[str, ...]
    """Slides whose cache holds no patch."""

    def targets(self, bags: Sequence[CacheBag]) -> torch.Tensor:
        """(B, ...) target of each bag."""
        return self.task.targets([bag.record for bag in bags])

    def order(self, generator: torch.Generator) -> list[int]:
        """The training slides in random order, with every stratum of the task spread evenly over the epoch.

        Small batches then hold the classes in similar proportions. If they were shuffled freely, the random class
        proportions of each batch would move the bias of the logits at every step; this drowned the differences between
        slides, and training from random weights stayed at chance level.
        """
        strata_B = self.task.strata(self.targets(self.train))
        order = torch.randperm(len(strata_B), generator=generator)
        place_B = torch.empty(len(strata_B), dtype=torch.float64)
        num_strata = int(strata_B.max()) + 1
        for stratum in range(num_strata):
            members = order[strata_B[order] == stratum]
            shift = (stratum + 0.5) / num_strata  # so that strata of equal size alternate
            place_B[members] = (torch.arange(len(members), dtype=torch.float64) + shift) / max(1, len(members))
        return place_B.argsort().tolist()


def check_labels(cohort: Cohort, loop: LoopConfig) -> None:
    """Check that the labels of a cohort can be learnt at all, before any file is opened.

    Raises:
        ManifestError: If they cannot be classes (`Classification.check`).
    """
    Classification.check(cohort.records, loop.classes)


def load_data(
    cohort: Cohort, caches: Path, reader: PatchReader, loop: LoopConfig, patch_filter: PatchFilter
) -> TrainingData:
    """Open the caches, or features, of the train and val slides; other records are dropped before any file is touched.

    Raises:
        ManifestError: If labels cannot be classes (`check_labels`).
        TrainingError: If a part is empty or lacks a class that is needed, or the settings name other classes.
        CacheError: If a cache is missing, damaged, or holds patches of another kind than the first.
    """
    check_labels(cohort.part(*SPLITS), loop)
    bags: dict[str, list[CacheBag]] = {"train": [], "val": []}
    left_out: list[str] = []
    kind: PatchKind | FeatureKind | None = None
    wanted = cohort.part("train", "val").records
    for record in wanted:
        cache = _opened(caches, record, kind, patch_filter, wanted)
        if len(cache):
            kind = kind or patch_kind(cache)
            bags[str(record.split)].append(CacheBag(record, cache, reader))
        else:
            left_out.append(record.slide_id)
    for part, found in bags.items():
        if not found:
            raise _empty_part(part, wanted, left_out)
    train, val = tuple(bags["train"]), tuple(bags["val"])
    task = Classification.fitted(
        [bag.record for bag in train],
        [bag.record for bag in val],
        classes=loop.classes,
        balanced=loop.class_weights == "balanced",
        monitor=loop.monitor,
    )
    assert kind is not None
    return TrainingData(train, val, task, kind, tuple(left_out))


def _opened(
    caches: Path,
    record: SlideRecord,
    kind: PatchKind | FeatureKind | None,
    patch_filter: PatchFilter,
    wanted: Sequence[SlideRecord],
) -> BagFile:
    """A slide's cache or features; if the file is missing, the error counts all that are missing."""
    try:
        return open_cache(caches, record, kind, patch_filter)
    except CacheError as error:
        if not isinstance(error.__context__, FileNotFoundError):  # the file exists, or the message says what to do
            raise
        raise _missing(caches, wanted, record) or error from None


def _empty_part(part: str, wanted: Sequence[SlideRecord], left_out: Sequence[str]) -> TrainingError:
    """Why a split has no bag: no slide is in it, or none of its slides has a patch."""
    if not any(record.split == part for record in wanted):
        return TrainingError(
            f"the manifest has no slide in split {part}; `wsi-dbps split COHORT.csv --out split.csv` writes one "
            "with splits, or give --fold if it has a fold column"
        )
    return TrainingError(
        f"no slide of split {part} has a patch: {', '.join(left_out[:3])}{', ...' * (len(left_out) > 3)}; look "
        "at the contact sheet of `wsi-dbps tile`, and at the settings of [patches]"
    )


def _missing(caches: Path, wanted: Sequence[SlideRecord], failed: SlideRecord) -> CacheError | None:
    """The error that counts the slides without any file, if the failed slide is one of them."""
    there = {path.stem for path in caches.rglob("*")}
    missing = [record.slide_id for record in wanted if record.slide_id not in there]
    if failed.slide_id not in missing:
        return None
    first = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
    return CacheError(
        f"{caches}: {len(missing)} of {len(wanted)} train and val slides have no file there ({first}); make the "
        f"missing ones with `wsi-dbps tile COHORT.csv --out {caches}` (for features: `wsi-dbps embed`), which keeps "
        "the others"
    )


def fitted(encoder: EncoderConfig, kind: PatchKind | FeatureKind) -> EncoderConfig:
    """The encoder's settings, with `num_features` taken from the bags.

    Raises:
        ConfigError: If the encoder takes pixels and the bags hold features, or the other way round, or the number of
            features differs.
    """
    if isinstance(kind, PatchKind):
        if encoder.name == "projector":
            raise ConfigError(
                f"[encoder] name = 'projector' takes features, and the caches hold patches of {kind}; give --caches a "
                "folder that `wsi-dbps embed` wrote, or name an encoder of pixels"
            )
        return encoder
    if encoder.name != "projector":
        raise ConfigError(
            f"[encoder] name = {encoder.name!r} takes pixels, and --caches holds {kind}; set encoder.name = "
            "'projector', or give --caches a folder of patch caches"
        )
    if encoder.num_features not in (None, kind.dim):
        raise ConfigError(f"[encoder] num_features = {encoder.num_features}, and --caches holds {kind}; leave it out")
    return replace(encoder, num_features=kind.dim)
