"""The bags of a training run: train and val, never test."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from wsi_dbps.bags.bags import CacheBag, FeatureKind, PatchKind, PatchReader, open_cache, patch_kind
from wsi_dbps.cohort.cohort import SPLITS, ordered_classes
from wsi_dbps.cohort.labels import check_classes
from wsi_dbps.core.errors import CacheError, ConfigError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.formats.patch_filter import PatchFilter
    from wsi_dbps.models.settings import EncoderConfig
    from wsi_dbps.training.settings import LoopConfig


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and what it chooses its best epoch by."""

    train: tuple[CacheBag, ...]
    val: tuple[CacheBag, ...]
    classes: tuple[str, ...]
    """Labels of these two parts, in the order of the logits."""
    kind: PatchKind | FeatureKind
    left_out: tuple[str, ...]
    """Slides whose cache holds no patch."""

    def targets(self, bags: Sequence[CacheBag]) -> torch.Tensor:
        """(B,) class index of each bag."""
        return torch.tensor([self.classes.index(str(bag.record.label)) for bag in bags])

    def order(self, generator: torch.Generator) -> list[int]:
        """The training slides in random order, every class spread evenly over it.

        Batches of few slides then hold the classes in like shares. Else the chance of a batch moves the bias of the
        logits at each step, which drowned what the slides differ by: training from random weights stayed at chance.
        """
        targets_B = self.targets(self.train)
        order = torch.randperm(len(targets_B), generator=generator)
        place_B = torch.empty(len(targets_B), dtype=torch.float64)
        for index in range(len(self.classes)):
            of_class = order[targets_B[order] == index]
            shift = (index + 0.5) / len(self.classes)  # so that equal classes alternate
            place_B[of_class] = (torch.arange(len(of_class), dtype=torch.float64) + shift) / max(1, len(of_class))
        return place_B.argsort().tolist()

    def class_weights(self) -> torch.Tensor:
        """(C,) weights inverse to each class's number of training slides, 1 on average over the slides."""
        counts = torch.bincount(self.targets(self.train), minlength=len(self.classes))
        return len(self.train) / (len(self.classes) * counts)


def load_data(
    cohort: Cohort, caches: Path, reader: PatchReader, loop: LoopConfig, patch_filter: PatchFilter
) -> TrainingData:
    """Open the caches, or features, of the train and val slides; other records are dropped before any file is touched.

    Raises:
        ManifestError: If labels cannot be classes (`check_classes`).
        TrainingError: If a part is empty or lacks a class that is needed, or the settings name other classes.
        CacheError: If a cache is missing, damaged, or holds patches of another kind than the first.
    """
    check_classes(cohort.part(*SPLITS).records, loop.classes or ())
    bags: dict[str, list[CacheBag]] = {"train": [], "val": []}
    left_out: list[str] = []
    kind: PatchKind | FeatureKind | None = None
    wanted = cohort.part("train", "val").records
    for record in wanted:
        try:
            cache = open_cache(caches, record, kind, patch_filter)
        except CacheError as error:
            if not isinstance(error.__context__, FileNotFoundError):  # it has been found, or other words say what to do
                raise
            raise _missing(caches, wanted, record) or error from None
        if len(cache):
            kind = kind or patch_kind(cache)
            bags[str(record.split)].append(CacheBag(record, cache, reader))
        else:
            left_out.append(record.slide_id)
    train, val = tuple(bags["train"]), tuple(bags["val"])
    for part, found in bags.items():
        if not found and not any(record.split == part for record in wanted):
            raise TrainingError(
                f"the manifest has no slide in split {part}; `wsi-dbps split COHORT.csv --out split.csv` writes one "
                "with splits, or give --fold if it has a fold column"
            )
        if not found:
            raise TrainingError(
                f"no slide of split {part} has a patch: {', '.join(left_out[:3])}{', ...' * (len(left_out) > 3)}; look "
                "at the contact sheet of `wsi-dbps tile`, and at the settings of [patches]"
            )
    in_train, in_val = (Counter(str(bag.record.label) for bag in part) for part in (train, val))
    if len(in_train) < 2:
        raise TrainingError(f"every train slide is {next(iter(in_train))!r}; training needs two classes or more")
    if unseen := [label for label in in_val if label not in in_train]:
        raise TrainingError(f"val holds class {unseen[0]!r}, of which train has no slide")
    classes = loop.classes or ordered_classes(in_train)
    if set(classes) != set(in_train):
        raise TrainingError(
            f"[training] classes = {', '.join(classes)}, but the train slides are labelled "
            f"{', '.join(ordered_classes(in_train))}; name each of these once"
        )
    if loop.monitor == "auroc" and (absent := [label for label in classes if label not in in_val]):
        raise TrainingError(
            f"val has no slide of class {absent[0]!r}, so it has no AUROC; mend the label if it is misspelt, split "
            "anew, or set training.monitor = 'loss'"
        )
    assert kind is not None
    return TrainingData(train, val, classes, kind, tuple(left_out))


def _missing(caches: Path, wanted: Sequence[SlideRecord], failed: SlideRecord) -> CacheError | None:
    """The error that says how many slides have no file at all, where that is what failed."""
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
    """The encoder's settings with `num_features` filled in from the bags.

    Raises:
        ConfigError: If it takes pixels and the bags hold features, the other way round, or features of another size.
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
