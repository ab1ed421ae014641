"""The embeddings of a whole bag, in memory that does not grow with it."""

from __future__ import annotations

from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_MEMORY: Final = 16 * 2**20
"""Bytes up to which no file is made."""


class EmbeddingSpill:
    """(N, D) float32 embeddings in the order in which they came; beyond `IN_MEMORY` in a file without a name.

    The file lies where `tempfile` puts them (TMPDIR), and is gone with its process.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._file = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  (closed by `__exit__`)
        self.num_rows = 0

    def __enter__(self) -> EmbeddingSpill:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def append(self, embeddings_LD: torch.Tensor) -> None:
        """Append (L, D) rows."""
        self._file.write(embeddings_LD.detach().float().cpu().numpy().tobytes())
        self.num_rows += len(embeddings_LD)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """(len(ids), D) rows by number, in the order asked for; on the CPU."""
        rows = np.empty((len(ids), self._dim), np.float32)
        for i, row in enumerate(ids.tolist()):
            rows[i] = self._read(row, 1)
        return torch.from_numpy(rows)

    def parts(self, most: int) -> Iterator[tuple[int, torch.Tensor]]:
        """All rows in order, `most` at a time, each time with the number of the first; on the CPU."""
        for start in range(0, self.num_rows, most):
            yield start, torch.from_numpy(self._read(start, min(most, self.num_rows - start)))

    def _read(self, start: int, num: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        row_bytes = 4 * self._dim
        self._file.seek(start * row_bytes)
        read = np.frombuffer(bytearray(self._file.read(num * row_bytes)), np.float32)
        return read.reshape(num, self._dim)
