"""The training loop: it learns, repeats, resumes, refuses, and never opens the test split."""

import csv
import dataclasses
import glob
import shutil
from pathlib import Path

import pytest
import torch

from wsi_dbps.cohort.cohort import Cohort
from wsi_dbps.core.errors import CacheError, CheckpointError, ConfigError, ManifestError, OutputError, TrainingError
from wsi_dbps.models.device import pick_device
from wsi_dbps.training import loop as loop_module
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import best_row, train

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")


def numbers(run: Path) -> list[dict[str, str]]:
    with open(run / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "data_wait")} for row in csv.DictReader(file)]


def weights(run: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return load_checkpoint(run / name).model_state


def assert_same_run(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    for name in ("last.pt", "best.pt"):
        first, second = weights(one, name), weights(other, name)
        assert all(torch.equal(first[key], second[key]) for key in first)


def relabelled(cohort: Cohort, **changes: object) -> Cohort:
    return Cohort.of(dataclasses.replace(r, **changes) for r in cohort.records)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["full", "random", "ips", "dbps"])
def test_every_preset_trains_validates_and_leaves_a_whole_run_folder(
    cohort, caches, tmp_path, make_config, preset
) -> None:
    fixed = {} if preset == "dbps" else {"num_subsalient": 0}
    result = train(cohort, caches, tmp_path / "run", make_config(selection={"preset": preset, **fixed}))
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert set(glob.glob("*", root_dir=tmp_path / "run")) - {"tensorboard"} == {
        "run.toml",
        "run.json",
        "cohort.csv",
        "history.csv",
        "last.pt",
        "best.pt",
        "selection",
    }
    best = load_checkpoint(result.checkpoint)
    assert best.classes == ("coarse", "flat")
    assert best.epoch == result.best["epoch"]
    assert best.config.selection.preset == preset


def test_it_learns_what_tells_the_classes_apart(cohort, caches, tmp_path, make_config) -> None:
    config = make_config(
        selection={"exploration": 0.5, "num_kept": 36, "num_salient": 8},
        training={"epochs": 20, "batch_slides": 3, "seed": 1},  # of seeds 0 to 5 one, 0, stays at chance
        optimizer={"lr": 1e-3, "encoder_lr": 2e-3},
        aggregator={"num_heads": 1, "dropout": 0.0},
    )
    result = train(cohort, caches, tmp_path / "run", config)
    assert result.best["val_auroc"] == 1.0
    assert result.history[-1]["train_loss"] < 0.5 * result.history[0]["train_loss"]


def test_a_start_that_fails_leaves_nothing_that_refuses_the_next(cohort, caches, tmp_path, make_config) -> None:
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    wrong = make_config(encoder={"weights": str(tmp_path / "other.pth")})
    with pytest.raises(ConfigError, match=r"other\.pth"):
        train(cohort, caches, tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()
    assert train(cohort, caches, tmp_path / "run", make_config()).checkpoint.exists()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(cohort, caches, tmp_path, make_config) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(cohort, caches, tmp_path / name, make_config(training={"seed": seed}))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert numbers(tmp_path / "a") != numbers(tmp_path / "c")


@pytest.mark.parametrize("epochs_before", [0, 1, 3])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    cohort, caches, tmp_path, make_config, monkeypatch, epochs_before
) -> None:
    config = make_config(training={"epochs": 4, "accumulate": 2}, selection={"exploration": 0.5})
    train(cohort, caches, tmp_path / "unbroken", config)
    whole = loop_module.validate
    calls = iter(range(100))

    def stop(*arguments: object) -> object:
        if next(calls) == epochs_before:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module, "validate", stop)
    with pytest.raises(KeyboardInterrupt):
        train(cohort, caches, tmp_path / "broken", config)
    monkeypatch.setattr(loop_module, "validate", whole)
    train(cohort, caches, tmp_path / "broken", config, resume=True)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_resuming_a_finished_run_changes_nothing(cohort, caches, tmp_path, make_config) -> None:
    first = train(cohort, caches, tmp_path / "run", make_config())
    before = weights(tmp_path / "run")
    again = train(cohort, caches, tmp_path / "run", make_config(), resume=True)
    assert again.history == first.history
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path / "run").items())


def test_the_test_split_is_never_opened(cohort, caches, tmp_path, make_config) -> None:
    """Without the test slides' caches, without their rows, and with their labels mangled, the run is the same."""
    train(cohort, caches, tmp_path / "a", make_config())
    bare = tmp_path / "caches"
    shutil.copytree(caches, bare)
    for record in cohort.part("test").records:
        (bare / f"{record.slide_id}.h5").write_bytes(b"not to be opened")
    train(cohort, bare, tmp_path / "b", make_config())
    mangled = [dataclasses.replace(r, label="other") if r.split == "test" else r for r in cohort.records]
    train(Cohort.of(mangled), bare, tmp_path / "c", make_config())
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "c")
    assert "slide_00" not in (tmp_path / "a" / "run.json").read_text() + (tmp_path / "a" / "cohort.csv").read_text()


def test_accumulating_batches_is_one_larger_batch(cohort, caches, tmp_path, make_config) -> None:
    """Without drop, dropout and augmentation the first step is the same; the first epoch's loss of its slides too."""
    plain = {
        "selection": {"num_kept": 36},
        "aggregator": {"num_heads": 2, "dropout": 0.0},
        "augmentation": {"flips": False, "turns": False, "stain_jitter": 0.0},
    }
    for name, slides, accumulate in (("a", 12, 1), ("b", 3, 4)):
        training = {"epochs": 1, "batch_slides": slides, "accumulate": accumulate}
        train(cohort, caches, tmp_path / name, make_config(**plain, training=training))
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(first[key], second[key], atol=2e-4) for key in first)
    assert float(numbers(tmp_path / "a")[0]["train_loss"]) == pytest.approx(
        float(numbers(tmp_path / "b")[0]["train_loss"]), abs=1e-5
    )


def test_early_stop_ends_a_run_that_gets_no_better(cohort, caches, tmp_path, make_config) -> None:
    still = {"lr": 1e-12, "weight_decay": 0.0}
    config = make_config(optimizer=still, training={"epochs": 9, "patience": 2, "monitor": "auroc"})
    result = train(cohort, caches, tmp_path / "run", config)
    assert len(result.history) == result.best["epoch"] + 2 < 9


def test_equal_aurocs_go_by_the_loss(make_config) -> None:
    rows = [{"val_auroc": a, "val_loss": b} for a, b in ((0.8, 0.2), (0.9, 0.6), (0.9, 0.5), (0.9, 0.5))]
    assert best_row(rows, make_config().training) is rows[2]
    assert best_row(rows, make_config(training={"monitor": "loss"}).training) is rows[0]


def test_a_slide_without_patches_is_named_and_left_out(cohort, caches, tmp_path, make_config, capsys) -> None:
    import numpy as np

    from wsi_dbps.formats.spec import CacheSpec, TilingSpec
    from wsi_dbps.synth.pyramid import write_aperio
    from wsi_dbps.tiling.tile_slide import tile_slide

    shutil.copytree(caches, tmp_path / "caches")
    write_aperio(tmp_path / "blank.svs", np.full((128, 128, 3), 244, np.uint8), mpp_um=1.0, tile_px=64)
    victim = dataclasses.replace(cohort.part("train").records[0], path=tmp_path / "blank.svs")
    spec = CacheSpec(tiling=TilingSpec(mpp_um=1.0, size_px=32))
    assert tile_slide(victim, spec, tmp_path / "caches", overwrite=True).num_patches == 0
    result = train(cohort, tmp_path / "caches", tmp_path / "run", make_config(training={"epochs": 1}))
    assert result.left_out == (victim.slide_id,)
    assert f"{victim.slide_id}: its cache holds no patch (no tissue was found); left out" in capsys.readouterr().err


def test_a_run_folder_is_neither_overwritten_nor_resumed_as_another_run(cohort, caches, tmp_path, make_config) -> None:
    train(cohort, caches, tmp_path / "run", make_config())
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


def test_a_loss_that_is_not_finite_takes_no_step(cohort, caches, tmp_path, make_config, monkeypatch) -> None:
    config = make_config(training={"epochs": 2})
    whole, calls = loop_module.augment, iter(range(100))

    def broken(pixels: torch.Tensor, config: object) -> torch.Tensor:
        out = whole(pixels, config)  # type: ignore[arg-type]
        return out * float("nan") if next(calls) == 14 else out

    monkeypatch.setattr(loop_module, "augment", broken)
    with pytest.raises(TrainingError, match=r"epoch 2, slides slide_\d\d, .*: the loss is nan; no step was taken"):
        train(cohort, caches, tmp_path / "run", config)
    assert load_checkpoint(tmp_path / "run" / "last.pt").epoch == 1
    monkeypatch.setattr(loop_module, "augment", whole)
    assert len(train(cohort, caches, tmp_path / "run", config, resume=True).history) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": None}, "the manifest has no slide in split train; `wsi-dbps split COHORT.csv --out split.csv`"),
        ({"label": "one"}, "every train slide is 'one'; training needs two classes or more"),
    ],
)
def test_a_cohort_that_cannot_be_learnt_is_refused(cohort, caches, tmp_path, make_config, change, message) -> None:
    with pytest.raises(TrainingError, match=message):
        train(relabelled(cohort, **change), caches, tmp_path / "run", make_config())


def test_a_validation_split_of_one_class_is_refused_or_judged_by_loss(cohort, caches, tmp_path, make_config) -> None:
    records = [r for r in cohort.records if r.split != "val" or r.label == "flat"]
    with pytest.raises(TrainingError, match=r"val has no slide of class 'coarse', .* set training.monitor = 'loss'"):
        train(Cohort.of(records), caches, tmp_path / "a", make_config())
    result = train(Cohort.of(records), caches, tmp_path / "b", make_config(training={"monitor": "loss"}))
    assert result.best["val_auroc"] is None
    strange = [dataclasses.replace(r, label="new") if r.split == "val" else r for r in cohort.records]
    with pytest.raises(TrainingError, match="val holds class 'new', of which train has no slide"):
        train(Cohort.of(strange), caches, tmp_path / "c", make_config())


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


def test_a_disk_that_is_full_keeps_the_last_checkpoint(cohort, caches, tmp_path, make_config, monkeypatch) -> None:
    config = make_config(training={"epochs": 2})
    whole = loop_module.save_checkpoint

    def full(path: Path, *arguments: object, **settings: object) -> None:
        if settings["epoch"] == 2 and path.name == "last.pt":
            path.with_name("last.pt.wsi-dbps-part").symlink_to("/dev/full")  # the real device whose every write fails
        whole(path, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module, "save_checkpoint", full)
    with pytest.raises(OutputError, match=r"last.pt: cannot be written: No space left on device"):
        train(cohort, caches, tmp_path / "run", config)
    assert load_checkpoint(tmp_path / "run" / "last.pt").epoch == 1
    assert not list((tmp_path / "run").glob("*.wsi-dbps-part"))


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="device 'cuda:99' cannot be used here"):
        pick_device("cuda:99")
    with pytest.raises(ConfigError, match="device 'gpu' cannot be used here"):
        pick_device("gpu")


def test_a_damaged_or_foreign_checkpoint_is_named(tmp_path: Path) -> None:
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_it_trains_in_bf16(cohort, caches, tmp_path, make_config) -> None:
    config = make_config(training={"device": "cuda", "precision": "bf16"})
    assert len(train(cohort, caches, tmp_path / "run", config).history) == 2
