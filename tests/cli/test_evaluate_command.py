"""`wsi-dbps evaluate` and `wsi-dbps compare` on tables of predictions."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsi_dbps.formats.predictions import Prediction, Predictions, read_predictions
from wsi_dbps.metrics.pooling import pool_cases

QUICK = ("--bootstrap", 100)
PAGES = Path(__file__).parents[2] / "docs" / "formats"


@pytest.fixture
def table(tmp_path):
    """Writes a folder of predictions and returns it."""

    def make(name, num=40, skill=1.5, seed=0, prefix="c", splits=("test",), classes=("normal", "tumor"), unlabelled=0):
        random, rows = np.random.default_rng(seed), []
        for i in range(num):
            logits = random.normal(size=len(classes)) + skill * np.eye(len(classes))[i % len(classes)]
            p = np.exp(logits) / np.exp(logits).sum()
            label = classes[i % len(classes)] if i >= unlabelled else None
            split = splits[i // len(classes) % len(splits)]
            rows += [Prediction(f"{prefix}{i}-{k}", f"{prefix}{i}", split, label, 9, tuple(p.tolist())) for k in "ab"]
        Predictions(classes, tuple(rows), pool_cases(rows, classes)).write_csv(tmp_path / name / "predictions.csv")
        return tmp_path / name

    return make


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_folds_are_pooled_with_their_validation_into_one_report(table, tmp_path, wsi_dbps):
    folds, vals = ([table(f"{kind}{i}", seed=i, prefix=f"{kind}{i}.") for i in range(2)] for kind in ("fold", "val"))
    options = [x for val in vals for x in ("--val", val)]
    code, out, _ = wsi_dbps("evaluate", *folds, *options, "--out", tmp_path / "report", *QUICK)
    assert (code, "over 80 cases" in out) == (0, True)
    found = metrics_of(tmp_path / "report")
    assert (
        list(found["folds"]) == list(found["fold_thresholds"]) == list(found["fold_temperatures"]) == ["fold0", "fold1"]
    )
    assert (tmp_path / "report" / "report.html").exists()


def test_validation_by_another_model_is_refused(table, wsi_dbps):
    a, val = table("a"), table("val", seed=1, prefix="v")
    for folder, fingerprint in ((a, "0a"), (val, "0b")):
        (folder / "predict.json").write_text(json.dumps({"checkpoint_fingerprint": fingerprint}))
    said = f"{val}: was predicted with another checkpoint than {a} (0b, not 0a)"
    assert refusal(wsi_dbps, "evaluate", a, "--val", val).startswith(said)
    assert refusal(wsi_dbps, "compare", a, a, "--val-b", val).startswith(said)


def test_test_rows_are_evaluated_at_the_threshold_of_val_rows(table, wsi_dbps):
    pred = table("pred", splits=("test", "val"))
    assert wsi_dbps("evaluate", pred, *QUICK)[0] == 0
    found = metrics_of(pred)
    assert (found["cases"]["num"], found["threshold"]["num_cases"], found["temperature"]["num_cases"]) == (20, 20, 20)


def test_folds_with_their_own_val_rows_are_no_leak_and_each_case_has_its_own_threshold(table, tmp_path, wsi_dbps):
    """Every case is a test case of one fold and a val case of another, as `predict --folds all --split all` has it."""
    blocks = [
        read_predictions(table(f"block{i}", num=20, seed=i, prefix=f"b{i}.") / "predictions.csv") for i in range(2)
    ]
    for k in range(2):
        rows = [replace(row, split=split) for i, split in ((k, "test"), (1 - k, "val")) for row in blocks[i].slides]
        shift = [replace(row, probabilities=(p := row.probabilities[0] ** (1 + 4 * k), 1 - p)) for row in rows]
        Predictions(blocks[k].classes, tuple(shift), pool_cases(shift, blocks[k].classes)).write_csv(
            tmp_path / f"fold{k}" / "predictions.csv"
        )
        run = tmp_path / "cv" / f"fold{k}"
        run.mkdir(parents=True)
        (run / "run.json").write_text("{}")
        seen = [f"{row.slide_id},{row.case_id},{row.label},val" for row in blocks[1 - k].slides]
        (run / "cohort.csv").write_text("\n".join(["slide_id,case_id,label,split", *seen]) + "\n")
        settings = {
            "encoder": {"name": f"encoder{k}"},
            "selection": {"preset": "dbps", "num_salient": 1, "num_subsalient": 1},
            "training": {"seed": k},
        }
        member = {"checkpoint": str(run / "best.pt"), "checkpoint_fingerprint": "f", "epoch": 1, "settings": settings}
        made = {"members": [member], "wsi_dbps_version": "1"}
        (tmp_path / f"fold{k}" / "predict.json").write_text(json.dumps(made))
    preds = [tmp_path / f"fold{k}" for k in range(2)]
    assert wsi_dbps("evaluate", *preds, "--out", tmp_path / "report", *QUICK)[0] == 0
    found = metrics_of(tmp_path / "report")
    assert found["fold_thresholds"]["fold0"]["value"] < 0.6 < 0.8 < found["fold_thresholds"]["fold1"]["value"]
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "✓ None." in page
    assert "encoder0; encoder1" in page
    (_, wrong), (missed, _) = found["slides"]["confusion"]
    assert page.count("✗ wrong") == wrong + missed


@pytest.fixture
def cohort(tmp_path):
    """A manifest of the cases c0 to c39, the sites by `site_of(slide_id)`."""

    def write(site_of):
        rows = [f"c{i}-{k},c{i},{site_of(f'c{i}-{k}')}" for i in range(40) for k in "ab"]
        path = tmp_path / "cohort.csv"
        path.write_text("\n".join(["slide_id,case_id,site", *rows]) + "\n", encoding="utf-8")
        return path

    return write


def test_subgroups_follow_the_manifest(table, cohort, wsi_dbps):
    pred, manifest = table("pred"), cohort(lambda slide_id: "north" if int(slide_id[1:-2]) < 10 else "south")
    assert wsi_dbps("evaluate", pred, "--by", "site", "--cohort", manifest, *QUICK)[0] == 0
    found = metrics_of(pred)["subgroups"]["site"]
    assert {value: level["num"] for value, level in found.items()} == {"north": 10, "south": 30}


def refusal(wsi_dbps, *arguments):
    code, _, err = wsi_dbps(*arguments)
    assert (code, err.count("\n")) == (2, 1), err
    return err.removeprefix("wsi-dbps: ").rstrip()


def test_subgroups_that_cannot_be_are_refused_in_one_line(table, cohort, wsi_dbps):
    pred, manifest = table("pred"), cohort(lambda slide_id: slide_id[-1] if slide_id[:2] == "c7" else "s")
    evaluate = ("evaluate", pred, *QUICK)
    assert refusal(wsi_dbps, *evaluate, "--by", "site", "--cohort", manifest) == (
        "case c7: its slides differ in site: 'a' on slide c7-a, 'b' on slide c7-b; correct the manifest"
    )
    assert refusal(wsi_dbps, *evaluate, "--by", "scanner", "--cohort", manifest) == (
        "the manifest has no column scanner to group by; it has case_id, label, split, mpp, site"
    )
    assert refusal(wsi_dbps, *evaluate, "--by", "site").startswith("--by and --cohort go together")
    assert refusal(wsi_dbps, *evaluate, "--by", "site", "--cohort", cohort(lambda slide_id: "")) == (
        "no predicted case has a value in the column site: nothing to group by"
    )
    other = table("other", prefix="x")
    assert refusal(wsi_dbps, "evaluate", other, "--by", "site", "--cohort", manifest) == (
        "slide x0-a has a prediction but no row in the manifest; give its manifest"
    )


@pytest.mark.parametrize(
    "content", ["[]", "null", '{"members": ["a"]}', '{"members": null}', '{"members": []}', "\xff", "[" * 100_000]
)
def test_a_predict_json_of_another_kind_is_said_in_the_report(table, wsi_dbps, content):
    pred = table("pred")
    (pred / "predict.json").write_bytes(content.encode("latin-1"))
    assert wsi_dbps("evaluate", pred, *QUICK)[0] == 0
    assert "cannot be used: " in (pred / "report.html").read_text(encoding="utf-8")
    code, out, _ = wsi_dbps("inspect", pred)
    assert code == 1
    assert "predict.json: not what `predict` writes: it names no checkpoint; predict again" in out


def test_requests_that_cannot_be_met_are_refused_in_one_line(table, tmp_path, wsi_dbps):
    a, b, c = table("a"), table("b", seed=1), table("c", prefix="x", classes=("no", "yes"))
    out = ("--out", tmp_path / "out")
    assert refusal(wsi_dbps, "evaluate", a, b).startswith("several folders of predictions: say with --out")
    assert refusal(wsi_dbps, "evaluate", a, b, *out).startswith("case c0 is in a and in b; folds have disjoint cases")
    assert refusal(wsi_dbps, "evaluate", a, a, *out).startswith("a folder of predictions is given twice")
    assert refusal(wsi_dbps, "evaluate", a, c, *out).startswith("a has the classes normal, tumor, c has no, yes")
    assert refusal(wsi_dbps, "evaluate", a, "--val", c).startswith("validation has the classes no, yes")
    assert refusal(wsi_dbps, "evaluate", a, "--val", b).startswith("40 cases (c0, c1, c10 ...) are in validation")
    assert refusal(wsi_dbps, "evaluate", a, "--val", b, "--val", c).startswith("--val is given 2 times for 1 folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("classes", [("normal", "tumor"), ("a", "b", "c")])
def test_compare_prints_a_table_and_writes_what_the_page_says(table, tmp_path, wsi_dbps, classes):
    a, b = table("a", skill=0.5, classes=classes), table("b", seed=1, classes=classes, skill=2)
    code, out, _ = wsi_dbps("compare", a, b, "--out", tmp_path / "out", *QUICK)
    assert code == 0
    assert re.search(r"^auroc +0\.\d{3} +0\.\d{3} +\+0\.\d{3}   [+-]0\.\d{3} to \+0\.\d{3}$", out, re.M)
    assert re.search(r"^DeLong, AUROC.*: B - A .* z = .*, p = ", out, re.M)
    assert re.search(r"^McNemar, exact: only A right \d+, only B right \d+, p = ", out, re.M)
    found = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert set(found) <= keys("compare.md")


def test_compare_says_how_many_cases_it_left_out(table, wsi_dbps):
    a, b = table("a"), table("b", num=30, seed=1)
    assert refusal(wsi_dbps, "compare", a, b).startswith("the cases differ: B lacks 10 (c30, c31, c32, c33, c34 ...); ")
    code, out, _ = wsi_dbps("compare", a, b, "--common", *QUICK)
    assert (code, "30 labelled cases, 10 cases that only one has left out" in out) == (0, True)


def keys(page):
    return set(re.findall(r"`([^`\n]+)`", (PAGES / page).read_text(encoding="utf-8")))


@pytest.mark.parametrize("options", [{"unlabelled": 20}, {"classes": ("a", "b", "c"), "splits": ("test", "val")}])
def test_metrics_json_has_no_key_that_its_page_lacks_and_no_nan(table, wsi_dbps, options):
    pred = table("pred", **options)
    assert wsi_dbps("evaluate", pred, *QUICK)[0] == 0
    text = (pred / "metrics.json").read_text(encoding="utf-8")
    assert not re.search("NaN|Infinity|null", text)
    found = json.loads(text)
    level = found["cases"]
    names = {*found, *found["config"], *level, *level["scores"], *level["calibration"][0], *level["scores"]["auroc"]}
    names |= {*next(iter(level["roc"].values())), *found.get("threshold", {}), *found.get("temperature", {})}
    assert names <= keys("metrics.md")
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / "metrics.md").read_text(encoding="utf-8"), re.S)
    exec(code, given := {"path": pred / "metrics.json"})
    assert given["text"] == f"{level['scores']['auroc']['value']:.3f}"


def test_one_class_only_gives_reasons_and_no_nan(table, wsi_dbps):
    pred = table("pred", num=2)
    path = pred / "predictions.csv"
    path.write_text("\n".join(r for r in path.read_text().splitlines() if ",c1," not in r) + "\n")
    code, out, _ = wsi_dbps("evaluate", pred, *QUICK)
    assert (code, out.startswith("1 labelled cases, no AUROC (no row is labelled tumor)")) == (0, True)
    assert not re.search("NaN|Infinity", (pred / "metrics.json").read_text(encoding="utf-8"))


def test_a_file_in_place_of_a_folder_of_predictions_is_named(tmp_path, wsi_dbps) -> None:
    (tmp_path / "split.csv").write_text("slide_id\na\n")
    code, _, err = wsi_dbps("evaluate", tmp_path / "split.csv")
    assert code == 2
    assert err == f"wsi-dbps: {tmp_path / 'split.csv'}: is a file; give the folder that `wsi-dbps predict` wrote\n"
