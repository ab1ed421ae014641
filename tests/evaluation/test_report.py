import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from wsi_dbps.evaluation.metrics import MetricsConfig, evaluate
from wsi_dbps.evaluation.report import write_metrics, write_report
from wsi_dbps.records import Prediction, Predictions

FEW = MetricsConfig(num_bootstrap=100)


def page(path, predictions, **kwargs):
    shown = {"title": "A title", "facts": {"Checkpoint": "0123"}, **kwargs}
    write_report(path, predictions, evaluate(predictions, FEW), **shown)
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every start tag, and the tags left open."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("classes", [("normal", "tumor"), ("a", "b", "c")])
@pytest.mark.parametrize("num_unlabelled", [0, 3, 8])
def test_a_report_is_one_well_formed_page_that_needs_nothing_else(tmp_path, make_predictions, classes, num_unlabelled):
    text = page(tmp_path / "report.html", make_predictions(8, classes, num_unlabelled=num_unlabelled))
    tags = Tags(text)
    assert tags.open == []
    assert not {tag for tag, _ in tags.found} & {"script", "link", "iframe"}
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import""", text)
    images = [attrs["src"] for tag, attrs in tags.found if tag == "img"]
    assert len(images) == (0 if num_unlabelled == 8 else 2)
    for image in images:
        ElementTree.fromstring(base64.b64decode(image.removeprefix("data:image/svg+xml;base64,")))


def test_the_same_predictions_give_the_same_file(tmp_path, make_predictions):
    assert page(tmp_path / "a", make_predictions()) == page(tmp_path / "b", make_predictions())


def test_the_headline_holds_the_auroc_and_its_interval(tmp_path, make_predictions):
    predictions = make_predictions()
    auroc = evaluate(predictions, FEW).cases.scores["auroc"]
    text = page(tmp_path / "report.html", predictions)
    assert f'<span class="value">{auroc.value:.3f}</span>' in text
    assert f"95 % interval {auroc.low:.3f}–{auroc.high:.3f}" in text


def test_every_slide_is_listed_the_surest_error_first(tmp_path, scored):
    predictions = scored(("tumor", 0.9), ("normal", 0.6), (None, 0.7), ("normal", 0.99), ("normal", 0.2))
    text = page(tmp_path / "report.html", predictions)
    assert re.findall(r'<td class="id">(s\d)</td>', text) == ["s3", "s1", "s4", "s0", "s2"]
    assert [text.count(mark) for mark in ("✗", "✓")] == [2, 2]


def test_a_long_table_folds_after_the_first_slides_but_holds_all(tmp_path, make_predictions):
    predictions = make_predictions(60)
    text = page(tmp_path / "report.html", predictions)
    assert f"<summary>{len(predictions.slides) - 30} more slides</summary>" in text
    assert all(f'<td class="id">{row.slide_id}</td>' in text for row in predictions.slides)


def test_what_is_absent_is_named_with_its_reason(tmp_path, scored):
    text = page(tmp_path / "report.html", scored(("tumor", 0.9), ("tumor", 0.2)))
    assert "No AUROC" in text
    assert "AUROC, Average precision, Balanced accuracy, F1, Specificity: no row is labelled normal" in text


def test_names_from_outside_cannot_become_markup_or_formulas(tmp_path):
    classes = ("<b>$a_{$", "_x")
    rows = tuple(
        Prediction(f"<img src=x>{i}", f"c{i}", None, classes[i % 2], 1, (0.5 + 0.1 * i, 0.5 - 0.1 * i))
        for i in range(4)
    )
    text = page(tmp_path / "report.html", Predictions(classes, rows, rows), title="<script>", facts={"a&b": "<i>"})
    assert {"script", "b", "i"} & {tag for tag, _ in Tags(text).found} == {"i"}  # the bars
    assert "<img src=x>" not in text
    assert "<i>" not in text.replace('<i style="width', "")


def test_the_metrics_file_says_what_it_is_and_holds_the_values(tmp_path, make_predictions):
    metrics = evaluate(make_predictions(), FEW)
    write_metrics(metrics, tmp_path / "metrics.json")
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert (found["format"], found["format_version"]) == ("wsi-dbps metrics", 1)
    assert found["cases"]["scores"]["auroc"]["value"] == metrics.cases.scores["auroc"].value
    assert found["config"] == {"num_bootstrap": 100, "confidence": 0.95, "num_calibration_bins": 10, "seed": 0}
