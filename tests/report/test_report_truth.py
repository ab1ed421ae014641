import json

import pytest

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.metrics.bootstrap import Estimate
from wsi_dbps.report.pictures import atlas_pictures, inline_picture
from wsi_dbps.report.truth import Curve, read_truth


def write(folder, kind, **values):
    path = folder / f"{kind}.json"
    path.write_text(json.dumps({"format": f"wsi-dbps {kind}", "format_version": 1, **values}))
    return path


def test_all_that_is_there_is_shown_and_what_is_absent_is_not(tmp_path):
    write(
        tmp_path,
        "localisation",
        slides=[{"slide_id": "a", "patch_auroc": 0.7}, {"slide_id": "b", "patch_auroc": None}],
        patch_auroc={"value": 0.8, "low": 0.7, "high": 0.9},
        dice=None,
        froc={"score": 0.5, "low": 0.4, "high": 0.6, "false_positives_per_slide": [0, 1], "sensitivity": [0.2, 0.8]},
        reasons={"dice_of_b": "no annotation"},
    )
    write(tmp_path, "stability", salient_overlap={"value": 0.9}, num_seeds=5)
    truth = read_truth(tmp_path)
    assert [(name, estimate) for name, estimate, _ in truth.rows] == [
        ("Patch AUROC", Estimate(0.8, 0.7, 0.9)),
        ("FROC score", Estimate(0.5, 0.4, 0.6)),
        ("Overlap of salient patches, 5 drop seeds", Estimate(0.9)),
    ]
    assert truth.curves == {"froc": Curve((0, 1), (0.2, 0.8), (), Estimate(0.5, 0.4, 0.6))}
    assert truth.reasons == (("dice of b", "no annotation"),)
    assert truth.slide_auroc == {"a": 0.7}


@pytest.mark.parametrize("kind", ["localisation", "faithfulness", "stability"])
def test_a_file_with_nothing_but_its_format_shows_nothing(tmp_path, kind):
    write(tmp_path, kind)
    truth = read_truth(tmp_path)
    assert (truth.rows, truth.curves, truth.reasons) == ((), {}, ())


def test_another_format_or_version_is_refused(tmp_path):
    path = write(tmp_path, "stability", format_version=2)
    with pytest.raises(PredictionError, match=r"stability.json: is 'wsi-dbps stability' version 2, not 'wsi-dbps"):
        read_truth(tmp_path)
    path.write_text("[1]")
    with pytest.raises(PredictionError, match="is None version None, not 'wsi-dbps stability' version 1"):
        read_truth(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(PredictionError, match=r"stability.json: not JSON: .*recursion"):
        read_truth(tmp_path)
    path.write_text("{")
    with pytest.raises(PredictionError, match=r"stability.json: not JSON"):
        read_truth(tmp_path)
    path.unlink()
    with pytest.raises(PredictionError, match=r"holds none of localisation.json, faithfulness.json, stability.json"):
        read_truth(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"deletion": {"fractions": [0, 1], "top": [0.5]}},
        {"deletion": {"fractions": [0, 1], "top": [0.5, 0.4], "random": [1]}},
        {"deletion": {"fractions": ["a"], "top": [0.5]}},
        {"deletion": {"area": {"value": "high"}}},
        {"deletion": {"area": {"value": float("nan")}}},
        {"deletion": {"area": {"value": 1.0, "low": 0.0, "high": float("inf")}}},
        {"deletion": {"fractions": [0, 1], "top": [0.5, float("nan")]}},
        {"deletion": [1]},
        {"reasons": [1]},
    ],
)
def test_what_does_not_belong_there_is_refused_in_one_line(tmp_path, values):
    write(tmp_path, "faithfulness", **values)
    with pytest.raises(PredictionError, match=r"faithfulness.json: holds what does not belong there .*write it again$"):
        read_truth(tmp_path)


def test_pictures_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(PredictionError, match=r"a.png: not a picture that can be shown: .*draw it again"):
        inline_picture(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    with pytest.raises(PredictionError, match="holds no PNG file of a selection atlas"):
        atlas_pictures(tmp_path)
