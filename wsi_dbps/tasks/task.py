"""What a task must offer so that a slide model can be trained, validated and used for prediction.

Training, validation and prediction call these methods and know nothing else about the question that is asked. A new
task is one module with a class that has them, an entry in `tasks/by_name.py`, and a branch in `training/data.py`, which
makes the task of a run from its labels and settings.

Shapes: B slides, C outputs of the model, K numbers predicted per slide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from wsi_dbps.cohort.cohort import SlideRecord


class Task(Protocol):
    """What a slide is asked."""

    @property
    def name(self) -> str:
        """The name by which checkpoints refer to the task."""

    @property
    def num_outputs(self) -> int:
        """C, the number of outputs of the model."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K predicted numbers, in their order; every output file stores them as its classes."""

    @property
    def summary(self) -> str:
        """One line that a run prints first: what is predicted, and how the numbers are to be read."""

    # ---- training

    def targets(self, records: Sequence[SlideRecord]) -> torch.Tensor:
        """The targets of labelled slides, (B,) or (B, ...), on the CPU."""

    def strata(self, targets_B: torch.Tensor) -> torch.Tensor:
        """(B,) number of each slide's group, from 0; an epoch visits every group at an even pace."""

    def weights(self, targets_B: torch.Tensor) -> torch.Tensor:
        """(B,) weight of each slide's loss."""

    def loss(self, outputs_BC: torch.Tensor, targets_B: torch.Tensor) -> torch.Tensor:
        """Sum over the slides of loss times weight, as a scalar.

        It is not a mean: the trainer divides by the weights of the whole batch, whose other slides may be with other
        processes.
        """

    # ---- validation

    def metrics(self, outputs_BC: torch.Tensor, targets_B: torch.Tensor) -> dict[str, float | None]:
        """Metrics of the validation slides: columns of history.csv, whose names begin with `val_`.

        None marks a metric that is not defined for these slides.
        """

    def goodness(self, metrics: Mapping[str, Any]) -> tuple[float, ...]:
        """What epochs are compared by: the epoch with the largest tuple is the best; the first one among equals."""

    def metrics_line(self, metrics: Mapping[str, Any]) -> str:
        """The metrics of an epoch for a person."""

    # ---- prediction

    def predictions(self, outputs: torch.Tensor) -> torch.Tensor:
        """(..., K) float64 numbers to report, from (..., C) outputs of the model."""

    def misfit(self, records: Sequence[SlideRecord]) -> str | None:
        """Why the labels of these slides cannot be compared with predictions, or None; slides need no label."""
