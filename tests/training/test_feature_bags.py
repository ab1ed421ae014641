"""Features as bags: what embed writes, a projector learns from, and predict and heatmap follow."""

import dataclasses
import glob
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsi_dbps.bags.bags import CacheBag, PatchReader, open_cache
from wsi_dbps.core.errors import CacheError, ConfigError
from wsi_dbps.formats.features import FeatureFile
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.patch_filter import PatchFilter
from wsi_dbps.inference.embed import embed
from wsi_dbps.inference.predict import predict
from wsi_dbps.inference.predictor import Predictor
from wsi_dbps.models.encoders.build import build_encoder
from wsi_dbps.models.settings import EncoderConfig
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")
PROJECTOR = {"name": "projector", "dim": 16}


@pytest.fixture(scope="module")
def encoder_config(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    torch.manual_seed(7)
    weights = tmp_path_factory.mktemp("encoder") / "small.pth"
    torch.save(build_encoder(EncoderConfig(name="small_gn")).backbone.state_dict(), weights)
    return EncoderConfig(name="small_gn", weights=str(weights))


@pytest.fixture(scope="module")
def features(small_cohort, encoder_config, tmp_path_factory) -> Path:
    from wsi_dbps.cohort.manifest import read_manifest

    out = tmp_path_factory.mktemp("features")
    result = embed(encoder_config, read_manifest(small_cohort[0]), small_cohort[1], out, batch=16, device="cpu")
    assert (result.num_slides, result.num_patches, result.kept, result.failed) == (20, 720, 0, ())
    return out


def as_other(features: Path, out: Path, layout: str) -> Path:
    """The same features in another tool's layout."""
    for path in features.glob("*.h5"):
        folder = out / "h5_files" if layout == "CLAM" else out
        folder.mkdir(parents=True, exist_ok=True)
        ours = FeatureFile(path)
        with h5py.File(folder / path.name, "w") as file:
            if layout == "STAMP":
                file["feats"], file["coords"] = ours.patches(range(len(ours))), ours.grid.origins_lv0 * np.float32(0.5)
                file.attrs.update(extractor="e", unit="um", tile_size_um=32.0)
            else:
                file.create_dataset("features", data=ours.patches(range(len(ours))), chunks=(8, ours.dim))
                file["coords"] = ours.grid.origins_lv0.astype(np.int32)
    return out


def test_row_i_is_what_the_encoder_makes_of_patch_i(caches, features, encoder_config) -> None:
    network = build_encoder(encoder_config).eval()
    for slide in ("slide_00", "slide_13"):
        cache, file = PatchCache(caches / f"{slide}.h5"), FeatureFile(features / f"{slide}.h5")
        pixels = torch.from_numpy(cache.patches(range(36))).permute(0, 3, 1, 2)
        with torch.no_grad():
            wanted = network(pixels).numpy()
        assert np.allclose(file.patches(range(36)), wanted, atol=1e-5)
        assert np.array_equal(file.grid.origins_lv0, cache.grid.origins_lv0)


def test_a_projector_on_features_is_the_frozen_encoder_with_a_projection(caches, features, encoder_config) -> None:
    pixel_encoder = build_encoder(dataclasses.replace(encoder_config, dim=24)).eval()
    projector = build_encoder(EncoderConfig(name="projector", dim=24, num_features=128))
    projector.project.load_state_dict(pixel_encoder.project.state_dict())
    pixels = torch.from_numpy(PatchCache(caches / "slide_06.h5").patches(range(36))).permute(0, 3, 1, 2)
    rows = torch.from_numpy(FeatureFile(features / "slide_06.h5").patches(range(36)))
    assert projector.dim == pixel_encoder.dim == 24
    assert torch.allclose(projector(rows), pixel_encoder(pixels), atol=1e-4)


@pytest.mark.parametrize("preset", ["full", "random", "ips", "dbps"])
def test_every_preset_trains_on_features(cohort, features, tmp_path, make_config, preset) -> None:
    fixed = {} if preset == "dbps" else {"num_subsalient": 0}
    config = make_config(encoder=PROJECTOR, selection={"preset": preset, **fixed})
    result = train(cohort, features, tmp_path / "run", config)
    best = load_checkpoint(result.checkpoint)
    assert best.config.encoder.num_features == 128
    assert str(best.patch_kind).startswith("128 features by small_gn ")
    before = build_encoder(best.config.encoder).state_dict()
    assert any(not torch.equal(before[k], best.model_state[f"encoder.{k}"]) for k in before)


def without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("seconds", "data_wait")}


@pytest.mark.parametrize("layout", ["CLAM", "STAMP"])
def test_the_same_features_in_another_layout_give_the_same_run_and_predictions(
    cohort, features, tmp_path, make_config, layout
) -> None:
    other = as_other(features, tmp_path / layout, layout)
    known = dataclasses.replace(cohort, records=tuple(dataclasses.replace(r, mpp_um=0.5) for r in cohort.records))
    config, found = make_config(encoder=PROJECTOR), []
    for folder, name in ((features, "a"), (other, "b")):
        result = train(known, folder, tmp_path / name, config)
        predicted = predict([load_checkpoint(result.checkpoint)], known, folder, tmp_path / f"p_{name}", device="cpu")
        assert not predicted.failed
        rows = [r.probabilities for r in predicted.predictions.slides]
        found.append(([without_times(row) for row in result.history], rows))
    assert found[0] == found[1]


def test_a_run_on_features_resumes_as_it_began(cohort, features, tmp_path, make_config) -> None:
    config = make_config(encoder=PROJECTOR)
    first = train(cohort, features, tmp_path / "run", config)
    assert train(cohort, features, tmp_path / "run", config, resume=True).history == first.history


def test_a_tuned_encoder_embeds_as_its_run_encodes(cohort, caches, tmp_path, make_config) -> None:
    run = train(cohort, caches, tmp_path / "run", make_config())
    checkpoint = load_checkpoint(run.checkpoint)
    result = embed(checkpoint, cohort.part("val"), caches, tmp_path / "out", device="cpu")
    assert (result.num_slides, result.failed) == (4, ())
    record = cohort.part("val").records[0]
    file, reader = FeatureFile(tmp_path / "out" / f"{record.slide_id}.h5"), PatchReader(1)
    with h5py.File(file.path) as stored:
        assert stored.attrs["checkpoint_fingerprint"] == checkpoint.fingerprint()
    bag = CacheBag(record, PatchCache(caches / f"{record.slide_id}.h5"), reader)
    model = checkpoint.build_model(torch.device("cpu"))
    with torch.no_grad():
        (pixels,) = bag.read([torch.arange(36)])
        assert np.allclose(file.patches(range(36)), model.encoder(pixels).numpy(), atol=1e-5)
    reader.close()


def test_what_is_there_is_kept_and_what_was_made_otherwise_is_refused_by_slide(
    cohort, caches, features, encoder_config, tmp_path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(features, out)
    (out / "slide_04.h5").unlink()
    part = cohort.part("val")
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("*.h5")}
    result = embed(encoder_config, part, caches, out, batch=16, device="cpu")
    assert (result.num_slides, result.kept, result.failed) == (1, 3, ())
    assert times.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("*.h5")}.items()
    with h5py.File(out / "slide_04.h5") as one, h5py.File(features / "slide_04.h5") as other:
        assert np.array_equal(one["features"], other["features"])
    result = embed(encoder_config, part, caches, out, batch=16, device="cpu", precision="bf16")
    assert (result.num_slides, len(result.failed)) == (0, 4)
    assert (
        "was made otherwise: precision is 'float32' in it, 'bfloat16' asked; ask for the same, pass --overwrite"
        in result.failed[0]
    )
    assert (
        embed(encoder_config, part, caches, out, batch=16, device="cpu", precision="bf16", overwrite=True).num_slides
        == 4
    )
    low, full = (FeatureFile(f / "slide_05.h5").patches(range(36)) for f in (out, features))
    assert 0 < np.abs(low - full).max() < 0.05 * np.abs(full).max()


def test_a_bad_slide_is_named_and_the_rest_embedded(cohort, caches, encoder_config, tmp_path) -> None:
    bare = tmp_path / "caches"
    shutil.copytree(caches, bare)
    jpeg, whole = PatchCache(bare / "slide_05.h5").jpegs([30])[0], (bare / "slide_05.h5").read_bytes()
    (bare / "slide_05.h5").write_bytes(whole.replace(jpeg, bytes(len(jpeg))))
    (bare / "slide_06.h5").unlink()
    result = embed(encoder_config, cohort.part("val"), bare, tmp_path / "out", batch=8, device="cpu")
    assert result.num_slides == 2
    assert [line.partition(":")[0] for line in result.failed] == ["slide_05", "slide_06"]
    assert "patch 30 is damaged" in result.failed[0]
    assert "no such cache" in result.failed[1]
    assert sorted(glob.glob("*", root_dir=tmp_path / "out")) == ["slide_04.h5", "slide_07.h5"]


def test_a_slide_without_patches_gives_a_file_without_rows_and_is_left_out_of_training(
    cohort, caches, features, encoder_config, tmp_path, make_config
) -> None:
    empty, record = PatchCache(caches / "slide_09.h5").only(np.zeros(36, bool), "none"), cohort.records[9]
    from wsi_dbps.formats.features import features_written

    encoder, weights = FeatureFile(features / "slide_09.h5").facts.encoder.split()
    made = {"encoder": encoder, "encoder_fingerprint": weights}
    shutil.copytree(features, tmp_path / "f")
    with features_written(tmp_path / "f" / "slide_09.h5", empty, 128, made | {"precision": "float32", "batch": 9}):
        pass
    assert len(FeatureFile(tmp_path / "f" / "slide_09.h5").grid.origins_lv0) == 0
    result = train(cohort, tmp_path / "f", tmp_path / "run", make_config(encoder=PROJECTOR))
    assert result.left_out == (record.slide_id,)


def test_encoder_and_bags_that_do_not_fit_say_what_to_do(cohort, caches, features, tmp_path, make_config) -> None:
    def refused(folder: Path, message: str, **encoder: object) -> None:
        with pytest.raises(ConfigError, match=message):
            train(cohort, folder, tmp_path / "run", make_config(encoder=encoder))

    refused(features, r"'small_gn' takes pixels, and --caches holds 128 features by small_gn .*'projector'", dim=16)
    refused(
        caches, r"'projector' takes features, and the caches hold patches of 32 px at 1 µm/px; .*embed", **PROJECTOR
    )
    refused(features, r"num_features = 64, and --caches holds 128 features", **PROJECTOR, num_features=64)
    refused(features, "leave them out", **PROJECTOR, weights="w.pth")
    with pytest.raises(ConfigError, match="a projector takes features and makes none of pixels"):
        embed(EncoderConfig(name="projector", num_features=4), cohort, caches, tmp_path / "out", device="cpu")
    vit = EncoderConfig(name="vit_tiny_patch16_224", pretrained=False)
    with pytest.raises(ConfigError, match=r"encoder vit_tiny_patch16_224 fails on 36 patches of 32 px: Input height"):
        embed(vit, cohort, caches, tmp_path / "out", device="cpu")
    assert not list((tmp_path / "out").glob("*"))


def test_features_of_two_encoders_are_not_mixed(cohort, caches, features, tmp_path, make_config) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(features, mixed)
    torch.manual_seed(8)
    embed(EncoderConfig(name="small_gn"), cohort.part("val"), caches, mixed, device="cpu", overwrite=True)
    message = r"slide_08.h5: holds 128 features by small_gn \w+, where 128 features by small_gn \w+ are wanted; embed"
    with pytest.raises(CacheError, match=message):
        train(cohort, mixed, tmp_path / "run", make_config(encoder=PROJECTOR))


def test_files_that_cannot_be_bags_are_named(cohort, features, tmp_path) -> None:
    record = cohort.records[5]
    (tmp_path / "slide_05.pt").write_bytes(b"")
    with pytest.raises(
        CacheError, match=r"slide_05.pt: features without coordinates, which are needed too; give --caches"
    ):
        open_cache(tmp_path, record, None, PatchFilter())
    shutil.copy(features / "slide_06.h5", tmp_path / "slide_05.h5")
    with pytest.raises(CacheError, match=r"slide_05.h5: holds slide 'slide_06', not 'slide_05'"):
        open_cache(tmp_path, record, None, PatchFilter())
    with pytest.raises(CacheError, match=r"features carry no measures of quality; leave \[patches\] out"):
        open_cache(features, record, None, PatchFilter(max_white=0.5))


def test_a_run_on_features_is_not_given_pixels(cohort, caches, features, tmp_path, make_config) -> None:
    result = train(cohort, features, tmp_path / "run", make_config(encoder=PROJECTOR))
    predictor = Predictor([load_checkpoint(result.checkpoint)], caches, device="cpu")
    with pytest.raises(CacheError, match=r"holds patches of 32 px at 1 µm/px, where 128 features by small_gn \w+ are"):
        predictor.slide(cohort.records[0])
