"""The training loop: it learns, repeats, resumes, refuses, and never opens the test split."""

import dataclasses
import glob
import shutil
from pathlib import Path

import pytest
import torch

from wsi_dbps.cohort.cohort import Cohort
from wsi_dbps.core.errors import CacheError, CheckpointError, ConfigError, ManifestError, TrainingError
from wsi_dbps.models.bag import TensorBag
from wsi_dbps.models.device import pick_device
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")


def relabelled(cohort: Cohort, **changes: object) -> Cohort:
    return Cohort.of(dataclasses.replace(r, **changes) for r in cohort.records)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["full", "random", "ips", "dbps"])
def test_every_preset_trains_validates_and_leaves_a_whole_run_folder(trained, make_config, preset) -> None:
    fixed = {} if preset == "dbps" else {"num_subsalient": 0}
    finished = trained(make_config(selection={"preset": preset, **fixed}))
    assert [row["epoch"] for row in finished.result.history] == [1, 2]
    assert set(glob.glob("*", root_dir=finished.run)) - {"tensorboard"} == {
        "run.toml",
        "run.json",
        "cohort.csv",
        "history.csv",
        "last.pt",
        "best.pt",
        "selection",
    }
    best = load_checkpoint(finished.result.checkpoint)
    assert best.classes == ("coarse", "flat")
    assert best.epoch == finished.result.best["epoch"]
    assert best.config.selection.preset == preset


def test_a_start_that_fails_leaves_nothing_that_refuses_the_next(cohort, caches, tmp_path, make_config) -> None:
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    wrong = make_config(encoder={"weights": str(tmp_path / "other.pth")})
    with pytest.raises(ConfigError, match=r"other\.pth"):
        train(cohort, caches, tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()
    assert train(cohort, caches, tmp_path / "run", make_config()).checkpoint.exists()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    cohort, caches, tmp_path, make_config, plain_run, assert_same_run, numbers
) -> None:
    train(cohort, caches, tmp_path / "same", make_config(training={"seed": 0}))
    train(cohort, caches, tmp_path / "other", make_config(training={"seed": 1}))
    assert_same_run(plain_run.run, tmp_path / "same")
    assert numbers(plain_run.run) != numbers(tmp_path / "other")


def test_resuming_a_finished_run_changes_nothing(cohort, caches, tmp_path, plain_run, assert_same_run) -> None:
    run = plain_run.copy(tmp_path / "run")
    again = train(cohort, caches, run, plain_run.config, resume=True)
    assert again.history == plain_run.result.history
    assert_same_run(run, plain_run.run)


def test_the_test_split_is_never_opened(cohort, caches, tmp_path, make_config, plain_run, assert_same_run) -> None:
    """With the test slides' caches and labels mangled, the run is the same."""
    bare = tmp_path / "caches"
    shutil.copytree(caches, bare)
    for record in cohort.part("test").records:
        (bare / f"{record.slide_id}.h5").write_bytes(b"not to be opened")
    mangled = [dataclasses.replace(r, label="other") if r.split == "test" else r for r in cohort.records]
    train(Cohort.of(mangled), bare, tmp_path / "run", make_config())
    assert_same_run(plain_run.run, tmp_path / "run")
    assert "slide_00" not in (tmp_path / "run" / "run.json").read_text() + (tmp_path / "run" / "cohort.csv").read_text()


def test_a_slide_without_patches_is_named_and_left_out(cohort, caches, tmp_path, make_config) -> None:
    import numpy as np

    from wsi_dbps.formats.spec import CacheSpec, TilingSpec
    from wsi_dbps.synth.pyramid import write_aperio
    from wsi_dbps.tiling.tile_slide import tile_slide

    shutil.copytree(caches, tmp_path / "caches")
    write_aperio(tmp_path / "blank.svs", np.full((128, 128, 3), 244, np.uint8), mpp_um=1.0, tile_px=64)
    victim = dataclasses.replace(cohort.part("train").records[0], path=tmp_path / "blank.svs")
    spec = CacheSpec(tiling=TilingSpec(mpp_um=1.0, size_px=32))
    assert tile_slide(victim, spec, tmp_path / "caches", overwrite=True).num_patches == 0
    said = []
    config = make_config(training={"epochs": 1})
    result = train(cohort, tmp_path / "caches", tmp_path / "run", config, say=said.append)
    assert result.left_out == (victim.slide_id,)
    assert f"{victim.slide_id}: its cache holds no patch (no tissue was found); left out" in said


def test_a_run_folder_is_neither_overwritten_nor_resumed_as_another_run(
    cohort, caches, tmp_path, make_config, plain_run
) -> None:
    plain_run.copy(tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds a run already; pass --resume to go on"):
        train(cohort, tmp_path / "no caches", tmp_path / "run", make_config())  # before any is opened
    with pytest.raises(CheckpointError, match="holds a run already; pass --resume to go on"):
        train(cohort, caches, tmp_path / "run", make_config())
    other = make_config(optimizer={"lr": 5e-4}, selection={"num_salient": 2})
    with pytest.raises(CheckpointError, match=r"\(selection.num_salient was 3, now 2, optimizer.lr was 0.001, now"):
        train(cohort, caches, tmp_path / "run", other, resume=True)
    with pytest.raises(CheckpointError, match="no run to resume here"):
        train(cohort, caches, tmp_path / "none", make_config(), resume=True)
    turned = {"flat": "coarse", "coarse": "flat"}
    records = [dataclasses.replace(r, label=turned[str(r.label)]) for r in cohort.records]
    with pytest.raises(CheckpointError, match=r"cannot resume, classes differ|cannot resume, caches differ"):
        train(Cohort.of(records), caches, tmp_path / "run", make_config(), resume=True)


def test_a_cohort_that_cannot_be_learnt_is_refused(cohort, caches, tmp_path, make_config) -> None:
    message = "the manifest has no slide in split train; `wsi-dbps split COHORT.csv --out split.csv`"
    with pytest.raises(TrainingError, match=message):
        train(relabelled(cohort, split=None), caches, tmp_path / "run", make_config())
    with pytest.raises(TrainingError, match="every train slide is 'one'; training needs two classes or more"):
        train(relabelled(cohort, label="one"), caches, tmp_path / "run", make_config())
    assert not (tmp_path / "run").exists()


def test_a_validation_split_of_one_class_can_be_judged_by_loss(cohort, caches, tmp_path, make_config) -> None:
    records = Cohort.of(r for r in cohort.records if r.split != "val" or r.label == "flat")
    with pytest.raises(TrainingError, match=r"val has no slide of class 'coarse', .* set training.monitor = 'loss'"):
        train(records, caches, tmp_path / "a", make_config())
    result = train(records, caches, tmp_path / "b", make_config(training={"monitor": "loss", "epochs": 1}))
    assert result.best["val_auroc"] is None


def test_caches_that_do_not_belong_are_named(cohort, caches, tmp_path, make_config) -> None:
    bare = tmp_path / "caches"
    shutil.copytree(caches, bare)
    for i in (9, 11, 13, 15):
        (bare / f"slide_{i:02d}.h5").unlink()
    said = (
        r"caches: 4 of 16 train and val slides have no file there \(slide_09, slide_11, slide_13, ...\); make the miss"
    )
    with pytest.raises(CacheError, match=said + rf"ing ones with `wsi-dbps tile COHORT.csv --out {bare}`"):
        train(cohort, bare, tmp_path / "run", make_config())
    (tmp_path / "job" / "20x_256px_0px_overlap" / "patches").mkdir(parents=True)
    with pytest.raises(CacheError, match="a TRIDENT job with coordinates and no features; make features with TRIDENT"):
        train(cohort, tmp_path / "job", tmp_path / "run", make_config())
    shutil.copy(bare / "slide_10.h5", bare / "slide_09.h5")
    with pytest.raises(CacheError, match=r"slide_09.h5: holds slide 'slide_10', not 'slide_09'"):
        train(cohort, bare, tmp_path / "run", make_config())


def test_a_case_with_two_labels_is_not_trained_on_even_where_it_would_test(
    cohort, caches, tmp_path, make_config
) -> None:
    """As some patients of CAMELYON17: predictions of such a case could not be judged, fold for fold."""
    records = [dataclasses.replace(r, case_id="p") if r.split == "test" else r for r in cohort.records]
    with pytest.raises(ManifestError, match=r"^case 'p' has slides with different labels: 'flat' on slide slide_00, "):
        train(Cohort.of(records), caches, tmp_path / "run", make_config())
    assert not (tmp_path / "run").exists()


def test_labels_that_are_no_classes_are_trained_on_only_if_named(cohort, caches, tmp_path, make_config) -> None:
    records = [dataclasses.replace(r, label="Flat") if r.slide_id == "slide_10" else r for r in cohort.records]
    with pytest.raises(ManifestError, match=r"'flat' \(9 slides\) and 'Flat' \(1 slide\) differ in spelling only"):
        train(Cohort.of(records), caches, tmp_path / "a", make_config())
    named = make_config(training={"epochs": 1, "classes": ["flat", "Flat", "coarse"], "monitor": "loss"})
    assert load_checkpoint(train(Cohort.of(records), caches, tmp_path / "b", named).checkpoint).classes[1] == "Flat"


def test_caches_of_two_specs_are_not_mixed(cohort, caches, tmp_path, make_config) -> None:
    from wsi_dbps.formats.spec import CacheSpec, TilingSpec
    from wsi_dbps.tiling.outcomes import Tiled
    from wsi_dbps.tiling.tile_slide import tile_slide

    bare = tmp_path / "caches"
    shutil.copytree(caches, bare)
    record = dataclasses.replace(cohort.records[9], path=caches.parent / "slide_09.svs")
    spec = CacheSpec(tiling=TilingSpec(mpp_um=2.0, size_px=32, tissue="none"))
    assert isinstance(tile_slide(record, spec, bare, overwrite=True), Tiled)
    with pytest.raises(CacheError, match=r"slide_09.h5: holds patches of 32 px at 2 µm/px, where 32 px at 1 µm/px are"):
        train(cohort, bare, tmp_path / "run", make_config())


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="device 'cuda:99' cannot be used here"):
        pick_device("cuda:99")
    with pytest.raises(ConfigError, match="device 'gpu' cannot be used here"):
        pick_device("gpu")


def test_a_damaged_or_foreign_checkpoint_is_named(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"none.pt: no such checkpoint; is this a run folder"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"text.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "text.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt: is None version None, not 'wsi-dbps checkpoint' version 1"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save({"format": "wsi-dbps checkpoint", "format_version": 1, "config": {}}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match=r"part.pt: a checkpoint that is not whole: KeyError 'classes'"):
        load_checkpoint(tmp_path / "part.pt")


def test_a_best_pt_of_version_0_1_is_the_model_that_it_was() -> None:
    """Written by commit 0332151, as last-v1.pt; a checkpoint that names no task is a classifier."""
    checkpoint = load_checkpoint(Path(__file__).parents[1] / "archives" / "best-v1.pt")
    assert (checkpoint.classes, checkpoint.task.name, checkpoint.epoch) == (("coarse", "flat"), "classification", 2)
    model = checkpoint.build_model(torch.device("cpu"))
    logits_C = model.predict(TensorBag(torch.linspace(-1, 1, 120).reshape(20, 6)), torch.Generator()).logits_C
    assert logits_C.tolist() == pytest.approx([1.03231, -0.22861], abs=1e-4)


@pytest.mark.gpu
def test_on_a_gpu_it_trains_in_bf16(cohort, caches, tmp_path, make_config) -> None:
    config = make_config(training={"device": "cuda", "precision": "bf16"})
    assert len(train(cohort, caches, tmp_path / "run", config).history) == 2
