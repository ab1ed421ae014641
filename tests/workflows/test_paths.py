"""Every public function that takes a path takes text as well; the commands call the same functions with paths."""

from pathlib import Path

import wsi_dbps as wd

SETTINGS = {
    "encoder": {"name": "small_gn", "dim": 8},
    "selection.num_salient": 2,
    "selection.num_subsalient": 2,
    "selection.num_kept": 4,
    "aggregator.num_heads": 2,
    "training": {"epochs": 1, "device": "cpu", "decode_threads": 1},
}
TILING = {"mpp": 1.0, "size": 32, "tissue": "none", "min_tissue": 0.0, "workers": 1, "slide": "slide_00"}


def test_every_public_function_takes_paths_as_text(small_cohort: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, caches = map(str, small_cohort)

    def at(*parts: str) -> str:
        return str(tmp_path.joinpath(*parts))

    cohort = wd.read_cohort(manifest)
    wd.write_manifest(at("copy.csv"), cohort)
    assert wd.read_cohort(at("copy.csv")) == cohort
    slide = str(cohort.records[0].file)
    with wd.open_slide(slide) as reader:
        assert reader.info.reader == "openslide"
    assert wd.thumbnail(slide, 96).shape == (96, 96, 3)
    assert len(wd.cohort_from_slides(slide)) == 1
    assert wd.split(manifest, at("split.csv")).out == tmp_path / "split.csv"

    assert not wd.tile(manifest, at("caches"), **TILING).failed
    cache = at("caches", "slide_00.h5")
    assert len(wd.PatchCache(cache)) == 36
    assert [each.what for each in wd.inspect([cache, manifest]).files][1] == "cohort manifest"
    assert wd.export(cache, at("export"), "tar", labels=manifest).written == (tmp_path / "export" / "slide_00.tar",)

    run = wd.train(manifest, caches, at("run"), SETTINGS)
    assert run.checkpoint == tmp_path / "run" / "best.pt"
    assert wd.load_run(at("run")).epoch == run.best["epoch"] == 1
    embedded = wd.embed(manifest, caches, at("features"), run=at("run"), batch=36)
    assert (embedded.num_slides, len(wd.FeatureFile(at("features", "slide_00.h5")))) == (20, 36)
    assert wd.plan(manifest, caches, "2G", SETTINGS, device="cpu").changes == ()

    predicted = wd.predict(at("run"), manifest, caches, at("pred"), device="cpu")
    assert len(wd.read_predictions(at("pred")).slides) == len(predicted.predictions.slides) == 4
    assert wd.read_predictions(at("pred", "predictions.csv")).slides == predicted.predictions.slides
    assert wd.read_attention(at("pred", "attention", "slide_00.h5")).slide_id == "slide_00"
    assert not wd.evaluate(at("pred"), at("report"), bootstrap=20).failed
    assert (tmp_path / "report" / "report.html").is_file()
    assert not wd.compare(at("pred"), at("pred"), at("compared"), bootstrap=20).failed
    drawn = wd.heatmap(at("run"), manifest, caches, at("maps"), predictions=at("pred"), slide="slide_00", device="cpu")
    assert not drawn.failed
    assert (tmp_path / "maps" / "slide_00.png").is_file()
    assert not wd.faithfulness(at("run"), manifest, caches, at("truth"), orders=1, seeds=2, device="cpu").failed
    assert not wd.atlas(at("run"), caches, at("atlas"), slide="slide_08").failed


def test_results_stand_for_their_folders(small_cohort: tuple[Path, Path], tmp_path: Path) -> None:
    cohort, caches = wd.read_cohort(small_cohort[0]), small_cohort[1]
    run = wd.train(cohort, caches, tmp_path / "run", SETTINGS)
    predictions = wd.predict(run, cohort, caches, tmp_path / "pred", device="cpu")
    seen = wd.read_attention(tmp_path / "pred" / "attention" / "slide_00.h5")
    assert wd.load_run(run).fingerprint() == seen.checkpoint_fingerprint
    assert wd.evaluate(predictions, bootstrap=20).metrics.cases.num == 4
    assert wd.inspect(run).files[0].what == "run folder"
