"""The pages are true: tables are those of the code, code blocks run, links and names resolve.

`python tests/test_docs.py` writes the tables of docs/settings.md anew.
"""

import ast
import contextlib
import csv
import doctest
import glob
import importlib
import inspect
import json
import pkgutil
import re
import textwrap
import tomllib
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import pytest

import wsi_dbps
from wsi_dbps.cohort.manifest import read_manifest, write_manifest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SMALL_RUN = {
    "encoder": {"name": "small_gn", "dim": 16},
    "selection": {"num_salient": 3, "num_subsalient": 6, "num_kept": 12},
    "aggregator": {"num_heads": 2},
    "training": {"epochs": 1, "device": "cpu", "decode_threads": 1},
}
BEGIN = "<!-- Below: written by `python tests/test_docs.py` from the code. -->\n"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page(name), re.S)


def quoted(text: str) -> set[str]:
    """What a page has in backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


# ---- settings


def settings_tables() -> str:
    """Every setting of a run and every preset, as Markdown."""
    from wsi_dbps.models.settings import PRESETS
    from wsi_dbps.training.settings import RunConfig

    lines = ["## Every setting"]
    for table in fields(RunConfig):
        cls: Any = table.default_factory
        lines += ["", f"### [{table.name}]", inspect.cleandoc(cls.__doc__), ""]
        lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
        meaning = field_docstrings(cls)
        for field in fields(cls):
            assert field.default is not MISSING
            default = "*absent*" if field.default is None else f"`{json.dumps(field.default)}`"
            lines.append(f"| `{field.name}` | {values(str(field.type))} | {default} | {meaning[field.name]} |")
    lines += ["", "### What each preset fixes", "| preset | fixes |", "|---|---|"]
    for name, fixed in PRESETS.items():
        said = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in fixed.items())
        lines.append(f"| `{name}` | {said or 'nothing'} |")
    return "\n".join(lines) + "\n"


def field_docstrings(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    return {
        before.target.id: " ".join(inspect.cleandoc(after.value.value).split()).replace("|", "\\|")
        for before, after in pairwise(body)
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr)
    }


def values(annotation: str) -> str:
    kinds = {"int": "whole number", "float": "number", "str": "text", "bool": "true, false", "tuple[str, ...]": "texts"}
    kind, _, names = annotation.removesuffix(" | None").partition("Literal")
    said = [kinds[kind.removesuffix(" | ")]] if kind else []
    return ", ".join(said + [f"`{name}`" for name in ast.literal_eval(names or "[]")])


def test_the_page_of_settings_is_that_of_the_code() -> None:
    assert page("settings.md").partition(BEGIN)[2] == settings_tables(), "run: python tests/test_docs.py"


def test_the_settings_in_the_page_are_accepted_and_the_refused_refused() -> None:
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.core.settings import with_overrides
    from wsi_dbps.training.settings import build_run_config

    (accepted,), (refused,) = blocks("settings.md", "toml"), blocks("settings.md", "text")
    assert build_run_config(tomllib.loads(accepted), "page").selection.num_salient == 8
    said = re.findall(
        r"`--set (\w+\.\w+=[^`<]+)`", " ".join(page("settings.md").split()).replace("table.key=value", "")
    )
    assert len(said) == 4
    build_run_config(with_overrides({}, said), "page")
    for assignment in refused.split():
        with pytest.raises(ConfigError, match=re.escape(assignment.partition("=")[0].partition(".")[2])):
            build_run_config(with_overrides({}, [assignment]), "page")


# ---- links, names, doctests


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_resolve(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{path.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], target


def test_the_index_leads_to_every_page() -> None:
    docs = ROOT / "docs"
    found, todo = set(), [docs / "index.md"]
    while todo:
        path = todo.pop()
        if path in found or path.suffix != ".md" or docs not in path.parents:
            continue
        found.add(path)
        text = path.read_text(encoding="utf-8")
        listed = "\n".join(re.findall(r"```{toctree}\n(?::.*\n)*((?:.*\n)*?)```", text)).split("\n")
        pages = [f"{name}.md" for name in listed if re.fullmatch(r"[\w/-]+", name) and "generated/" not in name]
        todo += [(path.parent / name).resolve() for name in pages + re.findall(r"\]\(([^):#]+)", text)]
    assert found == set(docs.rglob("*.md"))


def test_tests_and_files_that_the_pages_name_exist() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    tests = set(re.findall(r"def (test_\w+)", code))
    for path in PAGES:
        for name in quoted(path.read_text(encoding="utf-8")):
            if re.fullmatch(r"test_\w+", name):
                assert name in tests, f"{path.name}: {name}"
            if re.fullmatch(r"\w+(/\w+)+\.py", name):
                assert (ROOT / name).exists() or (ROOT / "wsi_dbps" / name).exists(), f"{path.name}: {name}"


def test_doctests_pass() -> None:
    attempted = 0
    for module in pkgutil.walk_packages(wsi_dbps.__path__, "wsi_dbps."):
        result = doctest.testmod(importlib.import_module(module.name))
        assert not result.failed, module.name
        attempted += result.attempted
    assert attempted > 10


# ---- files: what is written is what the pages say, and their code reads it


@pytest.fixture(scope="module")
def python_page(
    small_cohort: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder in which the code of python.md was run, on small slides and with a small model; and what it made."""
    out, found = tmp_path_factory.mktemp("docs"), {}
    write_manifest(out / "cohort.csv", read_manifest(small_cohort[0]))
    code = "\n".join(blocks("python.md", "python"))
    for said, small in {
        "mpp=0.5, size=256": 'mpp=1.0, size=32, tissue="none", min_tissue=0.0, workers=1, sheet=False',
        '{"encoder.name": "resnet18", "training.epochs": 20}': str(SMALL_RUN),
    }.items():
        assert said in code
        code = code.replace(said, small)
    with contextlib.chdir(out):
        exec(compile(code, "python.md", "exec"), found)
    return out, found


@pytest.fixture(scope="module")
def made(python_page: tuple[Path, dict[str, Any]]) -> Path:
    """A folder with `run` after one epoch and `predictions`."""
    return python_page[0]


def test_the_page_of_python_is_true(python_page: tuple[Path, dict[str, Any]]) -> None:
    out, found = python_page
    assert found["tiled"].failed == ()
    assert 0 <= found["auroc"].low <= found["auroc"].value <= found["auroc"].high <= 1
    assert found["why_not"] is None
    assert {round(sum(row.values()), 9) for row in found["probabilities"].values()} == {1}
    assert found["picture"].shape == (found["size"].height, found["size"].width, 3)
    assert found["tissue"].mask_HW.any()
    assert found["patches"].shape == (3, 32, 32, 3)
    assert (found["corners"] == found["attention"].grid.origins_lv0[:3]).all()
    assert found["attention"].weights_N[found["highest"]].tolist() == sorted(found["attention"].weights_N)[:-11:-1]
    assert len(found["figure"].axes) > 2
    assert len(list((out / "heatmaps").glob("*.geojson"))) == 4
    assert "mpp" in found["message"]


def run_block(name: str, i: int, **given: Any) -> dict[str, Any]:
    exec(compile(blocks(name, "python")[i], f"{name}, block {i}", "exec"), given)
    return given


pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")


def test_the_page_of_predictions_is_true(made: Path) -> None:
    path = made / "predictions" / "predictions.csv"
    found = run_block("formats/predictions.md", 0, path=path)
    assert found["classes"] == ["coarse", "flat"]
    assert (len(found["slides"]), len(found["cases"])) == (4, 4)
    with open(path, encoding="utf-8", newline="") as file:
        cases = [row for row in csv.DictReader(file) if row["level"] == "case"]
    right = [row["label"] == max(found["classes"], key=lambda name: float(row[f"prob_{name}"])) for row in cases]
    assert found["accuracy"] == sum(right) / 4
    checked = run_block("formats/predictions.md", 1, path=path)
    row = found["slides"].iloc[0]
    assert checked["probability"] == {name: row[f"prob_{name}"] for name in found["classes"]}
    known = quoted(page("formats/predictions.md"))
    assert {re.sub("^prob_.*", "prob_<class>", name) for name in found["table"].columns} <= known
    made_with = json.loads((made / "predictions" / "predict.json").read_text(encoding="utf-8"))
    assert set(made_with) <= known


def test_the_page_of_attention_is_true(made: Path) -> None:
    path = made / "predictions" / "attention" / "slide_00.h5"
    found = run_block("formats/attention.md", 0, path=path)
    assert len(found["boxes"]) == 10
    assert len(found["salient"]) == 3
    table = run_block("formats/attention.md", 1, path=path)["table"]
    assert table["share"].sum() == pytest.approx(36, rel=1e-5)
    assert table["role"].value_counts().to_dict() == {"other": 27, "recycled": 6, "salient": 3}
    assert (table[["x", "y"]].to_numpy() == found["coords"]).all()
    with h5py.File(path) as file:
        rows = re.findall(r"^\| (`[^|]+) \|", page("formats/attention.md"), re.M)
        assert {name for row in rows for name in quoted(row)} == {f"/{name}" for name in file} | set(file.attrs)
        kinds = {f"/{name}": f"{data.dtype}" for name, data in file.items()}
    said = dict(re.findall(r"^\| `(/\w+)` \| (\w+) ", page("formats/attention.md"), re.M))
    assert said == kinds


def test_the_page_of_the_run_folder_is_true(made: Path) -> None:
    import torch

    run, known = made / "run", quoted(page("formats/run-folder.md"))
    found = run_block("formats/run-folder.md", 0, run=run)
    assert found["best"]["epoch"] == 1
    visits = run_block("formats/selection-record.md", 0, path=run / "selection" / "epoch_0001.npz")["visits"]
    assert len(visits) == 12
    assert {name if (run / name).is_file() else f"{name}/" for name in glob.glob("*", root_dir=run)} <= known
    assert set(found["made"]) | set(found["made"]["made_with"]) | set(found["history"].columns) <= known
    for name in ("best.pt", "last.pt"):
        content = torch.load(run / name, weights_only=True)
        assert set(content) | set(content["loop"]) | set(content["patch_kind"]) <= known
    shape = run_block("formats/run-folder.md", 1, run=run)["embedding"].shape
    assert tuple(shape) == (1, 16)
    assert set(pd.read_csv(run / "cohort.csv").split) == {"train", "val"}


def test_the_page_of_features_is_true(small_cohort: tuple[Path, Path], tmp_path: Path) -> None:
    from wsi_dbps.formats.features import features_written
    from wsi_dbps.formats.patch_cache import PatchCache

    made = {
        "encoder": "e",
        "encoder_fingerprint": "f",
        "checkpoint_fingerprint": "",
        "precision": "float32",
        "batch": 9,
    }
    path = tmp_path / "slide_00.h5"
    with features_written(path, PatchCache(small_cohort[1] / "slide_00.h5"), 5, made) as rows:
        rows[:] = 1.5
    found = run_block("formats/features.md", 0, path=path)
    assert (found["rows"].shape, found["coords"].shape, found["side"]) == ((36, 5), (36, 2), 32)
    assert run_block("formats/features.md", 1, path=path)["some"].shape == (3, 5)
    with h5py.File(path) as file:
        known = quoted(page("formats/features.md"))
        assert {f"/{name}" for name in file} | set(file.attrs) | set(file["features"].attrs) <= known
        kinds = {f"/{name}": f"{data.dtype}" for name, data in file.items()}
    assert dict(re.findall(r"^\| `(/\w+)` \| \w+ \| (\w+) ", page("formats/features.md"), re.M)) == kinds


if __name__ == "__main__":
    target = ROOT / "docs" / "settings.md"
    by_hand = target.read_text(encoding="utf-8").partition(BEGIN)[0]
    target.write_text(by_hand + BEGIN + settings_tables(), encoding="utf-8")
    print(f"wrote {target}")
