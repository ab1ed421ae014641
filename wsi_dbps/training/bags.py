"""Bags: a slide's cached patches and its label, read in chunks by threads while the device computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_dbps.errors import CacheError
from wsi_dbps.patches.cache import PatchCache
from wsi_dbps.patches.quality import PatchFilter, filtered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import SlideRecord


class PatchReader:
    """Threads that read and decode JPEG patches; libjpeg-turbo runs without the GIL."""

    def __init__(self, num_threads: int, *, pin_memory: bool = False) -> None:
        self._pool = ThreadPoolExecutor(num_threads, "decode")
        self._num_threads, self._pin = num_threads, pin_memory

    def read(self, cache: PatchCache, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its (L, 3, P, P) uint8 pixels, the next list being decoded meanwhile."""
        ahead: list[Future[npt.NDArray[np.uint8]]] | None = None
        for ids in id_lists:
            coming = self._submit(cache, ids)
            if ahead is not None:
                yield self._gather(ahead)
            ahead = coming
        if ahead is not None:
            yield self._gather(ahead)

    def _submit(self, cache: PatchCache, ids: torch.Tensor) -> list[Future[npt.NDArray[np.uint8]]]:
        parts = [part for part in np.array_split(ids.numpy(), self._num_threads) if len(part)]
        return [self._pool.submit(cache.patches, part.tolist()) for part in parts]

    def _gather(self, futures: Sequence[Future[npt.NDArray[np.uint8]]]) -> torch.Tensor:
        pixels = torch.from_numpy(np.concatenate([future.result() for future in futures]))
        return (pixels.pin_memory() if self._pin else pixels).permute(0, 3, 1, 2)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class CacheBag:
    """A slide as a bag, its patches on disk."""

    record: SlideRecord
    cache: PatchCache
    reader: PatchReader

    @property
    def num_patches(self) -> int:
        """N."""
        return len(self.cache)

    @property
    def positions(self) -> torch.Tensor:
        """(N, 2) float32 (x, y) of the patches' top-left corners on the slide, in patch sides."""
        return torch.from_numpy(self.cache.coords_N2 / self.cache.tile_lv0).float()

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its (L, 3, P, P) uint8 pixels."""
        return self.reader.read(self.cache, id_lists)


@dataclass(frozen=True)
class PatchKind:
    """What every patch of a run must be."""

    mpp_um: float
    size_px: int

    def __str__(self) -> str:
        return f"{self.size_px} px at {self.mpp_um:g} µm/px"


def patch_kind(cache: PatchCache) -> PatchKind:
    """What the patches of a cache are."""
    return PatchKind(float(cache.attrs["mpp_patch"]), cache.size_px)


def open_cache(caches: Path, record: SlideRecord, kind: PatchKind | None, patch_filter: PatchFilter) -> PatchCache:
    """A slide's cache, checked to hold the slide's patches, and patches of the kind at hand; those that pass.

    Raises:
        CacheError: If it is missing or damaged, belongs to another slide, holds patches of another kind, or lacks the
            measures that the filter needs.
    """
    cache = PatchCache(caches / f"{record.slide_id}.h5")
    if cache.slide_id != record.slide_id:
        raise CacheError(f"{cache.path}: holds slide {cache.slide_id!r}, not {record.slide_id!r}")
    if kind is not None and patch_kind(cache) != kind:
        raise CacheError(
            f"{cache.path}: holds patches of {patch_kind(cache)}, where {kind} are wanted; tile with one spec"
        )
    return filtered(cache, patch_filter)
