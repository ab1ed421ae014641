"""A run that is killed, pre-empted, or meets a full disk or a damaged cache goes on as if nothing had been."""

import dataclasses
import re
import shlex
import shutil
import signal

import pytest
import torch

from wsi_dbps.core.errors import CacheError, OutputError, StoppedError, TrainingError
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.selection_record import read_selection_record, record_path
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import train
from wsi_dbps.training.stopping import told_to_stop

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")


@pytest.fixture
def longer(stepwise_config):
    """So long that a signal, sent when the first step is saved, comes before the end."""
    return dataclasses.replace(stepwise_config, training=dataclasses.replace(stepwise_config.training, epochs=16))


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_as_an_unbroken_one(
    cohort, caches, tmp_path, stepwise_config, trained, start, assert_same_run
) -> None:
    """SIGKILL comes as soon as another last.pt is there: while the next step is computed, or saved."""
    run = tmp_path / "killed"
    last = run / "last.pt"
    for _ in range(2):
        before = last.stat().st_mtime_ns if last.exists() else 0
        (process,) = start(run, stepwise_config)
        process.until(lambda before=before: last.exists() and last.stat().st_mtime_ns != before)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0)
    train(cohort, caches, run, stepwise_config, resume=True)
    assert_same_run(trained(stepwise_config).run, run)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
def test_sigterm_or_ctrl_c_ends_the_step_saves_and_names_the_command_that_goes_on(
    cohort, caches, tmp_path, longer, start, trained, wsi_dbps, assert_same_run, number, name, code
) -> None:
    run = tmp_path / "run"
    (process,) = start(run, longer)
    process.until((run / "last.pt").exists)
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
    assert found, said[-1]
    if number == signal.SIGINT:
        return  # from here on it is the same
    again = wsi_dbps(*shlex.split(found[1]))
    assert again.code == 0, again.err
    assert re.match(r"\S+/run: goes on from epoch \d+ of 16, (step \d of 3|validation)$", again.err.splitlines()[2])
    assert_same_run(trained(longer).run, run)


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


def test_a_run_that_is_told_to_stop_saves_after_the_running_step(
    cohort, caches, tmp_path, stepwise_config, trained, assert_same_run
) -> None:
    for step in (1, 2):
        with told_to_stop() as stopping:
            stopping.note(signal.SIGTERM)
            match = rf"ended by SIGTERM after step {step} of 3 of epoch 1; all is saved$"
            with pytest.raises(StoppedError, match=match) as error:
                train(cohort, caches, tmp_path / "run", stepwise_config, resume=step > 1)
        assert error.value.exit_code == 143
        assert load_checkpoint(tmp_path / "run" / "last.pt").loop_state["epoch"]["step"] == step
    train(cohort, caches, tmp_path / "run", stepwise_config, resume=True)
    assert_same_run(trained(stepwise_config).run, tmp_path / "run")


def test_a_run_that_ends_between_an_epoch_and_its_files_trains_that_epoch_again(
    cohort, caches, tmp_path, plain_run, assert_same_run
) -> None:
    def end(line: str) -> None:
        if line.startswith("epoch 2 of 2: "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cohort, caches, tmp_path / "run", plain_run.config, say=end)
    assert load_checkpoint(tmp_path / "run" / "last.pt").epoch == 1
    (tmp_path / "run" / "history.csv").unlink()  # as if killed between last.pt and it
    train(cohort, caches, tmp_path / "run", plain_run.config, resume=True)
    assert_same_run(plain_run.run, tmp_path / "run")


def test_a_disk_that_is_full_keeps_the_older_checkpoint(cohort, caches, tmp_path, plain_run, assert_same_run) -> None:
    part = tmp_path / "run" / "last.pt.wsi-dbps-part"

    def fill(line: str) -> None:
        if line.startswith("epoch 2 of 2: "):
            part.symlink_to("/dev/full")  # the real device whose every write fails

    with pytest.raises(OutputError, match=r"last.pt: cannot be written: No space left on device"):
        train(cohort, caches, tmp_path / "run", plain_run.config, say=fill)
    assert load_checkpoint(tmp_path / "run" / "last.pt").epoch == 1
    assert not part.is_symlink()
    train(cohort, caches, tmp_path / "run", plain_run.config, resume=True)
    assert_same_run(plain_run.run, tmp_path / "run")


def test_a_patch_damaged_in_the_middle_of_an_epoch_is_named_and_the_run_goes_on_when_it_is_mended(
    cohort, caches, tmp_path, make_config, trained, assert_same_run
) -> None:
    """The slide that is damaged is the one that the first epoch visits last, in its third step."""
    config = make_config(selection={"num_kept": 36}, training={"epochs": 1, "save_every_minutes": 0.0})
    whole = trained(config)
    last = read_selection_record(record_path(whole.run, 1))[-1].slide_id
    damaged = tmp_path / "caches"
    shutil.copytree(caches, damaged)
    jpeg = PatchCache(damaged / f"{last}.h5").jpegs([7])[0]
    content = (damaged / f"{last}.h5").read_bytes()
    (damaged / f"{last}.h5").write_bytes(content.replace(jpeg, bytes(len(jpeg))))
    with pytest.raises(CacheError, match=rf"{last}.h5: patch 7 is damaged") as error:
        train(cohort, damaged, tmp_path / "run", config)
    assert "\n" not in str(error.value)
    assert load_checkpoint(tmp_path / "run" / "last.pt").loop_state["epoch"]["step"] == 2
    train(cohort, caches, tmp_path / "run", config, resume=True)  # tiled again
    assert_same_run(whole.run, tmp_path / "run")


def test_weights_that_are_no_numbers_are_named(cohort, caches, tmp_path, make_config) -> None:
    pass


def test_weights_of_a_file_that_are_no_numbers_are_named(cohort, caches, tmp_path, make_config) -> None:
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


def test_where_it_runs_and_how_often_it_saves_may_change(cohort, caches, tmp_path, plain_run) -> None:
    run = plain_run.copy(tmp_path / "run")
    free = {"decode_threads": 2, "save_every_minutes": 1.0, "wait_minutes": 1.0}
    changed = dataclasses.replace(plain_run.config.training, **free)
    config = dataclasses.replace(plain_run.config, training=changed)
    assert train(cohort, caches, run, config, resume=True).history == plain_run.result.history
    assert load_checkpoint(run / "last.pt").epoch == 2
