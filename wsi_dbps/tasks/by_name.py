"""The tasks that checkpoints can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wsi_dbps.core.errors import CheckpointError
from wsi_dbps.tasks.classification import NAME, Classification

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from wsi_dbps.tasks.task import Task

DEFAULT_TASK: Final = NAME
"""The task of a checkpoint that names none."""
TASKS: Final[dict[str, Callable[[tuple[str, ...]], Task]]] = {NAME: Classification}


def stored_task(path: Path, name: str, classes: Sequence[str]) -> Task:
    """The task that a checkpoint was trained for.

    Args:
        path: The checkpoint, for an error message.
        name: The task's name in the checkpoint.
        classes: The names of what is predicted.

    Raises:
        CheckpointError: If this version has no such task.
    """
    if name not in TASKS:
        raise CheckpointError(
            f"{path}: was trained for the task {name!r}; this version has {', '.join(TASKS)}: install a newer one"
        )
    return TASKS[name](tuple(classes))
