"""No command replaces a file that it did not write, and one command at a time writes to a folder."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.core.errors import OutputError
from wsi_dbps.core.files import folder_written_whole, write_json, write_text, written_whole
from wsi_dbps.core.output_folder import output_folder
from wsi_dbps.core.ownership import RECORD, refuse_to_replace, writer_of
from wsi_dbps.formats.hdf5 import h5_written_whole

HOLD = """
import sys
from pathlib import Path
from wsi_dbps.core.output_folder import output_folder
with output_folder(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    sys.stdin.read()
"""
names = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/"), min_size=1, max_size=40
).filter(lambda name: name not in (".", "..", RECORD) and len(name.encode()) < 200)


text = st.text()
endings = st.sampled_from((".csv", ".json", ".toml", ".html", ".geojson"))


@settings(deadline=None, max_examples=50)
@given(name=names, ending=endings, text=text, newer=text, own=text)
def test_what_we_wrote_is_replaced_and_what_somebody_wrote_is_not(
    tmp_path_factory: pytest.TempPathFactory, name: str, ending: str, text: str, newer: str, own: str
) -> None:
    path = tmp_path_factory.mktemp("out") / f"{name}{ending}"
    for content in (text, newer, text):
        write_text(path, content)
    assert path.read_bytes() == text.encode()
    if own not in (text, newer):
        path.write_bytes(own.encode())
        with pytest.raises(OutputError, match="was changed after wsi-dbps wrote it"):
            write_text(path, text)
        assert path.read_bytes() == own.encode()


def test_a_damaged_binary_file_of_ours_may_be_replaced(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a.h5") as partial:
        partial.write_bytes(b"whole")
    (tmp_path / "a.h5").write_bytes(b"torn")
    with written_whole(tmp_path / "a.h5") as partial:
        partial.write_bytes(b"whole again")
    assert (tmp_path / "a.h5").read_bytes() == b"whole again"


def test_a_file_of_somebody_else_is_kept_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text("mine")
    with pytest.raises(OutputError) as caught:
        write_text(path, "ours")
    assert str(caught.value) == (
        f"{path}: exists and was not written by wsi-dbps, so it is not replaced; move it away, or give another name or "
        "folder with --out"
    )
    assert path.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["cohort.csv"]


def test_a_link_that_leads_nowhere_is_somebody_elses_file_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="was not written by wsi-dbps"):
        write_json(tmp_path / "a.json", {})


def test_a_file_that_a_kill_left_before_its_last_step_is_ours(tmp_path: Path) -> None:
    """The record is written before a file takes its name, so a file in place is always in it."""
    write_text(tmp_path / "a.csv", "1")
    os.unlink(tmp_path / "a.csv")
    write_text(tmp_path / "a.csv", "2")
    assert (tmp_path / "a.csv").read_text() == "2"


def test_a_folder_is_replaced_only_if_all_in_it_is_ours(tmp_path: Path) -> None:
    target = tmp_path / "S1"
    for text in ("1", "2"):
        with folder_written_whole(target) as folder:
            (folder / "a.png").write_text(text)
    assert (target / "a.png").read_text() == "2"
    (target / "notes.txt").write_text("mine")
    with (
        pytest.raises(OutputError, match=r"S1: holds notes\.txt, which was not written by wsi-dbps"),
        folder_written_whole(target),
    ):
        pass
    assert (target / "notes.txt").read_text() == "mine"
    os.unlink(target / "notes.txt")
    os.rename(target, tmp_path / "S2")
    (tmp_path / "S2" / "a.png").unlink()
    with pytest.raises(OutputError, match="S2: exists and was not written"), folder_written_whole(tmp_path / "S2"):
        pass


def test_files_of_version_0_1_which_kept_no_record_are_known_by_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"made_with": {"wsi_dbps": "0.1.0"}}')
    (tmp_path / "last.pt").write_text("weights")
    (tmp_path / "table.csv").write_text("mine")
    with h5py.File(tmp_path / "ours.h5", "w") as file:
        file.attrs["format"] = "wsi-dbps patch cache"
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["coords"] = [1, 2]
    for name in ("run.json", "last.pt", "ours.h5"):
        refuse_to_replace(tmp_path / name)
    for name in ("table.csv", "theirs.h5"):
        with pytest.raises(OutputError, match="was not written by wsi-dbps"):
            refuse_to_replace(tmp_path / name)


def test_what_a_file_of_0_1_told_is_recorded_when_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"made_with": {"wsi_dbps": "0.1.0"}}')
    for name in ("history.csv", "last.pt"):
        (tmp_path / name).write_text("of 0.1")
    write_json(tmp_path / "run.json", {"made_with": {"wsi_dbps": "0.2.0"}})
    for name in ("history.csv", "last.pt"):
        write_text(tmp_path / name, "of 0.2")
        assert (tmp_path / name).read_text() == "of 0.2"


def test_a_users_file_beside_files_of_ours_is_not_taken_for_one_of_0_1(tmp_path: Path) -> None:
    write_json(tmp_path / "predict.json", {"wsi_dbps_version": "0.2.0"})
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(OutputError, match="was not written by wsi-dbps"):
        write_text(tmp_path / "report.html", "ours")
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_record_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / RECORD).mkdir()
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(OutputError, match=rf"{RECORD}: is no file; wsi-dbps records in it what it wrote"):
        refuse_to_replace(tmp_path / "a.csv")


COUNT_OPENED_RECORDS = """
import sys
from pathlib import Path
from wsi_dbps.core.ownership import RECORD, refuse_to_replace
opened = []
sys.addaudithook(lambda event, about: opened.append(str(about[0])) if event == "open" else None)
refuse_to_replace(Path(sys.argv[1]))
print(sum(name.endswith(RECORD) for name in opened))
"""


def test_a_folder_of_very_many_files_is_checked_with_two_looks_at_records_and_not_one_for_each_file(
    tmp_path: Path,
) -> None:
    target = tmp_path / "S1"
    with folder_written_whole(target) as folder:
        for i in range(200):
            (folder / f"{i}.png").touch()
    counting = [sys.executable, "-c", COUNT_OPENED_RECORDS, str(target)]
    told = subprocess.run(counting, capture_output=True, text=True, check=True)
    assert told.stdout == "2\n"  # its own record and that of the folder it lies in


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    out = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        expected = rf"another command, `wsi-dbps train` \(process {other.pid} on .*\), is writing here now; wait until"
        with pytest.raises(OutputError, match=expected), output_folder(out, "predict"):
            pass
    finally:
        other.kill()
        other.communicate()
    with output_folder(out, "predict"):
        pass


def test_a_function_that_holds_a_folder_may_call_another_that_does_but_a_thread_beside_it_may_not(
    tmp_path: Path,
) -> None:
    refused: list[str] = []

    def beside() -> None:
        try:
            with output_folder(tmp_path, "evaluate"):
                pass
        except OutputError as error:
            refused.append(str(error))

    with output_folder(tmp_path, "train"), output_folder(tmp_path / ".", "predict"):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert re.search("`wsi-dbps train`", refused[0])


def test_a_command_that_writes_nothing_leaves_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", tmp_path):
        with pytest.raises(ZeroDivisionError), output_folder(folder, "train"):
            raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with output_folder(tmp_path / "new", "train"):
        write_text(tmp_path / "new" / "a.csv", "1")
    assert sorted(os.listdir(tmp_path / "new")) == [RECORD, "a.csv"]


def test_somebody_elses_file_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_text("mine")
    begun = []
    with (
        pytest.raises(OutputError, match=r"best\.pt: exists and was not"),
        output_folder(tmp_path, "train", ("best.pt",)),
    ):
        begun.append(1)
    assert not begun
    assert os.listdir(tmp_path) == ["best.pt"]


def test_what_another_command_wrote_is_kept_by_name(tmp_path: Path) -> None:
    """`split` writes proj/cohort.csv, and `train` into proj would put its own there, without the test slides."""
    with output_folder(tmp_path, "split", ("cohort.csv",)):
        write_text(tmp_path / "cohort.csv", "all slides")
    with (
        pytest.raises(OutputError, match=r"cohort\.csv: was written by `wsi-dbps split`, so `train` does not replace"),
        output_folder(tmp_path, "train", ("cohort.csv",)),
    ):
        pass
    for _ in range(2):
        with output_folder(tmp_path, "split", ("cohort.csv",)):
            write_text(tmp_path / "cohort.csv", "all slides, dealt again")
    (tmp_path / "cohort.csv").unlink()
    with output_folder(tmp_path, "train", ("cohort.csv",)):
        write_text(tmp_path / "cohort.csv", "slides of train and val")
    assert writer_of(tmp_path / "cohort.csv") == "train"


def test_an_hdf5_file_of_ours_is_never_replaced_by_one_of_another_kind(tmp_path: Path) -> None:
    def write(kind: str) -> None:
        with h5_written_whole(tmp_path / "S1.h5") as file:
            file.attrs["format"] = kind

    for _ in range(2):
        write("wsi-dbps features")
    with pytest.raises(OutputError, match=r"S1\.h5: holds features, which something else would replace"):
        write("wsi-dbps patch cache")
    write("wsi-dbps features")
    assert sorted(os.listdir(tmp_path)) == [RECORD, "S1.h5"]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_record_that_is_no_file_is_one_line_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    (os.mkdir if kind == "folder" else os.mkfifo)(tmp_path / RECORD)
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(OutputError, match=rf"{RECORD}: is no file; .* move it away"):
        write_text(tmp_path / "a.csv", "ours")
    with pytest.raises(OutputError, match=rf"{RECORD}: is no file"), output_folder(tmp_path, "train"):
        pass


def test_a_line_that_a_full_disk_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    """The next file would be unknown, and refused for ever."""
    write_text(tmp_path / "a.csv", "1")
    with open(tmp_path / RECORD, "a", encoding="utf-8") as record:
        record.write("0123456789ab")
    for text in ("2", "3"):
        write_text(tmp_path / "b.csv", text)
    assert (tmp_path / "b.csv").read_text() == "3"


def test_a_full_disk_is_told_before_a_file_that_is_not_recorded_takes_its_name(small_disks) -> None:
    (disk,) = small_disks([8192])
    (disk / RECORD).write_text("#" * 4090 + "\n")  # one page, but for five bytes
    (disk / "other").write_bytes(bytes(4096))
    with pytest.raises(OutputError, match="No space left"), written_whole(disk / "S1.tar") as partial:
        partial.touch()
    assert sorted(os.listdir(disk)) == [RECORD, "other"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.json", '{\n  "format": "wsi-dbps metrics"\n}'),
        ("tiling.csv", "slide_id,status,reason,reader,pixels,level,mpp,patches,dropped,bytes,seconds\n"),
        ("contact-sheet.html", '<!doctype html><html lang="en"><meta charset="utf-8"><title>Contact sheet</title>'),
        ("report.html", "<!doctype html>\n<title>pred</title>\n<style>\n:root { --accent: #1f5fa8; }"),
    ],
)
def test_tables_and_reports_of_version_0_1_are_known_by_how_they_begin(tmp_path: Path, name: str, text: str) -> None:
    """Who tiles or evaluates again with this version into a folder of 0.1 need move nothing away."""
    (tmp_path / name).write_text(text)
    refuse_to_replace(tmp_path / name)


@pytest.mark.parametrize(("beside", "name"), [("predict.json", "report.html"), ("run.json", "cohort.csv")])
def test_a_users_file_beside_ours_is_not_taken_for_ours(tmp_path: Path, beside: str, name: str) -> None:
    write_json(tmp_path / beside, {"made_with": {"wsi_dbps": "0.2.0"}})
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="was not written by wsi-dbps"):
        write_text(tmp_path / name, "ours")
