"""A run that is killed, pre-empted, or meets a damaged cache goes on as if nothing had been."""

import random
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from wsi_dbps.core.errors import CacheError, OutputError, StoppedError
from wsi_dbps.training import loop as loop_module
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import train
from wsi_dbps.training.stopping import told_to_stop

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")

EVERY = {"epochs": 3, "batch_slides": 2, "accumulate": 2, "save_every_minutes": 0.0, "ema": 0.9}


@pytest.mark.parametrize("step", range(1, 7))
def test_a_run_that_ends_after_any_step_goes_on_bit_for_bit(
    cohort, caches, tmp_path, make_config, monkeypatch, assert_same_run, step
) -> None:
    """12 slides in batches of 2, two batches a step: three steps an epoch."""
    config = make_config(training=EVERY | {"epochs": 2}, selection={"exploration": 0.5})
    train(cohort, caches, tmp_path / "unbroken", config)
    whole, calls = loop_module.save_checkpoint, iter(range(1, 100))

    def die(path: Path, *arguments: object, **settings: object) -> None:
        whole(path, *arguments, **settings)  # type: ignore[arg-type]
        if path.name == "last.pt" and next(calls) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "save_checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        train(cohort, caches, tmp_path / "broken", config)
    monkeypatch.setattr(loop_module, "save_checkpoint", whole)
    state = load_checkpoint(tmp_path / "broken" / "last.pt").loop_state["epoch"]
    assert state["step"] == (1, 2, 3, 0, 1, 2)[step - 1]  # the fourth is that of the epoch's end
    train(cohort, caches, tmp_path / "broken", config, resume=True)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(
    cohort, caches, tmp_path, make_config, start, assert_same_run
) -> None:
    config = make_config(training=EVERY, selection={"exploration": 0.5})
    (whole,) = start(tmp_path / "unbroken", config)
    assert whole.wait() == 0, whole.said()
    chance, run = random.Random(0), tmp_path / "killed"
    last = run / "last.pt"
    for _ in range(4):
        before = last.stat().st_mtime_ns if last.exists() else 0
        (process,) = start(run, config)
        process.until(lambda before=before: last.exists() and last.stat().st_mtime_ns != before)
        time.sleep(chance.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0)
    (process,) = start(run, config)
    assert process.wait() == 0, process.said()
    assert_same_run(tmp_path / "unbroken", run)


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
def test_sigterm_or_ctrl_c_ends_the_step_saves_and_names_the_command_that_goes_on(
    cohort, caches, tmp_path, make_config, start, run_together, assert_same_run, number, name, code
) -> None:
    config = make_config(training=EVERY | {"epochs": 16})
    (process,) = start(tmp_path / "run", config)
    process.until((tmp_path / "run" / "last.pt").exists)
    process.send_signal(number)
    assert process.wait() == code, process.said()
    said = process.said().splitlines()
    assert said[0].startswith("classes: ")
    assert ("wsi-dbps: the running step is finished and saved; Ctrl-C again ends at once" in said) == (code == 130)
    found = re.fullmatch(
        rf"wsi-dbps: \S+/run: ended by {name} (?:after step \d of 3|in the validation) of epoch \d+; all is saved; "
        r"go on with: wsi-dbps (train .* --resume)",
        said[-1],
    )
    assert found
    (again,) = run_together([sys.executable, "-m", "wsi_dbps_cli.main", *shlex.split(found[1])], 1)
    assert again.wait() == 0, again.said()
    assert re.match(r"\S+/run: goes on from epoch \d+ of 16, (step \d of 3|validation)$", again.said().splitlines()[2])
    train(cohort, caches, tmp_path / "unbroken", config)
    assert_same_run(tmp_path / "unbroken", tmp_path / "run")


def test_a_second_ctrl_c_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with told_to_stop() as stopping:
        signal.raise_signal(signal.SIGINT)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_one_of_several_processes_takes_a_second_ctrl_c_for_the_first(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with told_to_stop() as stopping:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stopping()


def test_sigterm_in_validation_does_not_wait_for_its_end(
    cohort, caches, tmp_path, make_config, monkeypatch, assert_same_run
) -> None:
    config = make_config(training={"epochs": 2})
    train(cohort, caches, tmp_path / "unbroken", config)
    whole = loop_module.validate

    def told(*arguments: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module, "validate", told)
    with pytest.raises(StoppedError, match=r"ended by SIGTERM in the validation of epoch 1; all is saved$"):
        train(cohort, caches, tmp_path / "run", config)
    monkeypatch.setattr(loop_module, "validate", whole)
    assert not (tmp_path / "run" / "best.pt").exists()
    train(cohort, caches, tmp_path / "run", config, resume=True)
    assert_same_run(tmp_path / "unbroken", tmp_path / "run")


def test_a_disk_that_fills_in_the_middle_of_an_epoch_keeps_the_older_checkpoint(
    cohort, caches, tmp_path, make_config, monkeypatch, assert_same_run
) -> None:
    config = make_config(training=EVERY)
    train(cohort, caches, tmp_path / "unbroken", config)
    whole, calls = loop_module.save_checkpoint, iter(range(1, 100))

    def full(path: Path, *arguments: object, **settings: object) -> None:
        if path.name == "last.pt" and next(calls) == 2:
            path.with_name("last.pt.wsi-dbps-part").symlink_to("/dev/full")  # the real device whose every write fails
        whole(path, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module, "save_checkpoint", full)
    with pytest.raises(OutputError, match=r"last.pt: cannot be written: No space left on device"):
        train(cohort, caches, tmp_path / "run", config)
    monkeypatch.setattr(loop_module, "save_checkpoint", whole)
    assert load_checkpoint(tmp_path / "run" / "last.pt").loop_state["epoch"]["step"] == 1
    train(cohort, caches, tmp_path / "run", config, resume=True)
    assert_same_run(tmp_path / "unbroken", tmp_path / "run")


def test_a_cache_damaged_in_the_middle_of_an_epoch_is_named_and_the_run_goes_on_when_it_is_mended(
    cohort, caches, tmp_path, make_config, monkeypatch, assert_same_run
) -> None:
    config = make_config(training=EVERY)
    train(cohort, caches, tmp_path / "unbroken", config)
    shutil.copytree(caches, tmp_path / "caches")
    whole, calls = loop_module.save_checkpoint, iter(range(1, 100))

    def damage(path: Path, *arguments: object, **settings: object) -> None:
        whole(path, *arguments, **settings)  # type: ignore[arg-type]
        if path.name == "last.pt" and next(calls) == 2:
            for victim in (tmp_path / "caches").iterdir():
                content = victim.read_bytes()
                victim.write_bytes(content[: len(content) // 2])

    monkeypatch.setattr(loop_module, "save_checkpoint", damage)
    with pytest.raises(CacheError, match=r"slide_\d\d.h5: ") as error:
        train(cohort, tmp_path / "caches", tmp_path / "run", config)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(loop_module, "save_checkpoint", whole)
    assert load_checkpoint(tmp_path / "run" / "last.pt").loop_state["epoch"]["step"] == 2
    train(cohort, caches, tmp_path / "run", config, resume=True)  # tiled again
    assert_same_run(tmp_path / "unbroken", tmp_path / "run")


def test_weights_that_are_no_numbers_are_named(cohort, caches, tmp_path, make_config) -> None:
    from wsi_dbps.core.errors import TrainingError
    from wsi_dbps.models.encoders.small import SmallEncoder

    state = SmallEncoder().state_dict()
    name = next(iter(state))
    state[name][0] = float("nan")
    torch.save(state, tmp_path / "weights.pt")
    config = make_config(encoder={"name": "small_gn", "dim": 16, "weights": str(tmp_path / "weights.pt")})
    with pytest.raises(
        TrainingError, match=rf"epoch 1: weights encoder.backbone.{name} are not finite before the step"
    ):
        train(cohort, caches, tmp_path / "run", config)


def test_where_it_runs_and_how_often_it_saves_may_change(cohort, caches, tmp_path, make_config) -> None:
    train(cohort, caches, tmp_path / "run", make_config(training={"epochs": 1}))
    free = {"epochs": 1, "decode_threads": 2, "save_every_minutes": 1.0, "wait_minutes": 1.0}
    train(cohort, caches, tmp_path / "run", make_config(training=free), resume=True)
