"""Encoding without gradient in parts that fit the device's memory."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


class WithinMemory:
    """Encodes chunks, in halves from when the device's memory is too small for one whole.

    A chunk itself stays as it is, so that selection sees the same chunks whatever the memory.
    """

    def __init__(self, most_at_once: int) -> None:
        self._most_at_once = most_at_once

    def __call__(self, encoder: nn.Module, pixels_LCPP: torch.Tensor) -> torch.Tensor:
        """(L, D) float32 embeddings of (L, 3, P, P) pixels on the encoder's device.

        Raises:
            torch.cuda.OutOfMemoryError: If there is no memory for a single patch.
        """
        while True:
            try:
                parts = [encoder(part).float() for part in pixels_LCPP.split(self._most_at_once)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.cuda.OutOfMemoryError:
                tried = min(self._most_at_once, len(pixels_LCPP))
                if tried == 1:
                    raise
            # Only here, after the error, are the tensors gone that its traceback held.
            parts = []
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._most_at_once = -(-tried // 2)
            warnings.warn(
                f"{pixels_LCPP.device}: no memory to encode {tried} patches at once without gradient; from here on "
                f"{self._most_at_once}, with the same results; selection.chunk_size = {self._most_at_once} avoids this",
                stacklevel=2,
            )
