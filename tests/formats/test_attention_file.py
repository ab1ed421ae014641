"""Attention files: what is written is read, and files of version 1, which say less of the slide, are read too."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi_dbps.core.errors import CacheError, PredictionError, UnknownGridError
from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.formats.attention import SlideAttention, read_attention
from wsi_dbps.formats.predictions import Prediction

CORNERS = np.array([[0, 0], [300, 0], [0, 300]])
GRID = TileGrid(CORNERS, 300.4, Size(4001, 3003), 0.2499, 256, 0.5)


def attention(grid: TileGrid) -> SlideAttention:
    return SlideAttention(
        slide_id="é 1",
        prediction=Prediction("é 1", "case", "test", None, 3, (0.25, 0.75)),
        classes=("normal", "tumour"),
        grid=grid,
        logits_NR=np.zeros((3, 2), np.float32),
        weights_N=np.full(3, 1 / 3, np.float32),
        role_N=np.array([1, 2, 0], np.uint8),
        cache_fingerprint="c",
        checkpoint_fingerprint="k",
    )


def write_version_1(path: Path) -> None:
    """As docs/formats/attention.md had it before version 2: it does not say the size and mpp of the slide."""
    with h5py.File(path, "w") as file:
        file["coords"] = CORNERS.astype(np.int64)
        file["logits"] = np.array([[3.0], [2.0], [1.0]], np.float32)
        file["weights"] = np.array([0.5, 0.25, 0.25], np.float32)
        file["role"] = np.array([1, 2, 0], np.uint8)
        file["evidence"] = np.array([[-1, 1], [0, 0], [0.5, -0.5]], np.float32)
        file.attrs.update(
            format="wsi-dbps attention",
            format_version=1,
            slide_id="S",
            case_id="C",
            split="",
            label="tumour",
            classes=json.dumps(["normal", "tumour"]),
            probabilities=[0.25, 0.75],
            tile_lv0=300.4,
            cache_fingerprint="c",
            checkpoint_fingerprint="k",
            roles=json.dumps(["other", "salient", "recycled"]),
        )


def test_the_grid_of_the_tiles_is_read_as_it_was_written(tmp_path: Path) -> None:
    attention(GRID).write(tmp_path / "a.h5")
    found = read_attention(tmp_path / "a.h5").grid
    assert np.array_equal(found.origins_lv0, CORNERS)
    assert (found.tile_lv0, found.slide_lv0, found.mpp_lv0_um) == (300.4, Size(4001, 3003), 0.2499)
    assert (found.size_px, found.mpp_um) == (256, 0.5)


def test_what_is_not_known_of_the_slide_is_left_out_and_is_an_error_only_when_asked_for(tmp_path: Path) -> None:
    def no_size() -> Size:
        raise CacheError("features do not say how large their slide is")

    attention(TileGrid(CORNERS, float("nan"), no_size, 0.25)).write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["mpp_level0"] == 0.25
        assert not {"slide_size", "mpp_patch", "patch_size_px"} & set(file.attrs)
    found = read_attention(tmp_path / "a.h5").grid
    assert (len(found), found.mpp_lv0_um, np.isnan(found.tile_lv0)) == (3, 0.25, True)
    with pytest.raises(UnknownGridError, match=r"a\.h5: does not say how large its slide is"):
        _ = found.slide_lv0


def test_a_file_of_version_1_is_read_and_takes_size_and_mpp_from_the_slides_cache(tmp_path: Path) -> None:
    write_version_1(tmp_path / "a.h5")
    found = read_attention(tmp_path / "a.h5")
    assert found.prediction == Prediction("S", "C", None, "tumour", 3, (0.25, 0.75))
    assert (found.slide_id, found.classes, found.grid.tile_lv0) == ("S", ("normal", "tumour"), 300.4)
    assert (found.weights_N.tolist(), found.role_N.tolist()) == ([0.5, 0.25, 0.25], [1, 2, 0])
    assert found.evidence_NC is not None
    assert found.evidence_NC.tolist() == [[-1, 1], [0, 0], [0.5, -0.5]]
    assert not found.grid.knows("slide_lv0")
    with pytest.raises(UnknownGridError, match=r"a\.h5: does not say .* give --caches$"):
        _ = found.grid.mpp_lv0_um
    with_slide = found.with_slide(TileGrid(CORNERS + 1, 9.0, Size(4001, 3003), 0.5, 256, 0.5)).grid
    assert (with_slide.slide_lv0, with_slide.mpp_lv0_um) == (Size(4001, 3003), 0.5)
    assert np.array_equal(with_slide.origins_lv0, CORNERS)  # the tiles stay those of the file
    assert with_slide.tile_lv0 == 300.4


def test_what_a_file_says_of_its_slide_is_kept_when_a_cache_says_otherwise(tmp_path: Path) -> None:
    attention(GRID).write(tmp_path / "a.h5")
    found = read_attention(tmp_path / "a.h5").with_slide(TileGrid(CORNERS, 9.0, Size(1, 1), 9.0)).grid
    assert (found.slide_lv0, found.mpp_lv0_um) == (Size(4001, 3003), 0.2499)


@pytest.mark.parametrize("version", [0, 3, "2"])
def test_another_version_is_refused_by_name(tmp_path: Path, version: object) -> None:
    attention(GRID).write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["format_version"] = version
    expected = rf"a\.h5: is 'wsi-dbps attention' version {version}, not 'wsi-dbps attention' version 1 or 2"
    with pytest.raises(PredictionError, match=expected):
        read_attention(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slide_size", [4001]),
        ("slide_size", [0, 3003]),
        ("slide_size", [4001.5, 3003.0]),
        ("mpp_level0", np.nan),
        ("mpp_level0", "0.25"),
        ("mpp_patch", -0.5),
        ("patch_size_px", 256.5),
    ],
)
def test_a_size_or_mpp_that_is_none_is_refused(tmp_path: Path, name: str, value: object) -> None:
    attention(GRID).write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs[name] = value
    with pytest.raises(PredictionError, match=rf"a\.h5: {name} is .*; predict again"):
        read_attention(tmp_path / "a.h5")
