"""A run's curves for TensorBoard, where it is installed.

TensorBoard's own writer works in a thread, which prints a traceback when the disk is full, and appends to one file,
which a kill can tear. One small file per epoch is written atomically, and replaced when the epoch is trained again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from wsi_dbps.core.files import written_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_events(folder: Path, row: Mapping[str, Any]) -> None:
    """Write the numbers of one epoch, a row of history.csv, for TensorBoard; nothing where it is not installed.

    Raises:
        OutputError: If the file cannot be written.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        return
    curves = [name for name in row if name in ("train_loss", "lr") or name.startswith("val_")]
    values = [Summary.Value(tag=name, simple_value=row[name]) for name in curves if row[name] is not None]
    events = (
        Event(wall_time=time.time(), file_version="brain.Event:2"),
        Event(wall_time=time.time(), step=row["epoch"], summary=Summary(value=values)),
    )
    path = folder / f"events.out.tfevents.{row['epoch']:010}.wsi-dbps"
    with written_whole(path) as partial, open(partial, "wb") as file:
        for event in events:
            RecordWriter(file).write(event.SerializeToString())
