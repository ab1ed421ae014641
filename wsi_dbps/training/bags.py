"""Bags: a slide's cached patches and its label, read in chunks by threads while the device computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_dbps.errors import CacheError
from wsi_dbps.patches.cache import PatchCache
from wsi_dbps.patches.quality import PatchFilter, filtered
from wsi_dbps.training.gpu_decode import decode_jpegs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import SlideRecord


class PatchReader:
    """Threads that read and decode JPEG patches; libjpeg-turbo runs without the GIL."""

    def __init__(self, num_threads: int, *, pin_memory: bool = False, gpu: torch.device | None = None) -> None:
        """Begin.

        Args:
            num_threads: How many read, and decode if `gpu` is None.
            pin_memory: Put pixels where a GPU can fetch them while it computes.
            gpu: Decode there, and leave the pixels there.
        """
        self._pool = ThreadPoolExecutor(num_threads, "decode")
        self._num_threads, self._pin, self._gpu = num_threads, pin_memory, gpu

    def read(self, cache: PatchCache, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """For each list of ids its (L, 3, P, P) uint8 pixels, the next list being decoded meanwhile."""
        submit: Callable[[PatchCache, torch.Tensor], Callable[[], torch.Tensor]]
        submit = self._submit if self._gpu is None else self._submit_to_gpu
        ahead: Callable[[], torch.Tensor] | None = None
        for ids in id_lists:
            coming = submit(cache, ids)
            if ahead is not None:
                yield ahead()
            ahead = coming
        if ahead is not None:
            yield ahead()

    def _submit(self, cache: PatchCache, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
        parts = [part for part in np.array_split(ids.numpy(), self._num_threads) if len(part)]
        return partial(self._gather, [self._pool.submit(cache.patches, part.tolist()) for part in parts])

    def _submit_to_gpu(self, cache: PatchCache, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
        reading = self._pool.submit(cache.jpegs, ids.tolist())

        def decoded() -> torch.Tensor:
            assert self._gpu is not None
            try:
                return decode_jpegs(reading.result(), self._gpu)
            except (RuntimeError, ValueError) as error:
                raise CacheError(
                    f"{cache.path}: patches {ids.tolist()[:8]} ... cannot be decoded on {self._gpu}: "
                    f"{' '.join(str(error).split())[:120]}; set training.decode = 'cpu' to learn which"
                ) from None

        return decoded

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
