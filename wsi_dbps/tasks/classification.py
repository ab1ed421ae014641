"""Classification: each slide belongs to one of two or more classes. The loss is cross entropy on the logits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import nn

from wsi_dbps.cohort.cohort import ordered_classes
from wsi_dbps.cohort.labels import check_classes
from wsi_dbps.core.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wsi_dbps.cohort.cohort import SlideRecord

NAME: Final = "classification"


@dataclass(frozen=True)
class Classification:
    """One of several classes; the model has one logit per class. As `tasks.task.Task`."""

    classes: tuple[str, ...]
    """In the order of the logits; of two, the second is the positive class."""
    weight_C: torch.Tensor | None = field(default=None, compare=False)
    """(C,) weight of a slide's loss by its class; None: 1 for each."""
    monitor: Literal["auroc", "loss"] = "auroc"
    """What the best epoch is chosen by."""

    @staticmethod
    def check(records: Sequence[SlideRecord], classes: Sequence[str] | None = None) -> None:
        """Check that labels are classes, before any file is opened.

        Raises:
            ManifestError: As `cohort.labels.check_classes`.
        """
        check_classes(records, classes or ())

    @classmethod
    def fitted(
        cls,
        train: Sequence[SlideRecord],
        val: Sequence[SlideRecord],
        *,
        classes: Sequence[str] | None = None,
        balanced: bool = False,
        monitor: Literal["auroc", "loss"] = "auroc",
    ) -> Classification:
        """The task that the labels of training and validation slides ask for.

        Args:
            train: Slides to learn from, all labelled.
            val: Slides to choose the best epoch by, all labelled.
            classes: The order of the classes; None: by value where all labels are numbers, else by name.
            balanced: Weight each class inversely to its number of training slides, so that the mean weight is 1.
            monitor: What the best epoch is chosen by.

        Raises:
            TrainingError: If there are fewer than two classes, `val` lacks a class whose AUROC is needed or has one of
                its own, or `classes` are not those of the labels.
        """
        in_train, in_val = (Counter(str(record.label) for record in part) for part in (train, val))
        _check_counts(in_train, in_val)
        found = ordered_classes(in_train)
        order = tuple(classes or found)
        if set(order) != set(found):
            raise TrainingError(
                f"[training] classes = {', '.join(order)}, but the train slides are labelled {', '.join(found)}; name "
                "each of these once"
            )
        if monitor == "auroc" and (absent := [label for label in order if label not in in_val]):
            raise TrainingError(
                f"val has no slide of class {absent[0]!r}, so it has no AUROC; mend the label if it is misspelt, split "
                "anew, or set training.monitor = 'loss'"
            )
        counts_C = torch.tensor([in_train[label] for label in order])
        return cls(order, len(train) / (len(order) * counts_C) if balanced else None, monitor)

    @property
    def name(self) -> str:
        """The name by which checkpoints refer to the task."""
        return NAME

    @property
    def num_outputs(self) -> int:
        """C, one logit per class."""
        return len(self.classes)

    @property
    def summary(self) -> str:
        """The classes in order, and which of two is the positive one."""
        positive = f"; {self.classes[1]} is the positive one" if len(self.classes) == 2 else ""
        return f"classes: {', '.join(self.classes)}{positive} (training.classes sets the order)"

    def targets(self, records: Sequence[SlideRecord]) -> torch.Tensor:
        """(B,) class index of each slide."""
        return torch.tensor([self.classes.index(str(record.label)) for record in records])

    def strata(self, targets_B: torch.Tensor) -> torch.Tensor:
        """(B,) the classes themselves, so that every batch holds them in similar proportions."""
        return targets_B

    def weights(self, targets_B: torch.Tensor) -> torch.Tensor:
        """(B,) weight of each slide's class."""
        return self._weights_on(targets_B.device)[targets_B]

    def loss(self, outputs_BC: torch.Tensor, targets_B: torch.Tensor) -> torch.Tensor:
        """Sum over the slides of cross entropy times the weight of the class."""
        weight_C = self._weights_on(outputs_BC.device)
        return nn.functional.cross_entropy(outputs_BC, targets_B, weight_C, reduction="sum")

    def metrics(self, outputs_BC: torch.Tensor, targets_B: torch.Tensor) -> dict[str, float | None]:
        """`val_loss`, the weighted mean of cross entropy, and `val_auroc`, the area under the ROC curve.

        The AUROC of more than two classes is the mean of one class against the others; it is None if a class has no
        slide.
        """
        from sklearn.metrics import roc_auc_score

        loss = float(nn.functional.cross_entropy(outputs_BC, targets_B, self._weights_on(outputs_BC.device)))
        if len(targets_B.unique()) < len(self.classes):
            return {"val_loss": loss, "val_auroc": None}
        scores = self.predictions(outputs_BC.cpu()).numpy()
        scores = scores[:, 1] if len(self.classes) == 2 else scores
        return {"val_loss": loss, "val_auroc": float(roc_auc_score(targets_B.cpu().numpy(), scores, multi_class="ovr"))}

    def goodness(self, metrics: Mapping[str, Any]) -> tuple[float, ...]:
        """The highest AUROC and, among equals or if `monitor` is `loss`, the lowest loss."""
        return (metrics["val_auroc"] if self.monitor == "auroc" else 0.0), -metrics["val_loss"]

    def metrics_line(self, metrics: Mapping[str, Any]) -> str:
        """Loss and AUROC of the validation slides."""
        auroc = "does not exist" if metrics["val_auroc"] is None else f"{metrics['val_auroc']:.3f}"
        return f"val loss {metrics['val_loss']:.3f}, val AUROC {auroc}"

    def predictions(self, outputs: torch.Tensor) -> torch.Tensor:
        """(..., C) probabilities of the classes, the softmax of the logits."""
        return outputs.double().softmax(dim=-1)

    def misfit(self, records: Sequence[SlideRecord]) -> str | None:
        """Which labels are not among the classes, or None."""
        unknown = [record for record in records if record.label not in (None, *self.classes)]
        if not unknown:
            return None
        return (
            f"has classes {', '.join(self.classes)}, but slide {unknown[0].slide_id} is labelled "
            f"{unknown[0].label!r} ({len(unknown)} such slides); mend the labels, or leave them empty"
        )

    def _weights_on(self, device: torch.device) -> torch.Tensor:
        """(C,) weight of each class."""
        return torch.ones(len(self.classes), device=device) if self.weight_C is None else self.weight_C.to(device)


def _check_counts(in_train: Counter[str], in_val: Counter[str]) -> None:
    """Refuse labels from which nothing can be learnt or validated."""
    if len(in_train) < 2:
        raise TrainingError(f"every train slide is {next(iter(in_train))!r}; training needs two classes or more")
    if unseen := [label for label in in_val if label not in in_train]:
        raise TrainingError(f"val holds class {unseen[0]!r}, of which train has no slide")
