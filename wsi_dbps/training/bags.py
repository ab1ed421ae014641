"""Bags: a slide's cached patches and its label, read in chunks by threads while the device computes."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_dbps.errors import CacheError
from wsi_dbps.patches.cache import PatchCache
from wsi_dbps.patches.quality import PatchFilter, filtered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import SlideRecord

    _Coming = list[Future[npt.NDArray[np.uint8]]]


_AHEAD = 2
"""Lists of ids in the threads' hands at a time."""


class PatchReader:
    """Threads that read and decode JPEG patches; libjpeg-turbo runs without the GIL.

    They are kept busy: while a list is computed on, the next is decoded, and after a bag's last list the first of the
    bag that was announced by `expect`.
    """

    def __init__(self, num_threads: int, *, pin_memory: bool = False) -> None:
        self._pool = ThreadPoolExecutor(num_threads, "decode")
        self._num_threads, self._pin = num_threads, pin_memory
        self._expected: tuple[PatchCache, list[torch.Tensor]] | None = None
        self._begun: tuple[PatchCache, list[torch.Tensor], list[_Coming]] | None = None
        self.waited_s = 0.0
        """Seconds that callers have been kept waiting for pixels."""

    def expect(self, cache: PatchCache, id_lists: Iterable[torch.Tensor]) -> None:
        """Say what will be read next: its first lists are begun once nothing else is left to do. A wrong guess is
        harmless."""
        self._expected = cache, list(islice(id_lists, _AHEAD))

    def read(self, cache: PatchCache, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its (L, 3, P, P) uint8 pixels, the next lists being decoded meanwhile."""
        lists = list(id_lists)
        coming = self._take_begun(cache, lists)
        for i in range(len(lists)):
            coming += [self._submit(cache, ids) for ids in lists[i + len(coming) : i + _AHEAD]]
            if i + len(coming) == len(lists) and self._expected is not None:
                following, first = self._expected
                self._begun = following, first, [self._submit(following, ids) for ids in first]
                self._expected = None
            yield self._gather(coming.pop(0))

    def _take_begun(self, cache: PatchCache, lists: list[torch.Tensor]) -> list[_Coming]:
        if self._begun is None or self._begun[0] is not cache:
            return []
        _, begun, coming = self._begun
        if len(begun) > len(lists) or not all(map(torch.equal, begun, lists)):
            return []
        self._begun = None
        return coming

    def _submit(self, cache: PatchCache, ids: torch.Tensor) -> _Coming:
        parts = [part for part in np.array_split(ids.numpy(), self._num_threads) if len(part)]
        return [self._pool.submit(cache.patches, part.tolist()) for part in parts]

    def _gather(self, futures: _Coming) -> torch.Tensor:
        start = time.perf_counter()
        pixels = torch.from_numpy(np.concatenate([future.result() for future in futures]))
        pixels = pixels.pin_memory() if self._pin else pixels
        self.waited_s += time.perf_counter() - start
        return pixels.permute(0, 3, 1, 2)

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

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its (L, 3, P, P) uint8 pixels."""
        return self.reader.read(self.cache, id_lists)

    def expect(self, id_lists: Iterable[torch.Tensor]) -> None:
        """Say what will be read of this bag, once the bag at hand has been read."""
        self.reader.expect(self.cache, id_lists)


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
