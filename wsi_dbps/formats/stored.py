"""Whether an HDF5 dataset is all there, before memory is taken for what it claims to hold."""

from __future__ import annotations

import math
from typing import Final

import h5py

MOST_ROWS: Final = 50_000_000
"""Far more tiles than a slide has."""
MOST_CHUNK_BYTES: Final = 1 << 30
"""HDF5 holds a chunk in memory whole, however well it was compressed."""


def why_not_stored(data: h5py.Dataset, file_bytes: int) -> str | None:
    """What keeps a dataset from being read, in words that follow its name; None if it may be read.

    HDF5 makes up zeros for storage that is missing, as many as the dataset claims, so this is to be asked first.

    Args:
        data: The dataset.
        file_bytes: Length of its file.
    """
    if data.is_virtual or data.external:
        return "is kept in other files; copy it into this one"
    if data.shape is None:
        return "holds nothing"
    if not data.size:
        return None
    if data.dtype.kind in "OSU" or data.id.get_create_plist().get_layout() == h5py.h5d.COMPACT:
        return None  # text is refused by its type; what is compact lies in the header, which HDF5 has read
    if data.chunks is None:
        begin = data.id.get_offset()
        complete = begin is not None and begin + data.size * data.dtype.itemsize <= file_bytes
    else:
        if (chunk_bytes := math.prod(data.chunks) * data.dtype.itemsize) > MOST_CHUNK_BYTES:
            return f"has chunks of {chunk_bytes} bytes, and up to {MOST_CHUNK_BYTES} are read"
        num_chunks = math.prod(-(-side // step) for side, step in zip(data.shape, data.chunks, strict=True))
        complete = data.id.get_num_chunks() == num_chunks
    return None if complete else f"claims {data.shape} numbers, and the file does not hold as many"
