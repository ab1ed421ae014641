"""What takes a path takes text as well, and does the same with both."""

from pathlib import Path

import pytest

from wsi_dbps.cohort.annotations import read_annotations
from wsi_dbps.cohort.manifest import read_manifest, write_manifest
from wsi_dbps.core.settings import read_toml
from wsi_dbps.formats.attention import read_attention
from wsi_dbps.formats.export import ExportSpec, export_cache, find_caches
from wsi_dbps.formats.features import FeatureFile, features_written, holds_features, open_bag
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.predictions import read_predictions
from wsi_dbps.formats.spec import CacheSpec, TilingSpec
from wsi_dbps.inference.predict import predict
from wsi_dbps.slides.open import open_slide
from wsi_dbps.tiling.contact_sheet import write_contact_sheet
from wsi_dbps.tiling.overview import add_to_table
from wsi_dbps.tiling.tile_slide import cache_path, tile_slide
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import train
from wsi_dbps.training.settings import build_run_config

SMALL = CacheSpec(tiling=TilingSpec(mpp_um=1.0, size_px=32, tissue="none", min_tissue=0.0))
MADE = {"encoder": "e", "encoder_fingerprint": "0", "checkpoint_fingerprint": "", "precision": "fp32", "batch": 8}
RUN = {
    "encoder": {"name": "small_gn", "dim": 8},
    "selection": {"num_salient": 2, "num_subsalient": 2, "num_kept": 4},
    "aggregator": {"num_heads": 2},
    "training": {"epochs": 1, "device": "cpu", "decode_threads": 1},
}


@pytest.mark.parametrize("kind", [str, Path])
def test_every_door_takes_text_and_paths(kind, small_cohort: tuple[Path, Path], tmp_path: Path) -> None:
    """From slides to predictions, each function given paths of one kind only."""
    csv, caches = map(kind, small_cohort)
    out = kind(tmp_path / "out")
    cohort = read_manifest(csv, need_path=True)
    write_manifest(kind(tmp_path / "copy.csv"), cohort)
    assert (tmp_path / "copy.csv").exists()
    with open_slide(kind(cohort.records[0].file)) as reader:
        assert reader.info.reader == "openslide"
    outcome = tile_slide(cohort.records[0], SMALL, out)
    add_to_table(out, [outcome])
    assert outcome.path == cache_path(out, "slide_00") == tmp_path / "out" / "slide_00.h5"
    assert write_contact_sheet(["slide_00"], out) == tmp_path / "out" / "contact-sheet.html"
    cache = PatchCache(kind(outcome.path))
    assert len(open_bag(out, "slide_00")) == len(cache) == 36
    with features_written(tmp_path / "features.h5", cache, 4, MADE) as rows:
        rows[:] = 1
    assert holds_features(kind(tmp_path / "features.h5"))
    assert len(FeatureFile(kind(tmp_path / "features.h5"))) == 36
    assert find_caches([kind(outcome.path)]) == [outcome.path]
    exported = export_cache(kind(outcome.path), kind(tmp_path / "export"), ExportSpec(format="tar"))
    assert exported.target == tmp_path / "export" / "slide_00.tar"
    (tmp_path / "run.toml").write_text("[a]\nb = 1\n")
    assert read_toml(kind(tmp_path / "run.toml")) == {"a": {"b": 1}}
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert read_annotations(kind(tmp_path / "a.geojson")) == ()
    train(cohort, caches, kind(tmp_path / "run"), build_run_config(RUN, "test"))
    checkpoint = load_checkpoint(kind(tmp_path / "run" / "best.pt"))
    predict([checkpoint], cohort.part("test"), caches, kind(tmp_path / "pred"), device="cpu")
    assert len(read_predictions(kind(tmp_path / "pred" / "predictions.csv")).slides) == 4
    assert read_attention(kind(tmp_path / "pred" / "attention" / "slide_00.h5")).slide_id == "slide_00"
