"""`--resume` knows the settings of its run, says where it goes on, and takes more epochs; damage is one line."""

import json
import re
import tomllib

import pytest
import torch

from wsi_dbps.core.errors import CheckpointError, ConfigError
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import train
from wsi_dbps.training.optimizer import lr_share
from wsi_dbps.training.run_folder import settings_to_go_on

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")


@pytest.fixture
def run(plain_run, tmp_path):
    """A finished run of two epochs of three steps."""
    return plain_run.copy(tmp_path / "run")


def test_what_is_not_given_anew_is_as_it_was(run, make_config) -> None:
    assert settings_to_go_on(run, {}, "train") == make_config()
    assert settings_to_go_on(run, {"encoder": {"dim": 16}, "optimizer": {"lr": 0.001}}, "--set") == make_config()
    changed = settings_to_go_on(run, {"training": {"device": "cuda:1", "epochs": 5}}, "--set")
    assert (changed.training.device, changed.training.epochs, changed.encoder.dim) == ("cuda:1", 5, 16)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"optimizer": {"lr": 0.002}}, CheckpointError, r"\(optimizer.lr was 0.001, now 0.002\); leave them out, or"),
        ({"training": {"epochs": 1}}, CheckpointError, r"\(training.epochs was 2, now 1, and may only grow\)"),
        ({"selection": {"preset": "ips"}}, CheckpointError, "selection.preset was 'dbps', now 'ips'"),
        ({"optimizer": {"rate": 1}}, ConfigError, r"run.json with --set: unknown setting \[optimizer\] rate"),
        ({"encoder": 3}, ConfigError, "run.json with --set: encoder: "),
    ],
)
def test_what_is_given_anew_and_may_not_differ_is_named(run, given, error, message) -> None:
    with pytest.raises(error, match=message) as found:
        settings_to_go_on(run, given, "--set")
    assert "\n" not in str(found.value)


def test_the_command_needs_no_setting_again_and_says_where_it_goes_on(small_cohort, run, wsi_dbps) -> None:
    manifest, caches = small_cohort
    command = ("train", manifest, "--caches", caches, "--out", run, "--resume")
    code, out, err = wsi_dbps(*command)
    assert (code, f"{run}: all 2 epochs are done (for more: --set training.epochs=4)" in err) == (0, True)
    assert out.startswith("best epoch ")
    code, out, err = wsi_dbps(*command, "--set", "training.epochs=4", "--device", "cpu")
    assert (code, out.startswith("best epoch "), " of 4: " in out) == (0, True, True)
    lines = err.splitlines()
    assert f"{run}: goes on from epoch 3 of 4, step 1 of 3" in lines
    assert re.search(r"training.epochs was 2, is 4: .* schedule of 4 epochs, which is at \d+% of the peak here", err)
    (run / "last.pt").unlink()
    code, _, err = wsi_dbps(*command)
    assert (code, f"{run}: has no last.pt yet; goes on from the first epoch" in err) == (0, True)


def test_each_epoch_is_one_line(trained, make_config) -> None:
    finished = trained(make_config(training={"epochs": 3}))
    lines = [line for line in finished.said if line.startswith("epoch ")]
    assert len(lines) == 3
    best = 0.0, float("-inf")
    for line, row in zip(lines, finished.result.history, strict=True):
        goodness = row["val_auroc"], -row["val_loss"]
        said = (
            f"epoch {row['epoch']} of 3: train loss {row['train_loss']:.3f}, val loss {row['val_loss']:.3f}, "
            f"val AUROC {row['val_auroc']:.3f}, {row['seconds']:.0f} s"
        )
        assert line == said + ", the best so far" * (goodness > best)
        best = max(best, goodness)


def test_the_device_is_an_option(small_cohort, tmp_path, wsi_dbps) -> None:
    manifest, caches = small_cohort
    command = ("train", manifest, "--caches", caches, "--out", tmp_path / "run", "--set", "encoder.name=small_gn")
    code, _, err = wsi_dbps(*command, "--device", "cuda:77")
    assert (code, "device 'cuda:77' cannot be used here: " in err) == (2, True)


def test_more_epochs_follow_the_schedule_of_the_larger_number(cohort, caches, run, make_config) -> None:
    """By hand: 12 train slides in batches of 4 are 3 steps an epoch; an epoch's row has the rate of its last step."""
    before = train(cohort, caches, run, make_config(), resume=True).history
    more = make_config(training={"epochs": 5})
    history = train(cohort, caches, run, more, resume=True).history
    assert history[:2] == before
    expected = [1e-3 * lr_share(step, 15, more.optimizer.warmup) for step in (8, 11, 14)]
    assert [row["lr"] for row in history[2:]] == pytest.approx(expected)
    assert tomllib.loads((run / "run.toml").read_text())["training"]["epochs"] == 5
    assert settings_to_go_on(run, {}, "train") == more  # the next --resume knows
    assert load_checkpoint(run / "last.pt").config == more


def test_a_damaged_or_foreign_last_pt_says_what_to_do(cohort, caches, run, make_config) -> None:
    whole = (run / "last.pt").read_bytes()
    content = torch.load(run / "last.pt", weights_only=True)
    damaged = [
        whole[: len(whole) // 2],
        b"",
        (run / "best.pt").read_bytes(),
        *(content | {"loop": content["loop"] | {key: 3}} for key in ("optimizer", "epoch", "visits", "history")),
        content | {"model": {}},
        content | {"loop": None},
    ]
    for wrong in damaged:
        if isinstance(wrong, bytes):
            (run / "last.pt").write_bytes(wrong)
        else:
            torch.save(wrong, run / "last.pt")
        with pytest.raises(CheckpointError, match=r"last.pt: .*; put back an intact copy, or delete it, and") as found:
            train(cohort, caches, run, make_config(training={"epochs": 3}), resume=True)
        assert "\n" not in str(found.value)
    (run / "last.pt").unlink()
    assert len(train(cohort, caches, run, make_config(training={"epochs": 3}), resume=True).history) == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"settings": 3}', '{"settings": {"encoder": 3}}', "\udcff"]
)
def test_a_damaged_run_json_says_what_to_do(cohort, caches, run, make_config, text) -> None:
    (run / "run.json").write_text(text, errors="surrogateescape")
    for go_on in (
        lambda: train(cohort, caches, run, make_config(), resume=True),
        lambda: settings_to_go_on(run, {}, "train"),
    ):
        with pytest.raises(CheckpointError, match=r"run.json: is damaged \(.*\); put back an intact copy, or") as found:
            go_on()
        assert "\n" not in str(found.value)


def test_settings_in_run_json_that_are_none_are_named(run) -> None:
    begun = json.loads((run / "run.json").read_text())
    begun["settings"]["optimizer"]["lr"] = "fast"
    (run / "run.json").write_text(json.dumps(begun))
    with pytest.raises(ConfigError, match=r"run.json.*\[optimizer\] lr: "):
        settings_to_go_on(run, {}, "train")
