"""`inspect` says what files of ours and of other tools are."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsi_dbps.synth.pyramid import write_aperio
from wsi_dbps.workflows.inspect import inspect


def facts(path: Path) -> dict[str, str]:
    """What inspect says of one file, by name."""
    (told,) = inspect(path).files
    assert told.problem is None
    return dict(told.facts)


def problem(path: Path) -> str:
    """Why inspect cannot use a file."""
    (told,) = inspect(path).files
    assert not told.facts
    return told.problem or ""


def test_the_command_prints_facts_and_problems_and_ends_with_1_if_a_file_cannot_be_used(
    small_cohort, tmp_path: Path, wsi_dbps
) -> None:
    manifest = small_cohort[0]
    code, out, err = wsi_dbps("inspect", manifest)
    assert (code, err, out.splitlines()[:2]) == (0, "", [str(manifest), "  what         cohort manifest"])
    code, out, err = wsi_dbps("inspect", tmp_path / "no.csv", manifest)
    assert (code, err) == (1, "")
    assert out.splitlines()[:2] == [
        f"{tmp_path / 'no.csv'}",
        f"  cannot be used: {tmp_path / 'no.csv'}: no such manifest",
    ]
    assert f"{manifest}\n  what         cohort manifest" in out


def test_a_manifest_is_told_by_its_slides_classes_and_splits(small_cohort) -> None:
    assert facts(small_cohort[0]) == {
        "what": "cohort manifest",
        "slides": "20 of 20 cases",
        "path": "filled for 20 slides",
        "label": "filled for 20 slides",
        "split": "test (4), val (4), train (12)",
        "classes": "coarse (10), flat (10)",
    }


def test_a_manifest_that_cannot_be_split_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("slide_id\tcase_id\tlabel\tsite\na\tp\tx\tUlm\nb\tp\ty\tUlm\n")
    found = facts(tmp_path / "a.tsv")
    assert (found["classes"], found["more columns"]) == ("x (1), y (1)", "site")
    assert found["note"].startswith("`split` and `train` refuse it: case 'p' has slides with different labels")
    (tmp_path / "b.csv").write_text("PATIENT,FILE\np,a\n")
    assert "no column slide_id; found: 'PATIENT', 'FILE'" in problem(tmp_path / "b.csv")


def test_a_size_of_pixels_that_tile_refuses_is_said(tmp_path: Path) -> None:
    """Of a TIFF for print: 72 dots per inch are 352.8 µm."""
    write_aperio(tmp_path / "a.svs", np.full((64, 64, 3), 200, np.uint8), mpp_um=352.8, tile_px=64)
    assert facts(tmp_path / "a.svs")["mpp"] == (
        "352.8 µm/px, which is no scanner's (plausible: 0.05 to 20); `tile` needs the right one in the mpp column of "
        "the manifest"
    )


def test_coordinates_of_trident_clam_and_hs2p_are_told_apart(tmp_path: Path) -> None:
    for name, attrs in {
        "trident": {"patch_size": 256, "patch_size_level0": 512.0, "name": "a"},
        "clam": {"patch_size": 256, "patch_level": 1, "name": "b"},
    }.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("coords", data=np.zeros((3, 2), np.int64)).attrs.update(attrs)
    found = facts(tmp_path / "trident.h5")
    assert (found["what"], found["slide"], found["tiles"]) == (
        "tile coordinates (TRIDENT)",
        "a",
        "3 of 256 px, 512 px of level 0",
    )
    found = facts(tmp_path / "clam.h5")
    assert (found["what"], found["slide"], found["tiles"]) == (
        "tile coordinates (CLAM)",
        "b",
        "3 of 256 px of level 1",
    )
    tiling = {"n_tiles": 5, "requested_tile_size_px": 256, "requested_spacing_um": 0.5, "tile_size_lv0": 512}
    meta = {"provenance": {"sample_id": "c"}, "tiling": tiling, "artifact": {"coordinate_space": "level0_px"}}
    (tmp_path / "c.coordinates.meta.json").write_text(json.dumps(meta))
    np.savez(tmp_path / "c.coordinates.npz", x=np.zeros(5), y=np.zeros(5))
    found = facts(tmp_path / "c.coordinates.meta.json")
    assert (found["what"], found["slide"]) == ("tile coordinates (hs2p)", "c")
    assert found["tiles"] == "5 of 256 px at 0.5 µm/px, 512 px of level 0"
    found = facts(tmp_path / "c.coordinates.npz")
    assert found["tiles"] == "5; their size is in c.coordinates.meta.json"


def test_features_of_clam_trident_and_stamp_are_told_apart(tmp_path: Path) -> None:
    layouts = {
        "TRIDENT": ("features", {"patch_size_level0": 512}, {}),
        "CLAM": ("features", {}, {}),
        "STAMP": ("feats", {}, {"unit": "um", "tile_size_um": 256.0, "extractor": "uni"}),
    }
    for tool, (key, on_coords, on_file) in layouts.items():
        with h5py.File(tmp_path / f"{tool}.h5", "w") as file:
            file[key] = np.zeros((3, 8), np.float32)
            file.create_dataset("coords", data=np.zeros((3, 2), np.int64)).attrs.update(on_coords)
            file.attrs.update(on_file)
        found = facts(tmp_path / f"{tool}.h5")
        assert (found["what"], found["patches"]) == (f"features ({tool})", "3 of 8 numbers")
    torch.save(torch.zeros(3, 8), tmp_path / "clam.pt")
    found = facts(tmp_path / "clam.pt")
    assert found["what"] == "features without coordinates (CLAM's pt_files)"
    assert found["patches"] == "3 x 8 numbers"


@pytest.mark.parametrize("name", ["a.json", "a.npz", "a.coordinates.npz"])
def test_json_and_arrays_of_no_tool_are_named(tmp_path: Path, name: str) -> None:
    assert problem(tmp_path / name) == f"{tmp_path / name}: no such file"
    (tmp_path / name).write_text("[1, 2]")
    assert problem(tmp_path / name).startswith(f"{tmp_path / name}: not a file of coordinates of hs2p: ")


def test_folders_of_ours_say_what_is_in_them(small_cohort, tmp_path: Path) -> None:
    found = facts(small_cohort[1])
    assert (found["what"], "20 .h5" in found["files"]) == ("folder of files that wsi-dbps wrote", True)
    assert found["use"].endswith("slide_00.h5")
    for fold in (0, 1):
        (tmp_path / "folds" / f"fold{fold}").mkdir(parents=True)
        (tmp_path / "folds" / f"fold{fold}" / "run.json").write_text("{}")
    found = facts(tmp_path / "folds")
    assert (found["what"], found["folds"]) == ("runs of `train --folds all`", "fold0, fold1")
    (tmp_path / "other").mkdir()
    assert problem(tmp_path / "other").endswith("a folder that inspect knows nothing of; name a file in it")


def test_annotations_and_metrics_are_told(tmp_path: Path) -> None:
    ring = [[0, 0], [9, 0], [9, 9], [0, 0]]
    area = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Tumor"}},
    }
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [area]}))
    assert facts(tmp_path / "a.geojson") == {"what": "annotations", "areas": "Tumor (1)"}
    (tmp_path / "b.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    assert "without annotated areas" in facts(tmp_path / "b.geojson")["what"]
    (tmp_path / "metrics.json").write_text(json.dumps({"format": "wsi-dbps metrics", "format_version": 1}))
    assert facts(tmp_path / "metrics.json")["what"] == "metrics (written by wsi-dbps)"


def test_an_hdf5_file_whose_format_is_an_array_is_one_line(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file.attrs["format"] = np.zeros((3, 3))
    assert problem(tmp_path / "odd.h5").startswith(f"{tmp_path / 'odd.h5'}: ")
    assert "\n" not in problem(tmp_path / "odd.h5")
