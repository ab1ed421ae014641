"""`import wsi_dbps as wd` is quick, has every public name, and takes cohorts and paths of every kind."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import wsi_dbps as wd

SOURCE = Path(wd.__file__)
WORKFLOWS = (
    *("atlas", "compare", "demo", "embed", "evaluate", "export", "faithfulness", "heatmap", "inspect", "localise"),
    *("plan", "predict", "split", "tile", "train"),
)


# ---- names


@pytest.mark.parametrize("name", wd.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(wd, name) is not None


def test_no_public_name_is_that_of_a_room() -> None:
    """Importing a room sets it as an attribute of the package, in place of the function of the same name."""
    rooms = {path.parent.name for path in SOURCE.parent.glob("*/__init__.py")}
    assert len(rooms) > 10
    assert not rooms & set(wd.__all__)


def test_every_command_is_a_public_function() -> None:
    assert set(WORKFLOWS) <= set(wd.__all__)


def test_type_checkers_see_the_names_that_are_loaded() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {(alias.name, node.module) for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen == {(name, f"wsi_dbps.{module}") for name, module in wd._MODULE.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'wsi_dbps' has no attribute 'trian'"):
        wd.trian  # noqa: B018


@pytest.mark.parametrize("code", ["import wsi_dbps", "import wsi_dbps; wsi_dbps.train, wsi_dbps.TrainOptions"])
def test_importing_the_package_loads_nothing_heavy(code: str) -> None:
    heavy = "torch timm numpy pandas pydantic h5py openslide PIL matplotlib scipy skimage".split()  # noqa: SIM905
    script = f"{code}\nimport sys\nprint(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("command", [name for name in WORKFLOWS if name != "inspect"])
def test_defaults_of_options_pass_their_own_checks(command: str) -> None:
    from wsi_dbps.core.options import options_with

    options = getattr(wd, f"{command.capitalize()}Options")
    assert options_with(options(), {}) == options()


def test_choices_of_options_are_those_of_the_settings_that_they_are_for() -> None:
    from typing import get_args, get_type_hints

    from wsi_dbps.exporting.export import ExportSpec
    from wsi_dbps.models.settings import EncoderConfig
    from wsi_dbps.training.settings import LoopConfig
    from wsi_dbps.workflows import embed, export

    inference = importlib.import_module("wsi_dbps.inference.embed")
    assert get_args(export.ExportFormat) == get_args(get_type_hints(ExportSpec)["format"])
    assert get_args(embed.Layout) == get_args(inference.Layout)
    assert get_args(embed.Match) == get_args(get_type_hints(EncoderConfig)["weights_match"])
    assert get_args(embed.Precision) == get_args(get_type_hints(LoopConfig)["precision"])


# ---- cohorts


def test_a_cohort_is_made_of_paths() -> None:
    cohort = wd.cohort_from_slides(["a/x.svs", Path("b/y.ome.tif"), "s3://bucket/z.svs"])
    assert [(r.slide_id, r.case_id, r.file) for r in cohort.records] == [
        ("x", "x", Path("a/x.svs").absolute()),
        ("y", "y", Path("b/y.ome.tif").absolute()),
        ("z", "z", "s3://bucket/z.svs"),
    ]
    assert wd.cohort_from_slides("a/x.svs").records == cohort.records[:1]


def test_a_cohort_is_made_of_rows_or_a_data_frame() -> None:
    rows = [
        {"slide_id": "a", "case_id": "p", "label": "tumor", "mpp": 0.25, "site": "Ulm"},
        {"slide_id": "b", "case_id": "q", "label": None, "mpp": float("nan"), "site": "Bonn"},
    ]
    cohort = wd.cohort_from_slides(rows)
    assert [(r.slide_id, r.case_id, r.label, r.mpp_um, r.extra) for r in cohort.records] == [
        ("a", "p", "tumor", 0.25, {"site": "Ulm"}),
        ("b", "q", None, None, {"site": "Bonn"}),
    ]
    assert wd.cohort_from_slides(pd.DataFrame(rows)) == cohort


def test_a_cohort_is_made_of_records_of_another() -> None:
    cohort = wd.cohort_from_slides([{"slide_id": "a", "label": "x"}, {"slide_id": "b", "label": "y"}])
    assert wd.cohort_from_slides(cohort.records[1]) == wd.Cohort((cohort.records[1],), ("y",))
    assert wd.cohort_from_slides(cohort.records) == cohort


@pytest.mark.parametrize("split", [{"split": "train"}, {"fold": "0"}, {}])
def test_a_slide_to_learn_from_needs_a_label_also_in_a_cohort_without_a_manifest(split, tmp_path: Path) -> None:
    cohort = wd.cohort_from_slides([{"slide_id": "a", "label": "x", **split}, {"slide_id": "b", **split}])
    with pytest.raises(wd.ManifestError, match=r"the cohort: slide 'b' is to learn from and has no label \(1 such"):
        wd.train(cohort, tmp_path, tmp_path / "run")


def test_a_wrong_row_is_refused_as_in_a_manifest() -> None:
    with pytest.raises(wd.ManifestError) as refused:
        wd.cohort_from_slides([{"slide_id": "a"}, {"slide_id": "a", "mpp": "x"}])
    first, *others = str(refused.value).splitlines()
    assert first == "the table of slides: 2 problems in the cohort manifest; nothing was done"
    assert [line.partition(":")[0] for line in others] == ["  line 3", "  line 3"]


def test_columns_are_renamed_by_a_mapping_or_by_texts(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("FILE,KRAS\na,mut\n")
    by_mapping = wd.read_cohort(tmp_path / "table.csv", columns={"slide_id": "FILE", "label": "KRAS"})
    assert by_mapping == wd.read_cohort(str(tmp_path / "table.csv"), columns=["slide_id=FILE,label=KRAS"])
    assert (by_mapping.records[0].slide_id, by_mapping.classes) == ("a", ("mut",))


def test_a_written_cohort_reads_back(tmp_path: Path) -> None:
    cohort = wd.cohort_from_slides([{"slide_id": "a", "label": "x"}, {"slide_id": "b", "label": "y"}])
    wd.write_manifest(str(tmp_path / "cohort.csv"), cohort)
    assert wd.read_cohort(tmp_path / "cohort.csv") == cohort


@pytest.mark.parametrize("kind", ["object", "text", "path"])
def test_a_workflow_takes_a_cohort_or_the_path_of_its_manifest(kind, small_cohort, tmp_path: Path) -> None:
    manifest = small_cohort[0]
    given = {"object": wd.read_cohort(manifest), "text": str(manifest), "path": manifest}[kind]
    result = wd.split(given, tmp_path / "split.csv", val=0.1, test=0.3, seed=4)
    assert wd.read_cohort(tmp_path / "split.csv") == result.cohort
    assert [(c.part, c.label, c.num_slides) for c in result.counts] == [
        *(("train", label, 6) for label in ("coarse", "flat")),
        *(("val", label, 1) for label in ("coarse", "flat")),
        *(("test", label, 3) for label in ("coarse", "flat")),
    ]


# ---- slides and files


@pytest.mark.parametrize("kind", [str, Path, wd.open_slide])
def test_a_slide_is_looked_at_by_its_path_or_open(kind, slide_path: Path) -> None:
    slide = kind(slide_path)
    picture, mask = wd.thumbnail(slide, 350), wd.find_tissue(slide)
    assert picture.shape == (125, 175, 3)  # a level of the slide as it is
    share = mask.share(np.array([[150, 100], [600, 450]]), 40.0)
    assert share.tolist() == [1.0, 0.0]
    if not isinstance(slide, (str, Path)):
        slide.close()


def test_the_size_of_pixels_is_not_guessed(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((300, 400, 3), 200, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(wd.MissingMppError):
        wd.find_tissue(tmp_path / "a.png")
    assert wd.find_tissue(tmp_path / "a.png", mpp_um=0.5).slide_lv0.width == 400


def test_patches_of_a_cache_are_arrays(cache_file: Path) -> None:
    cache = wd.PatchCache(str(cache_file))
    assert cache.patches([0, 2]).shape == (2, 64, 64, 3)
    (told,) = wd.inspect(str(cache_file)).files
    assert (told.what, told.problem) == (told.facts["what"], None)
    assert told.facts["slide"].startswith("a, 700 x 500 px")


def test_what_cannot_be_used_is_told_and_not_raised(tmp_path: Path) -> None:
    found = wd.inspect([tmp_path / "no.csv", str(tmp_path)])
    assert found.failed == (tmp_path / "no.csv", tmp_path)
    assert found.files[0].problem == f"{tmp_path / 'no.csv'}: no such manifest"
    assert found.files[0].what is None
