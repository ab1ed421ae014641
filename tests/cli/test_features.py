"""Features through the commands: embed, train, predict, heatmap, inspect."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsi_dbps.models.config import EncoderConfig
from wsi_dbps.models.encoders import build_encoder
from wsi_dbps.patches.features import FeatureFile
from wsi_dbps.records import read_attention

QUICK = [
    *("--set", "encoder.name=projector", "--set", "encoder.dim=16", "--set", "aggregator.num_heads=2"),
    *("--set", "selection.num_salient=3", "--set", "selection.num_subsalient=6", "--set", "selection.num_kept=12"),
    *("--set", "training.epochs=1", "--set", "training.device=cpu"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(build_encoder(EncoderConfig(name="small_gn")).backbone.state_dict(), path)
    return path


def test_from_caches_over_features_to_heatmaps(small_cohort, weights, tmp_path, wsi_dbps) -> None:
    manifest, caches = small_cohort
    features, run, pred, maps = (tmp_path / name for name in ("features", "run", "pred", "maps"))
    embed = ("embed", manifest, "--caches", caches, "--out", features, "--device", "cpu", "--batch", 16)
    code, out, _ = wsi_dbps(*embed, "--encoder", "small_gn", "--weights", weights)
    assert (code, out.startswith("20 slides embedded (720 patches), 0 kept as they were, 0 failed (")) == (0, True)
    assert "patches/s" in out
    assert "% waiting for pixels" in out
    code, out, _ = wsi_dbps(*embed, "--encoder", "small_gn", "--weights", weights)
    assert (code, "0 slides embedded (0 patches), 20 kept as they were" in out) == (0, True)
    assert wsi_dbps("train", manifest, "--caches", features, "--out", run, *QUICK)[0] == 0
    code, out, _ = wsi_dbps("predict", run, manifest, "--caches", features, "--out", pred)
    assert (code, out.startswith("4 slides of 4 cases predicted, 0 failed")) == (0, True)
    draw = ("heatmap", run, manifest, "--caches", features, "--predictions", pred, "--split", "test", "--out", maps)
    assert wsi_dbps(*draw)[:2] == (0, f"4 slides drawn, 0 failed: {maps}\n")
    assert len(list(maps.glob("*.png"))) == len(list(maps.glob("*.geojson"))) == 4
    attention = read_attention(pred / "attention" / "slide_00.h5")
    assert attention.cache_fingerprint == FeatureFile(features / "slide_00.h5").fingerprint
    code, out, _ = wsi_dbps("inspect", features / "slide_00.h5", run / "best.pt")
    assert code == 0
    assert "what         features" in out
    assert "patches      36 of 128 numbers" in out
    assert "patches      128 features by small_gn" in out


def test_a_runs_tuned_encoder_is_embedded(small_cohort, tmp_path, wsi_dbps) -> None:
    manifest, caches = small_cohort
    pixels = [a.replace("projector", "small_gn") for a in QUICK]
    assert wsi_dbps("train", manifest, "--caches", caches, "--out", tmp_path / "run", *pixels)[0] == 0
    embed = ("embed", manifest, "--caches", caches, "--out", tmp_path / "f", "--run", tmp_path / "run")
    assert wsi_dbps(*embed)[0] == 0
    assert FeatureFile(tmp_path / "f" / "slide_00.h5").dim == 16


def test_heatmaps_of_other_tools_features_draw_what_they_can(small_cohort, weights, tmp_path, wsi_dbps) -> None:
    """TRIDENT's know the slide's size, so tiles are drawn as GeoJSON; CLAM's do not, and are predicted only."""
    manifest, caches = small_cohort
    embed = ("embed", manifest, "--caches", caches, "--out", tmp_path / "ours", "--encoder", "small_gn")
    assert wsi_dbps(*embed, "--weights", weights)[0] == 0
    for layout in ("trident", "clam"):
        folder = tmp_path / layout
        folder.mkdir()
        for path in (tmp_path / "ours").glob("*.h5"):
            with h5py.File(path) as ours, h5py.File(folder / path.name, "w") as theirs:
                theirs["features"], theirs["coords"] = ours["features"][:], ours["coords"][:]
                if layout == "trident":
                    theirs["coords"].attrs.update(ours["coords"].attrs)
        run, pred, maps = (tmp_path / f"{layout}_{name}" for name in ("run", "pred", "maps"))
        assert wsi_dbps("train", manifest, "--caches", folder, "--out", run, *QUICK)[0] == 0
        assert wsi_dbps("predict", run, manifest, "--caches", folder, "--out", pred)[0] == 0
        draw = ("heatmap", run, manifest, "--caches", folder, "--out", maps, "--slide", "slide_00", "--format")
        code, _, err = wsi_dbps(*draw, "png")
        assert code == 1
        lacks = "has no thumbnail to draw on" if layout == "trident" else "does not say how large its slide is"
        assert f"slide_00.h5: {lacks}" in err
        assert wsi_dbps(*draw, "geojson")[0] == (0 if layout == "trident" else 1)
        assert wsi_dbps(*draw, "csv")[0] == 0
        code, _, err = wsi_dbps(*draw, "sheet")
        assert (code, "holds features, no pixels" in err) == (1, layout == "trident")
        assert np.isnan(read_attention(pred / "attention" / "slide_00.h5").tile_lv0) == (layout == "clam")


def test_a_killed_embed_leaves_no_file_of_a_slides_name_that_is_not_whole(small_cohort, weights, tmp_path) -> None:
    manifest, caches = small_cohort
    out = tmp_path / "out"
    embed = ["embed", manifest, "--caches", caches, "--out", out, "--encoder", "small_gn", "--weights", weights]
    command = [sys.executable, "-c", "from wsi_dbps_cli.main import run; run()", *map(str, embed), "--batch", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(out.glob("*.h5")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    whole = sorted(out.glob("*.h5"))
    assert 0 < len(whole) <= 20
    for path in whole:
        assert FeatureFile(path).patches(range(36)).any(axis=1).all()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{20 - len(whole)} slides embedded" in done.stdout
    assert not list(out.glob("*.part"))


def test_what_embed_cannot_do_is_one_line(small_cohort, weights, tmp_path, wsi_dbps) -> None:
    manifest, caches = small_cohort
    embed = ("embed", manifest, "--caches", caches, "--out", tmp_path / "f")

    def refused(message: str, *flags: object) -> None:
        code, _, err = wsi_dbps(*embed, *flags)
        assert (code, err.startswith("wsi-dbps: "), err.count("\n")) == (2, True, 1), err
        assert message in err

    refused("small_gn has no weights of its own; give --weights", "--encoder", "small_gn")
    refused("--run brings its own encoder", "--run", tmp_path, "--encoder", "resnet18")
    refused("best.pt: no such checkpoint", "--run", tmp_path)
    refused("has no model 'resnet19'", "--encoder", "resnet19")
    refused("no such weights file", "--encoder", "resnet18", "--weights", tmp_path / "none.pth")
    shutil.copytree(caches, tmp_path / "f")
    code, _, err = wsi_dbps(*embed, "--encoder", "small_gn", "--weights", weights, "--overwrite")
    assert code == 1
    assert "slide_00.h5: there already, and no features of ours; name another --out folder" in err
    assert (tmp_path / "f" / "slide_00.h5").read_bytes() == (caches / "slide_00.h5").read_bytes()
