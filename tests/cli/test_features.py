"""Features through the commands: embed, train, predict, heatmap, inspect."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsi_dbps.formats.attention import read_attention
from wsi_dbps.formats.features import FeatureFile, open_bag
from wsi_dbps.models.encoders.build import build_encoder
from wsi_dbps.models.settings import EncoderConfig

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


@pytest.fixture(scope="module")
def embedded(small_cohort, weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the small cohort by `weights`; read only."""
    from wsi_dbps.workflows.embed import embed

    out = tmp_path_factory.mktemp("embedded") / "features"
    assert not embed(*small_cohort, out, encoder="small_gn", weights=weights, device="cpu").failed
    return out


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


def as_another_tool(layout: str, ours: Path, theirs: Path) -> None:
    """One file of features in the layout of another tool."""
    with h5py.File(ours) as source, h5py.File(theirs, "w") as file:
        rows, coords = source["features"][:], source["coords"][:]
        if layout == "stamp":
            file["feats"], file["coords"] = rows.astype(np.float16), coords.astype(np.float32)  # 1 µm per pixel
            file.attrs.update(extractor="uni", unit="um", tile_size_um=32.0, tile_size_px=32, feat_type="tile")
        else:
            file["features"], file["coords"] = rows, coords
        if layout == "trident":
            file["coords"].attrs.update(source["coords"].attrs)


@pytest.mark.parametrize("layout", ["trident", "clam", "stamp"])
def test_heatmaps_of_other_tools_features_take_what_they_lack_from_the_slide(
    small_cohort, embedded, tmp_path, wsi_dbps, layout
) -> None:
    manifest, _ = small_cohort
    folder, run, pred, maps = (tmp_path / name for name in ("theirs", "run", "pred", "maps"))
    folder.mkdir()
    for path in embedded.glob("*.h5"):
        as_another_tool(layout, path, folder / path.name)
    if layout == "trident":  # a slide without tissue, as TRIDENT writes it, is no part of training
        with h5py.File(folder / "slide_19.h5", "w") as file:
            file["features"], file["coords"] = np.empty(0), np.empty((0, 2))
    assert wsi_dbps("train", manifest, "--caches", folder, "--out", run, *QUICK)[0] == 0
    assert wsi_dbps("predict", run, manifest, "--caches", folder, "--out", pred)[0] == 0
    draw = ("heatmap", run, manifest, "--caches", folder, "--out", maps, "--slide", "slide_00", "--format")
    code, _, err = wsi_dbps(*draw, "png", "--format", "geojson", "--format", "csv", "--format", "ome-tiff")
    assert code == 0, err
    assert ("drawn 32 px of level 0 wide" in err) == (layout == "clam")
    assert {path.name for path in maps.glob("slide_00.*")} >= {"slide_00.png", "slide_00.geojson", "slide_00.ome.tiff"}
    tiles = json.loads((maps / "slide_00.geojson").read_text())["features"]
    assert tiles[1]["geometry"]["coordinates"] == [[[32, 0], [64, 0], [64, 32], [32, 32], [32, 0]]]
    code, out, err = wsi_dbps(*draw, "sheet")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "was trained on features, which hold no pixels to show; leave out --format sheet" in err
    assert np.isnan(read_attention(pred / "attention" / "slide_00.h5").grid.tile_lv0) == (layout == "clam")


def test_a_killed_embed_leaves_no_file_of_a_slides_name_that_is_not_whole(
    small_cohort, weights, tmp_path, wsi_dbps
) -> None:
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
    code, said, _ = wsi_dbps(*embed, "--batch", 1)
    assert (code, said.startswith(f"{20 - len(whole)} slides embedded")) == (0, True)
    assert not list(out.glob("*.wsi-dbps-part"))


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


def test_pt_is_read_as_clams_training_reads_it(small_cohort, weights, tmp_path, wsi_dbps) -> None:
    """CLAM's `main.py` loads pt_files/<slide>.pt; its heatmaps and ours take h5_files/<slide>.h5."""
    manifest, caches = small_cohort
    embed = ("embed", manifest, "--caches", caches, "--out", tmp_path, "--encoder", "small_gn", "--weights", weights)
    code, out, _ = wsi_dbps(*embed, "--format", "pt")
    assert (code, out.startswith("20 slides embedded (720 patches)")) == (0, True)
    tensor = torch.load(tmp_path / "pt_files" / "slide_03.pt", weights_only=True)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, (36, 128))
    assert np.array_equal(tensor, open_bag(tmp_path, "slide_03").patches(range(36)))
    assert "0 slides embedded (0 patches), 20 kept" in wsi_dbps(*embed, "--format", "pt")[1]
    (tmp_path / "pt_files" / "slide_03.pt").unlink()
    assert "1 slides embedded (0 patches), 19 kept" in wsi_dbps(*embed, "--format", "pt")[1]
    assert torch.equal(torch.load(tmp_path / "pt_files" / "slide_03.pt", weights_only=True), tensor)
    embed_rows = (*embed[:4], "--out", tmp_path / "other" / "h5_files", *embed[6:])
    assert wsi_dbps(*embed_rows)[0] == 0
    mine = tmp_path / "other" / "pt_files" / "slide_00.pt"
    mine.parent.mkdir()
    mine.write_text("mine")
    code, _, err = wsi_dbps(*embed[:4], "--out", tmp_path / "other", *embed[6:], "--format", "pt", "--overwrite")
    assert (code, mine.read_text(), "slide_00.pt: exists and was not written by" in err) == (2, "mine", True)
    (tmp_path / "h5_files" / "slide_03.h5").unlink()
    code, _, err = wsi_dbps(*embed, "--format", "pt", "--overwrite")
    assert (code, "slide_03.pt: there already, without our" in err) == (1, True)


def test_stamps_layout_is_read_as_stamp_reads_it(small_cohort, weights, embedded, tmp_path, wsi_dbps) -> None:
    manifest, caches = small_cohort
    embed = ("embed", manifest, "--caches", caches, "--encoder", "small_gn", "--weights", weights, "--out")
    assert wsi_dbps(*embed, tmp_path / "stamp", "--format", "stamp")[0] == 0
    ours = FeatureFile(embedded / "slide_03.h5")
    with h5py.File(tmp_path / "stamp" / "slide_03.h5") as file:
        feats, coords, attrs = file["feats"][:], file["coords"][:], dict(file.attrs)
    assert (feats.dtype, coords.dtype) == (np.float16, np.float32)
    assert np.array_equal(feats, ours.patches(range(36)).astype(np.float16))
    assert np.array_equal(coords, ours.grid.origins_lv0 * 1.0)  # 1 µm per pixel
    assert (attrs["unit"], attrs["feat_type"], attrs["extractor"]) == ("um", "tile", "small_gn")
    assert attrs["tile_size_um"] / attrs["tile_size_px"] == 1.0
    assert attrs["stamp_version"] == "2.0.0"
    theirs = FeatureFile(tmp_path / "stamp" / "slide_03.h5", mpp_lv0_um=1.0)
    assert np.array_equal(theirs.grid.origins_lv0, ours.grid.origins_lv0)
    assert "0 slides embedded (0 patches), 20 kept" in wsi_dbps(*embed, tmp_path / "stamp", "--format", "stamp")[1]
    code, _, err = wsi_dbps(*embed, embedded, "--format", "stamp")
    assert (code, "slide_00.h5 was made otherwise: layout is 'ours' in it, 'stamp' asked" in err) == (1, True)


def test_another_batch_is_another_embedding(small_cohort, weights, tmp_path, wsi_dbps) -> None:
    """Its sums are in another order: the same batch gives the same bytes, and another is not taken for it."""
    manifest, caches = small_cohort
    embed = ("embed", manifest, "--caches", caches, "--encoder", "small_gn", "--weights", weights, "--out")
    for name in ("a", "b"):
        assert wsi_dbps(*embed, tmp_path / name, "--batch", 7)[0] == 0
    assert (tmp_path / "a" / "slide_03.h5").read_bytes() == (tmp_path / "b" / "slide_03.h5").read_bytes()
    code, _, err = wsi_dbps(*embed, tmp_path / "a", "--batch", 8)
    assert (code, "slide_03.h5 was made otherwise: batch is 7 in it, 8 asked; ask for the same" in err) == (1, True)


def test_weights_that_hold_more_than_tensors_are_refused_without_advice_to_load_them(
    small_cohort, tmp_path, wsi_dbps
) -> None:
    manifest, caches = small_cohort
    torch.save({"state_dict": {}, "made_by": Path("anyone")}, tmp_path / "w.pth")
    embed = ("embed", manifest, "--caches", caches, "--out", tmp_path / "f", "--encoder", "small_gn")
    code, _, err = wsi_dbps(*embed, "--weights", tmp_path / "w.pth")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{tmp_path / 'w.pth'}: not a weights file: it holds Python objects other than tensors" in err
    assert "weights_only" not in err
    assert "False" not in err


def test_features_given_to_embed_are_told_apart(small_cohort, weights, embedded, tmp_path, wsi_dbps) -> None:
    embed = ("embed", small_cohort[0], "--encoder", "small_gn", "--weights", weights)
    code, _, err = wsi_dbps(*embed, "--caches", embedded, "--out", tmp_path / "g")
    assert code == 1
    assert "slide_00.h5: holds features already; give --caches a folder of patch caches" in err


@pytest.mark.parametrize("format_", ["h5", "pt", "stamp"])
def test_a_full_disk_ends_embed_in_one_line_and_leaves_whole_files_only(
    small_cohort, weights, small_disks, wsi_dbps, format_
) -> None:
    manifest, caches = small_cohort
    embed = ("embed", manifest, "--caches", caches, "--encoder", "small_gn", "--weights", weights, "--format", format_)
    for disk in small_disks([8192, 16384, 24576, 40960, 65536, 102400]):
        code, out, err = wsi_dbps(*embed, "--out", disk)
        assert (code, out) == (2, "")
        last = err.splitlines()[-1]
        assert last.startswith(f"wsi-dbps: {disk}/")
        assert last.endswith(": cannot be written: No space left on device")
        assert "Traceback" not in err
        for path in (path for path in disk.rglob("[!.]*") if path.is_file()):
            assert path.suffix in (".h5", ".pt")
            if path.suffix == ".h5":
                assert len(FeatureFile(path, mpp_lv0_um=1.0).patches(range(36))) == 36
            else:
                assert torch.load(path, weights_only=True).shape == (36, 128)
