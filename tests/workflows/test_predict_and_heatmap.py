"""predict, evaluate, compare and heatmap as a notebook calls them."""

import shutil

import numpy as np
import pytest

from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.core.errors import ConfigError, PredictionError
from wsi_dbps.workflows.compare import compare
from wsi_dbps.workflows.evaluate import evaluate
from wsi_dbps.workflows.heatmap import heatmap
from wsi_dbps.workflows.predict import predict


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    """The result of predicting the test slides."""
    manifest, caches, run = trained
    return predict(run, manifest, caches, tmp_path_factory.mktemp("predicted") / "pred")


@pytest.mark.parametrize("ending", ["cache", "slide"])
def test_one_slide_is_predicted_from_its_path_as_it_is_in_a_cohort(trained, predicted, tmp_path, ending) -> None:
    manifest, caches, run = trained
    path = caches / "slide_03.h5" if ending == "cache" else manifest.parent / "slide_03.svs"
    one = predict(run, path, caches, tmp_path / "one", say=[].append)
    (row,) = one.predictions.slides
    (same,) = (row for row in predicted.predictions.slides if row.slide_id == "slide_03")
    assert (row.slide_id, row.probabilities, row.label) == ("slide_03", same.probabilities, None)
    assert np.array_equal(one.attention("slide_03").weights_N, predicted.attention("slide_03").weights_N)


def test_a_cohort_in_memory_is_predicted_as_its_manifest_is(trained, predicted, tmp_path) -> None:
    manifest, caches, run = trained
    again = predict([run], read_manifest(manifest), str(caches), str(tmp_path / "again"))
    assert again.predictions == predicted.predictions
    assert again.summary == f"4 slides of 4 cases predicted, 0 failed: {tmp_path / 'again' / 'predictions.csv'}"


def test_notices_go_to_say_and_what_failed_is_in_the_result(trained, tmp_path) -> None:
    manifest, caches, run = trained
    shutil.copytree(caches, tmp_path / "caches")
    (tmp_path / "caches" / "slide_04.h5").unlink()
    notices: list[str] = []
    found = predict(run, caches / "slide_08.h5", caches, tmp_path / "leak", say=notices.append)
    assert notices == [
        f"1 of 1 slides, the first slide_08, are of cases that {run} was trained or chosen on, and are not marked so; "
        "results on them are no test"
    ]
    assert found.failed == ()
    found = predict(run, manifest, tmp_path / "caches", tmp_path / "some", split="val")
    assert [line.partition(":")[0] for line in found.failed] == ["slide_04"]
    with pytest.raises(PredictionError, match="slide_04: was not predicted"):
        found.attention("slide_04")


def test_metrics_and_comparison_are_objects(predicted, tmp_path) -> None:
    found = evaluate(predicted, tmp_path / "report", bootstrap=50)
    assert 0 <= found.metrics.cases.scores["auroc"].value <= 1
    assert (found.leaks, found.report.is_file()) == ((), True)
    assert found.summary.startswith(f"AUROC {found.metrics.cases.scores['auroc'].value:.3f}")
    same = compare(predicted, predicted, bootstrap=50)
    assert same.comparison.scores["auroc"].difference.value == 0
    assert same.path is None


def test_a_heatmap_is_a_figure_equal_to_its_picture(trained, predicted, tmp_path) -> None:
    """The figure is the one that is written, and pyplot knows nothing of it."""
    import matplotlib.pyplot as plt
    from PIL import Image

    from wsi_dbps.drawing.overlay import DPI

    manifest, caches, run = trained
    drawn = heatmap(run, manifest, caches, tmp_path, predictions=predicted, slide="slide_02", format="png")
    (slide,) = drawn.slides
    assert slide.files == (tmp_path / "slide_02.png",)
    drawn.figure().savefig(tmp_path / "again.png", dpi=DPI)
    first, again = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("slide_02.png", "again.png"))
    assert np.array_equal(first, again)
    assert plt.get_fignums() == []


def test_a_heatmap_of_one_slide_can_be_a_figure_alone(trained, tmp_path) -> None:
    _, caches, run = trained
    drawn = heatmap(run, caches / "slide_01.h5", caches, tmp_path / "maps", format=[])
    assert len(drawn.figure("slide_01").axes) >= 4
    assert not list((tmp_path / "maps").glob("slide_01.*"))
    with pytest.raises(PredictionError, match="slide_02: was not drawn"):
        drawn.figure("slide_02")


def test_an_unknown_option_is_named(trained, tmp_path) -> None:
    manifest, caches, run = trained
    with pytest.raises(ConfigError, match="heatmap: unknown option 'formats'; the options are predictions, slide, "):
        heatmap(run, manifest, caches, tmp_path, formats=["png"])
