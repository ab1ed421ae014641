import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from wsi_dbps.cohort.cohort import Cohort, SlideRecord
from wsi_dbps.formats.predictions import Prediction, Predictions
from wsi_dbps.metrics.metrics import MetricsConfig, evaluate, evaluate_folds, with_flaws
from wsi_dbps.metrics.pooling import pool_folds
from wsi_dbps.report.pictures import MAX_BYTES, WIDTH_PX, inline_picture
from wsi_dbps.report.report import write_metrics, write_report
from wsi_dbps.report.runs import Epoch, RunRecord

FEW = MetricsConfig(num_bootstrap=100)


def page(path, predictions, metrics=None, **kwargs):
    shown = {"title": "A title", "facts": {"Checkpoint": "0123"}, **kwargs}
    write_report(path, predictions, metrics or evaluate(predictions, FEW), **shown)
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every start tag, the tags left open, and the text by section."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.sections, self._section = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input"}:
            self.open.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"]
            self.sections[self._section] = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self._section = None if tag == "section" else self._section

    def handle_data(self, data):
        if self._section:
            self.sections[self._section] += data + " "

    def __getitem__(self, section):
        return " ".join(self.sections[section].split())


def slide_ids(text):
    return re.findall(r"<tr[^>]*><td>\d+</td><td>([^<]*)", text)


def run_of(classes, *cases, name="run", epochs=3):
    """A run that has seen (case id, split)."""
    records = [SlideRecord(f"slide of {c}", c, label=classes[i % 2], split=split) for i, (c, split) in enumerate(cases)]
    history = tuple(Epoch(e, 1 / e, 1 / e + 0.1, 0.5 + 0.1 * e) for e in range(1, epochs + 1))
    return RunRecord(name, Cohort(tuple(records), tuple(classes)), history, epochs)


@pytest.fixture
def everything(tmp_path, make_predictions):
    """What fills every section."""
    predictions = make_predictions(24)
    for name in ("maps", "truth", "atlas"):
        (tmp_path / name).mkdir()
    for row in predictions.slides:
        Image.new("RGB", (40, 30), "red").save(tmp_path / "maps" / f"{row.slide_id}.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "atlas" / "churn_entropy.png")
    curve = {"fractions": [0, 0.5, 1], "top": [0.9, 0.4, 0.1], "random": [0.9, 0.8, 0.1], "area": {"value": 0.2}}
    faith = {"format": "wsi-dbps faithfulness", "format_version": 1, "deletion": curve, "insertion": curve}
    (tmp_path / "truth" / "faithfulness.json").write_text(json.dumps(faith))
    fold = {row.case_id: f"fold{i % 2}" for i, row in enumerate(predictions.cases)}
    folds = {
        name: dataclasses.replace(
            predictions,
            slides=tuple(r for r in predictions.slides if fold[r.case_id] == name),
            cases=tuple(r for r in predictions.cases if fold[r.case_id] == name),
        )
        for name in ("fold0", "fold1")
    }
    other = make_predictions(30, seed=9)
    rename = [dataclasses.replace(row, case_id=f"val-{row.case_id}") for row in other.cases]
    validation = dataclasses.replace(other, slides=(), cases=tuple(rename))
    metrics = evaluate_folds(
        folds,
        FEW,
        validation={"fold0": validation, "fold1": validation},
        subgroups={"site": {row.case_id: "north" if i < 12 else "south" for i, row in enumerate(predictions.cases)}},
    )
    runs = tuple(run_of(predictions.classes, ("x", "train"), ("y", "val"), name=name) for name in folds)
    return pool_folds(folds), metrics, {
        "runs": runs, "fold_of_case": fold, "heatmaps": tmp_path / "maps", "truth": tmp_path / "truth",
        "atlas": tmp_path / "atlas",
    }  # fmt: skip


def needs_nothing_else(text):
    tags = Tags(text)
    assert tags.open == []
    assert not {tag for tag, _ in tags.found} & {"link", "iframe", "object", "embed", "base"}
    for tag, attrs in tags.found:
        assert "src" not in attrs or (tag == "img" and attrs["src"].startswith("data:image/"))
        assert attrs.get("href", "#").startswith("#")
        assert not [name for name in attrs if name.startswith("on")]
    assert [attrs for tag, attrs in tags.found if tag == "script"] == [{}]
    outside = re.sub(r"data:image/[\w+;,/=]+", "", text)
    assert not re.search(r"@import|url\(|https?:|fetch\(|XMLHttpRequest|import\(", outside)
    return tags


@pytest.mark.parametrize("classes", [("normal", "tumor"), ("a", "b", "c")])
@pytest.mark.parametrize("num_unlabelled", [0, 3, 8])
def test_a_report_is_one_well_formed_page_that_needs_nothing_else(tmp_path, make_predictions, classes, num_unlabelled):
    tags = needs_nothing_else(
        page(tmp_path / "report.html", make_predictions(8, classes, num_unlabelled=num_unlabelled))
    )
    images = [attrs["src"] for tag, attrs in tags.found if tag == "img"]
    assert len(images) == (0 if num_unlabelled == 8 else 3)
    for image in images:
        ElementTree.fromstring(base64.b64decode(image.removeprefix("data:image/svg+xml;base64,")))


def test_a_full_report_has_every_section_and_still_needs_nothing_else(tmp_path, everything):
    predictions, metrics, given = everything
    tags = needs_nothing_else(page(tmp_path / "report.html", predictions, metrics, **given))
    names = list(tags.sections)
    assert " ".join(names) == (
        "leaks cohort metrics curves confusion folds subgroups training pictures truth atlas slides facts"
    )
    links = [attrs["href"].removeprefix("#") for tag, attrs in tags.found if tag == "a"]
    assert links[: len(names)] == names
    assert set(links) <= {attrs["id"] for _, attrs in tags.found if "id" in attrs}
    assert "DeLong" in tags["metrics"]
    assert "A case of fold1 counts as tumor from a probability of" in tags["metrics"]
    assert "Temperature of fold0" in tags["metrics"]
    assert "Brier score after temperature scaling" in tags["metrics"]
    assert all(name in tags["folds"] for name in ("pooled", "fold0", "fold1"))
    assert all(name in tags["subgroups"] for name in ("site", "north", "south"))


def test_without_more_than_predictions_the_other_sections_are_absent(tmp_path, make_predictions):
    tags = Tags(page(tmp_path / "report.html", make_predictions(), facts={}))
    assert list(tags.sections) == ["cohort", "metrics", "curves", "confusion", "slides"]


def test_the_same_predictions_give_the_same_file(tmp_path, everything):
    predictions, metrics, given = everything
    assert page(tmp_path / "a", predictions, metrics, **given) == page(tmp_path / "b", predictions, metrics, **given)


def test_the_headline_holds_the_auroc_and_its_intervals(tmp_path, make_predictions):
    predictions = make_predictions()
    cases = evaluate(predictions, FEW).cases
    auroc, delong = cases.scores["auroc"], cases.delong["auroc"]
    text = page(tmp_path / "report.html", predictions)
    assert f'<span class="value">{auroc.value:.3f}</span>' in text
    assert f"95 % interval {auroc.low:.3f}–{auroc.high:.3f} (DeLong {delong.low:.3f}–{delong.high:.3f})" in text


# ---- slides


def test_every_slide_is_listed_the_surest_error_first(tmp_path, scored):
    predictions = scored(("tumor", 0.9), ("normal", 0.6), (None, 0.7), ("normal", 0.99), ("normal", 0.2))
    text = page(tmp_path / "report.html", predictions)
    assert slide_ids(text) == ["s3", "s1", "s4", "s0", "s2"]
    assert [Tags(text)["slides"].count(mark) for mark in ("✗ wrong", "✓ right")] == [2, 2]


def test_slides_are_judged_by_the_threshold_that_validation_chose(tmp_path, scored):
    predictions = scored(("tumor", 0.3), ("normal", 0.2), ("normal", 0.1), ("tumor", 0.4))
    validation = scored(("tumor", 0.26), ("normal", 0.24))
    renamed = tuple(dataclasses.replace(row, case_id=f"v{row.case_id}") for row in validation.cases)
    metrics = evaluate(predictions, FEW, validation=dataclasses.replace(validation, cases=renamed))
    assert metrics.threshold.value == pytest.approx(0.25)
    tags = Tags(page(tmp_path / "report.html", predictions, metrics))
    assert tags["slides"].count("✓ right") == 4
    assert "A case counts as tumor from a probability of 0.250 : highest sensitivity" in tags["metrics"]
    assert slide_ids(page(tmp_path / "report.html", predictions, metrics)) == ["s0", "s1", "s3", "s2"]


def test_a_report_of_two_thousand_slides_and_seven_classes_stays_small(tmp_path, make_predictions):
    predictions, few = (make_predictions(num, tuple("abcdefg")) for num in (1500, 70))
    text = page(tmp_path / "report.html", predictions, evaluate(few, FEW))
    assert len(slide_ids(text)) == len(predictions.slides) == 2000
    assert len(text) < 1_500_000


# ---- leaks and cohort


def test_a_case_of_train_or_val_is_a_leak_and_is_named(tmp_path, scored):
    predictions = scored(("tumor", 0.9), ("normal", 0.6), ("normal", 0.1))
    run = run_of(predictions.classes, ("c1", "train"), ("c2", "val"), ("other", "train"), ("unused", None))
    tags = Tags(page(tmp_path / "report.html", predictions, runs=[run]))
    assert "2 of the 3 evaluated cases had been seen by the model: 1 in train, 1 in val." in tags["leaks"]
    assert "c1 train c2 val" in tags["leaks"]


def test_no_leak_is_said(tmp_path, scored):
    predictions = scored(("tumor", 0.9), ("normal", 0.6))
    run = run_of(predictions.classes, ("other", "train"), ("another", "val"))
    tags = Tags(page(tmp_path / "report.html", predictions, runs=[run]))
    assert "✓ None. No case of train or val is among the 2 evaluated cases." in tags["leaks"]
    assert "train, seen by the model 1 (1) 0 (0) 0 (0) 1 (1)" in tags["cohort"]
    assert "test, predicted 1 (1) 1 (1) 0 (0) 2 (2)" in tags["cohort"]


def test_a_run_without_its_cohort_is_not_called_clean(tmp_path, scored):
    tags = Tags(page(tmp_path / "report.html", scored(("tumor", 0.9), ("normal", 0.6)), runs=[RunRecord("old", None)]))
    assert "Not checked against old: the cohort of that run is not there." in tags["leaks"]
    assert "None." not in tags["leaks"]


# ---- pictures


def test_the_worst_errors_and_the_surest_right_slides_are_shown_or_said_to_be_missing(tmp_path, scored):
    predictions = scored(("tumor", 0.9), ("normal", 0.6), ("normal", 0.99), ("normal", 0.2), ("normal", 0.1))
    Image.new("RGB", (3000, 900), "red").save(tmp_path / "s2.png")
    text = page(tmp_path / "report.html", predictions, heatmaps=tmp_path)
    tags = Tags(text)
    shown = re.findall(r"<strong>(s\d)</strong> · ([^<]*)", text)
    assert shown == [
        ("s2", "wrong: label normal, predicted tumor (0.990)"),
        ("s1", "wrong: label normal, predicted tumor (0.600)"),
        ("s4", "the surest normal that is right: label normal, predicted normal (0.900)"),
        ("s0", "the surest tumor that is right: label tumor, predicted tumor (0.900)"),
    ]
    assert "2 of 5 labelled slides are called wrong." in tags["pictures"]
    assert tags["pictures"].count("There is no heatmap of this slide in the folder given.") == 3
    assert [attrs["href"] for tag, attrs in tags.found if tag == "a" and "map" in attrs["href"]] == ["#map-0"]


def test_without_labels_no_slide_is_called_right_or_wrong(tmp_path, make_predictions):
    text = page(tmp_path / "report.html", make_predictions(4, num_unlabelled=4), heatmaps=tmp_path)
    assert "No slide has a label, so none is known to be right or wrong." in Tags(text)["pictures"]


def test_a_picture_is_made_narrow_and_light(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (1000, 2600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = base64.b64decode(inline_picture(tmp_path / "a.png").removeprefix("data:image/webp;base64,"))
    (tmp_path / "a.webp").write_bytes(data)
    with Image.open(tmp_path / "a.webp") as picture:
        assert picture.size == (WIDTH_PX, round(1000 * WIDTH_PX / 2600))
    assert len(data) <= MAX_BYTES
    assert inline_picture(tmp_path / "none.png") is None


# ---- what is absent, and names from outside


def test_what_is_absent_is_named_with_its_reason(tmp_path, scored):
    text = page(tmp_path / "report.html", scored(("tumor", 0.9), ("tumor", 0.2)))
    assert "No AUROC" in text
    assert re.search(r"<li>AUROC, Average precision, [^<]*Specificity[^<]*: no row is labelled normal</li>", text)


def test_names_from_outside_cannot_become_markup_or_formulas(tmp_path):
    classes = ("<b>$a_{$", "_x")
    rows = tuple(
        Prediction(f"<img src=x>{i}", f"c{i}</script>", None, classes[i % 2], 1, (0.5 + 0.1 * i, 0.5 - 0.1 * i))
        for i in range(4)
    )
    run = run_of(classes, ("c1</script>", "train"), name="<i>")
    predictions = Predictions(classes, rows, rows)
    text = page(tmp_path / "report.html", predictions, title="<script>", facts={"a&b": "<i>"}, runs=[run])
    tags = needs_nothing_else(text)
    assert not {"b", "i"} & {tag for tag, _ in tags.found}
    assert "<img src=x>" not in text


@pytest.mark.parametrize("classes", [("$\\undefined$", "b"), ("a", "$x_{$"), ("$a$", "$\\frac$", "c")])
def test_classes_that_look_like_formulas_do_not_stop_the_report(tmp_path, make_predictions, classes):
    predictions = make_predictions(12, classes)
    run = run_of(classes, ("x", "train"), name="$\\undefined$")
    tags = needs_nothing_else(page(tmp_path / "report.html", predictions, title="$\\undefined$", runs=[run]))
    assert sum(tag == "img" for tag, _ in tags.found) >= 4


def test_the_flaws_of_the_results_stand_in_the_first_box_as_text(tmp_path, make_predictions):
    predictions = make_predictions(12)
    failed = [f"s{i}: <b>no cache" for i in range(7)]
    metrics = with_flaws(evaluate(predictions, FEW), failed=failed, leaked=["case-001", "case-001", "case-002"])
    assert metrics.caveats[:2] == metrics.flaws
    assert metrics.flaws[0].startswith("Leak: 2 of the 12 evaluated cases had been seen by the model in training")
    assert metrics.flaws[1] == (
        "7 slides could not be predicted and are missing from every number: s0: <b>no cache; s1: <b>no cache; "
        "s2: <b>no cache; s3: <b>no cache; s4: <b>no cache; and 2 more, see predict.json."
    )
    text = page(tmp_path / "report.html", predictions, metrics)
    box = text.partition('<div class="headline flawed">')[2].partition('<ul class="caveats">')[0]
    assert box.count('<p class="flaw">') == 2
    assert "&lt;b&gt;no cache" in box
    assert "<b>" not in text
    assert "Leak: " not in text.partition('<ul class="caveats">')[2].partition("</ul>")[0]


def test_the_metrics_file_says_what_it_is_and_holds_the_values(tmp_path, make_predictions):
    metrics = evaluate(make_predictions(), FEW)
    write_metrics(metrics, tmp_path / "metrics.json")
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert (found["format"], found["format_version"]) == ("wsi-dbps metrics", 1)
    assert found["cases"]["scores"]["auroc"]["value"] == metrics.cases.scores["auroc"].value
    assert found["config"] == {"num_bootstrap": 100, "confidence": 0.95, "num_calibration_bins": 10, "seed": 0}
