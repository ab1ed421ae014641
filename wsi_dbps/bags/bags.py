"""Slides on disk as bags: cached patches, or features, read in chunks by threads while the device computes."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wsi_dbps.bags.gpu_decode import decode_jpegs
from wsi_dbps.core.errors import CacheError, one_line
from wsi_dbps.formats.features import FeatureFile, open_bag
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.patch_filter import PatchFilter, filtered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import SlideRecord

    _Coming = Callable[[], torch.Tensor]

BagFile = PatchCache | FeatureFile
"""What a bag is read from."""

_AHEAD = 2
"""Number of lists of ids that the threads work on at a time."""


class PatchReader:
    """Threads that read and decode JPEG patches; libjpeg-turbo runs without the GIL.

    They read ahead: while the device computes on one list of ids, the next one is decoded. After the last list of a
    bag, they begin with the first lists of the bag that was announced by `expect`.
    """

    def __init__(self, num_threads: int, *, pin_memory: bool = False, gpu: torch.device | None = None) -> None:
        """Start the threads.

        Args:
            num_threads: Number of threads that read, and decode if `gpu` is None.
            pin_memory: Put pixels into pinned memory, from which a GPU copies them while it computes.
            gpu: Decode on this GPU, and leave the pixels there.
        """
        self._pool = ThreadPoolExecutor(num_threads, "decode")
        self._num_threads, self._pin, self._gpu = num_threads, pin_memory, gpu
        self._expected: tuple[BagFile, list[torch.Tensor]] | None = None
        self._begun: tuple[BagFile, list[torch.Tensor], list[_Coming]] | None = None
        self.waited_s = 0.0
        """Seconds that callers have waited for pixels."""

    def expect(self, cache: BagFile, id_lists: Iterable[torch.Tensor]) -> None:
        """Announce what will be read next; the threads begin it when they have nothing else to do.

        A wrong announcement is harmless.
        """
        self._expected = cache, list(islice(id_lists, _AHEAD))

    def read(self, cache: BagFile, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield (L, 3, P, P) uint8 pixels or (L, D) features for each list of ids, reading the next ones meanwhile."""
        lists = list(id_lists)
        coming = self._take_begun(cache, lists)
        for i in range(len(lists)):
            coming += [self._submit(cache, ids) for ids in lists[i + len(coming) : i + _AHEAD]]
            if i + len(coming) == len(lists) and self._expected is not None:
                following, first = self._expected
                self._begun = following, first, [self._submit(following, ids) for ids in first]
                self._expected = None
            start = time.perf_counter()
            pixels = coming.pop(0)()
            self.waited_s += time.perf_counter() - start
            yield pixels

    def _take_begun(self, cache: BagFile, lists: list[torch.Tensor]) -> list[_Coming]:
        if self._begun is None or self._begun[0] is not cache:
            return []
        _, begun, coming = self._begun
        if len(begun) > len(lists) or not all(map(torch.equal, begun, lists)):
            return []
        self._begun = None
        return coming

    def _submit(self, cache: BagFile, ids: torch.Tensor) -> _Coming:
        if self._gpu is not None and isinstance(cache, PatchCache):
            return self._submit_to_gpu(cache, ids, self._gpu)
        parts = [part for part in np.array_split(ids.numpy(), self._num_threads) if len(part)]
        return partial(self._gather, [self._pool.submit(cache.patches, part.tolist()) for part in parts])

    def _submit_to_gpu(self, cache: PatchCache, ids: torch.Tensor, gpu: torch.device) -> _Coming:
        reading = self._pool.submit(cache.jpegs, ids.tolist())

        def decoded() -> torch.Tensor:
            try:
                return decode_jpegs(reading.result(), gpu)
            except (RuntimeError, ValueError) as error:
                raise CacheError(
                    f"{cache.path}: patches {ids.tolist()[:8]} ... cannot be decoded on {gpu}: "
                    f"{one_line(error)}; set training.decode = 'cpu' to learn which"
                ) from None

        return decoded

    def _gather(self, futures: Sequence[Future[npt.NDArray[Any]]]) -> torch.Tensor:
        read = torch.from_numpy(np.concatenate([future.result() for future in futures]))
        read = read.pin_memory() if self._pin else read
        return read.permute(0, 3, 1, 2) if read.ndim == 4 else read

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class CacheBag:
    """A slide as a bag: its patches, or their features, on disk."""

    record: SlideRecord
    cache: BagFile
    reader: PatchReader

    @property
    def num_patches(self) -> int:
        """N."""
        return len(self.cache)

    @property
    def positions(self) -> torch.Tensor:
        """(N, 2) float32 (x, y) of the patches' top-left corners on the slide, in patch sides."""
        grid = self.cache.grid
        if not math.isfinite(grid.tile_lv0):
            raise CacheError(
                f"{self.cache.path}: does not say how large its tiles are; set aggregator.position = 'none'"
            )
        return torch.from_numpy(grid.origins_lv0 / grid.tile_lv0).float()

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield (L, 3, P, P) uint8 pixels, or (L, D) float32 features, for each list of ids."""
        return self.reader.read(self.cache, id_lists)

    def expect(self, id_lists: Iterable[torch.Tensor]) -> None:
        """Announce what will be read of this bag after the current one (`PatchReader.expect`)."""
        self.reader.expect(self.cache, id_lists)


@dataclass(frozen=True)
class PatchKind:
    """Resolution and size that all patches of a run have in common."""

    mpp_um: float
    size_px: int

    def __str__(self) -> str:
        return f"{self.size_px} px at {self.mpp_um:g} µm/px"


@dataclass(frozen=True)
class FeatureKind:
    """Size and origin that all features of a run have in common."""

    dim: int
    encoder: str
    """The encoder that made them, if the files name it."""

    def __str__(self) -> str:
        return f"{self.dim} features by {self.encoder or 'an encoder that the file does not name'}"


def patch_kind(cache: BagFile) -> PatchKind | FeatureKind:
    """The kind of a cache's patches, or of a file's features."""
    if isinstance(cache, FeatureFile):
        return FeatureKind(cache.dim, cache.encoder)
    return PatchKind(cache.grid.mpp_um, cache.grid.size_px)


def kind_from(fields: dict[str, Any]) -> PatchKind | FeatureKind:
    """The kind whose fields `dataclasses.asdict` returned."""
    return FeatureKind(**fields) if "dim" in fields else PatchKind(**fields)


def open_cache(
    caches: Path, record: SlideRecord, kind: PatchKind | FeatureKind | None, patch_filter: PatchFilter
) -> BagFile:
    """Open a slide's cache or features, and check that they belong to the slide and are of the given kind.

    The content of the file decides whether it holds patches or features. A cache is reduced to the patches that pass
    the filter. An empty file of features is of every kind.

    Raises:
        CacheError: If it is missing or damaged, belongs to another slide, holds patches of another kind, or lacks the
            measures that the filter needs.
    """
    cache = open_bag(caches, record.slide_id, mpp_lv0_um=record.mpp_um, slide=record.file)
    says_kind = len(cache) > 0 or isinstance(cache, PatchCache)  # features of an empty slide may lack D
    if says_kind and kind is not None and (found := patch_kind(cache)) != kind:
        what = "patches of " * isinstance(found, PatchKind) + str(found)
        repair = "tile with one spec" if isinstance(kind, PatchKind) else "embed all slides with one encoder"
        raise CacheError(f"{cache.path}: holds {what}, where {kind} are wanted; {repair}")
    if isinstance(cache, PatchCache):
        return filtered(cache, patch_filter)
    if patch_filter != PatchFilter():
        raise CacheError(f"{cache.path}: features carry no measures of quality; leave [patches] out of the settings")
    return cache
