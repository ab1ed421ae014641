import numpy as np
import pytest

from wsi_dbps.evaluation.pooling import pool_cases
from wsi_dbps.records import Prediction, Predictions


@pytest.fixture(scope="session")
def quick_settings():
    """Settings, by table, of a run that takes a second on the small cohort."""
    return {
        "encoder": {"name": "small_gn", "dim": 16},
        "selection": {"num_salient": 3, "num_subsalient": 6, "num_kept": 12, "chunk_size": 16},
        "aggregator": {"num_heads": 2},
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 1, "batch_slides": 4, "device": "cpu", "decode_threads": 1},
    }


@pytest.fixture
def make_predictions():
    """Cases of one or two slides with random labels, the scores as far above chance as `skill`."""

    def make(num_cases=40, classes=("normal", "tumor"), skill=1.5, seed=0, num_unlabelled=0, splits=("test",)):
        random = np.random.default_rng(seed)
        rows = []
        for case in range(num_cases):
            label = case % len(classes)
            for slide in range(1 + case % 3 // 2):
                logits = random.normal(size=len(classes)) + skill * np.eye(len(classes))[label]
                probabilities = np.exp(logits) / np.exp(logits).sum()
                known = classes[label] if case >= num_unlabelled else None
                split = splits[case % len(splits)]
                name = f"case-{case:03d}"
                rows.append(
                    Prediction(f"{name}-{slide}", name, split, known, 100 + case, tuple(probabilities.tolist()))
                )
        return Predictions(tuple(classes), tuple(rows), pool_cases(rows, classes))

    return make


@pytest.fixture
def scored():
    """Predictions of one slide per case from (label, probability of tumor)."""

    def make(*pairs, classes=("normal", "tumor")):
        rows = tuple(Prediction(f"s{i}", f"c{i}", "test", label, 10, (1 - p, p)) for i, (label, p) in enumerate(pairs))
        return Predictions(classes, rows, pool_cases(rows, classes))

    return make
