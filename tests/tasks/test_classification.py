"""What a slide is asked when it belongs to one of several classes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.errors import CheckpointError, ManifestError, TrainingError
from wsi_dbps.tasks.by_name import stored_task
from wsi_dbps.tasks.classification import Classification


def labelled(*labels: str | None) -> list[SlideRecord]:
    return [SlideRecord(f"s{i}", f"c{i}", label=label) for i, label in enumerate(labels)]


ABC = labelled("a", "b", "b", "c", "c", "c")


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20).filter(lambda labels: len(set(labels)) > 1))
def test_balanced_weights_give_every_class_the_same_weight_and_a_slide_one_on_average(labels: list[str]) -> None:
    records = labelled(*labels)
    task = Classification.fitted(records, records, balanced=True)
    targets_B = task.targets(records)
    weights_B = task.weights(targets_B)
    of_class = [weights_B[targets_B == index].sum().item() for index in range(task.num_outputs)]
    assert of_class == pytest.approx([len(labels) / task.num_outputs] * task.num_outputs, rel=1e-5)
    assert weights_B.mean().item() == pytest.approx(1, rel=1e-5)
    assert Classification.fitted(records, records).weights(targets_B).tolist() == [1.0] * len(labels)


def test_the_loss_is_the_weighted_sum_of_cross_entropies() -> None:
    task = Classification.fitted(ABC, ABC, balanced=True)
    outputs_BC = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    by_hand = 2.0 * math.log(sum(math.exp(x) for x in (0, 1, 2))) + 1.0 * math.log(math.exp(3) + 2)
    targets_B = task.targets(labelled("a", "b"))
    assert targets_B.tolist() == [0, 1]
    assert task.loss(outputs_BC, targets_B).item() == pytest.approx(by_hand, rel=1e-6)
    mean = task.metrics(outputs_BC, targets_B)["val_loss"]
    assert mean == pytest.approx(by_hand / 3, rel=1e-6)


def test_predictions_are_probabilities_in_the_order_of_the_classes() -> None:
    task = Classification(("b", "a"))
    found = task.predictions(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64))
    assert torch.equal(task.predictions(torch.tensor([0.0, math.log(3)])), found[0])
    assert task.summary == "classes: b, a; a is the positive one (training.classes sets the order)"
    assert Classification(("a", "b", "c")).summary == "classes: a, b, c (training.classes sets the order)"


def test_the_auroc_of_two_classes_is_that_of_the_second() -> None:
    """By hand: of the four pairs of a negative and a positive slide, three are in order."""
    task = Classification(("negative", "positive"))
    targets_B = torch.tensor([0, 0, 1, 1])
    outputs_BC = torch.tensor([[0.0, 0.1], [0.0, 0.4], [0.0, 0.35], [0.0, 0.8]])
    assert task.metrics(outputs_BC, targets_B)["val_auroc"] == 0.75
    metrics = task.metrics(outputs_BC[:2], targets_B[:2])
    assert metrics["val_auroc"] is None
    assert task.metrics_line(metrics) == f"val loss {metrics['val_loss']:.3f}, val AUROC does not exist"


def test_equal_aurocs_are_decided_by_the_loss() -> None:
    rows = [{"val_auroc": a, "val_loss": b} for a, b in ((0.8, 0.2), (0.9, 0.6), (0.9, 0.5), (0.9, 0.5))]
    assert max(rows, key=Classification(("a", "b")).goodness) is rows[2]
    assert max(rows, key=Classification(("a", "b"), monitor="loss").goodness) is rows[0]


def test_the_order_of_the_classes_can_be_given() -> None:
    assert Classification.fitted(ABC, ABC).classes == ("a", "b", "c")
    assert Classification.fitted(ABC, ABC, classes=["c", "a", "b"]).classes == ("c", "a", "b")


def test_labels_from_which_nothing_can_be_learnt_are_refused() -> None:
    with pytest.raises(TrainingError, match="every train slide is 'a'; training needs two classes or more"):
        Classification.fitted(labelled("a", "a"), ABC)
    with pytest.raises(TrainingError, match="val holds class 'c', of which train has no slide"):
        Classification.fitted(labelled("a", "b"), ABC)
    with pytest.raises(TrainingError, match=r"val has no slide of class 'c', .* set training.monitor = 'loss'"):
        Classification.fitted(ABC, labelled("a", "b"))
    assert Classification.fitted(ABC, labelled("a", "b"), monitor="loss").num_outputs == 3
    for classes in (["a", "b"], ["a", "b", "c", "d"]):
        with pytest.raises(TrainingError, match=r"but the train slides are labelled a, b, c; name each of these once"):
            Classification.fitted(ABC, ABC, classes=classes)
    with pytest.raises(ManifestError, match="differ in spelling only"):
        Classification.check(labelled("flat", "Flat"))
    Classification.check(labelled("flat", "Flat"), ["flat", "Flat"])


def test_labels_that_are_no_classes_of_the_model_are_named() -> None:
    task = Classification(("a", "b"))
    assert task.misfit(labelled("a", None)) is None
    assert task.misfit(labelled("a", "x", "y")) == (
        "has classes a, b, but slide s1 is labelled 'x' (2 such slides); mend the labels, or leave them empty"
    )


def test_a_checkpoint_of_a_task_of_a_later_version_is_refused(tmp_path) -> None:
    assert stored_task(tmp_path, "classification", ["a", "b"]) == Classification(("a", "b"))
    with pytest.raises(CheckpointError, match=r"b.pt: was trained for the task 'survival'; this version has classifi"):
        stored_task(tmp_path / "b.pt", "survival", [])
