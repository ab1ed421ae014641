import json

import pytest

from wsi_dbps.core.digests import file_digest
from wsi_dbps.core.errors import CheckpointError
from wsi_dbps.report.runs import Leak, RunRecord, find_leaks, read_run, runs_behind


@pytest.fixture
def make_run(tmp_path):
    """A run folder as far as a report reads it."""

    def make(name="run", rows=((1, 0.5, 0.6), (2, 0.9, 0.5), (3, 0.9, 0.4), (4, 0.8, 0.1)), monitor="auroc"):
        run = tmp_path / name
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"settings": {"training": {"monitor": monitor}}}))
        (run / "best.pt").write_text(f"weights of {name}")
        (run / "cohort.csv").write_text("slide_id,case_id,label,split\na,A,x,train\nb,B,y,val\nc,C,y,\n")
        lines = [f"{epoch},1.0,{loss},{'' if auroc is None else auroc}" for epoch, auroc, loss in rows]
        (run / "history.csv").write_text("\n".join(["epoch,train_loss,val_loss,val_auroc", *lines]) + "\n")
        return run

    return make


def predicted_with(folder, *runs):
    folder.mkdir()
    members = [
        {"checkpoint": str(run / "best.pt"), "checkpoint_fingerprint": file_digest(run / "best.pt")} for run in runs
    ]
    (folder / "predict.json").write_text(json.dumps({"members": members}))
    return folder


def test_a_run_is_read_with_its_cohort_and_the_epoch_that_was_chosen(make_run):
    (run,) = read_run(make_run())
    assert (run.name, len(run.cohort), len(run.history), run.chosen) == ("run", 3, 4, 3)
    assert read_run(make_run("by-loss", monitor="loss"))[0].chosen == 4
    assert read_run(make_run("no-auroc", rows=((1, None, 0.2), (2, None, 0.1)), monitor="loss"))[0].chosen == 2


def test_a_folder_of_folds_is_all_its_runs(make_run, tmp_path):
    for fold in (0, 1):
        make_run(f"cv/fold{fold}")
    assert [run.name for run in read_run(tmp_path / "cv")] == ["cv/fold0", "cv/fold1"]


def test_what_is_no_run_or_no_history_is_refused_in_one_line(make_run, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no run \(no run.json\); give the folder"):
        read_run(tmp_path)
    run = make_run()
    (run / "history.csv").write_text("epoch,train_loss\n1,high\n")
    with pytest.raises(CheckpointError, match=r"history.csv: not a history of training: KeyError\('val_auroc'\); see"):
        read_run(run)


def test_the_run_that_predict_json_names_is_taken_while_it_is_the_same(make_run, tmp_path):
    run = make_run()
    pred = predicted_with(tmp_path / "pred", run)
    runs, why = runs_behind(pred, {"Z"})
    assert ([r.name for r in runs], runs[0].case_ids, why) == (["run"], {"Z"}, None)
    (run / "best.pt").write_text("trained anew")
    assert runs_behind(pred, {"Z"}) == ((), f"the run at {run} has been trained anew since")
    run.rename(tmp_path / "moved")
    assert runs_behind(pred, {"Z"}) == ((), f"the run is no longer at {run}; give it with --run")
    assert runs_behind(tmp_path, {"Z"}) == ((), f"no predict.json in {tmp_path} names the run; give it with --run")


def test_of_an_ensemble_all_members_count_and_those_that_are_gone_are_named(make_run, tmp_path):
    runs = [make_run(name) for name in ("one", "two")]
    pred = predicted_with(tmp_path / "pred", *runs)
    assert [run.name for run in runs_behind(pred, {"Z"})[0]] == ["one", "two"]
    runs[0].rename(tmp_path / "moved")
    found, why = runs_behind(pred, {"Z"})
    assert [(run.name, run.cohort is None) for run in found] == [("one", True), ("two", False)]
    assert why == f"the run is no longer at {runs[0]}; give it with --run"
    found, why = runs_behind(pred, {"Z"}, [runs[1]])
    assert [(run.name, run.cohort is None) for run in found] == [("two", False), ("the others", True)]
    assert why == f"1 of 2 runs behind {pred} not given"
    assert [run.name for run in runs_behind(pred, {"Z"}, [tmp_path / "moved", runs[1]])[0]] == ["moved", "two"]


def test_of_given_runs_those_are_taken_that_made_the_predictions(make_run, tmp_path):
    runs = [make_run(f"cv/fold{fold}") for fold in (0, 1)]
    pred = predicted_with(tmp_path / "pred", runs[1])
    assert [run.name for run in runs_behind(pred, {"Z"}, [tmp_path / "cv"])[0]] == ["cv/fold1"]
    with pytest.raises(CheckpointError, match=r"fold0: its best.pt is not what .*pred was predicted with \(\w{16}\)"):
        runs_behind(pred, {"Z"}, [runs[0]])


def test_a_leak_is_found_by_case_and_by_slide_among_the_cases_of_that_run_alone(make_run, scored):
    predictions = scored(("tumor", 0.9), ("normal", 0.6), ("normal", 0.1))  # slides s0 s1 s2 of cases c0 c1 c2
    run = make_run()
    (run / "cohort.csv").write_text("slide_id,case_id,label,split\nq,c0,x,train\ns1,other,y,val\ns2,c2,y,test\n")
    (seen,) = read_run(run)
    assert find_leaks(predictions, [seen]) == (Leak("c0", "train", "run"), Leak("c1", "val", "run"))
    assert find_leaks(predictions, read_run(run, {"c1", "c2"})) == (Leak("c1", "val", "run"),)
    assert find_leaks(predictions, [RunRecord("bare", None)]) == ()
