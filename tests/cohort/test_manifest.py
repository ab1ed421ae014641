"""Manifests that can be used: what they say, and that they round-trip."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.cohort.cohort import Cohort, SlideRecord
from wsi_dbps.cohort.csv_table import OURS
from wsi_dbps.cohort.manifest import parse_columns, read_manifest, write_manifest
from wsi_dbps.cohort.names import same_file_key, why_unsafe
from wsi_dbps.core.errors import ConfigError

any_text = st.text(st.characters(codec="utf-8"), max_size=12)
hard_text = any_text | st.text("ab ,\"'\r\n;\t=äß🔬\ufeff\0", max_size=12)
"""As written in a column that we only keep: commas, quotes, newlines, anything."""
stripped = hard_text.map(lambda text: text.strip() or "x")
words = stripped.map(lambda text: "".join(c for c in text if unicodedata.category(c) != "Cc").strip() or "x").filter(
    lambda text: text.lower() not in ("nan", "na", "n/a", "null")
)
slide_ids = stripped.map(lambda text: "".join(char for char in text if not why_unsafe(f"x{char}x")) + "x").filter(
    lambda text: text == text.strip() and not why_unsafe(text)
)
column_names = stripped.filter(lambda text: text not in OURS)


@st.composite
def cohorts(draw: st.DrawFn, folder: Path) -> Cohort:
    """Cohorts whose slides lie in and beside `folder`."""
    columns = draw(st.lists(column_names, max_size=3, unique=True))
    folders = st.sampled_from([folder, folder / "slides", folder.parent, Path("/elsewhere")])
    split_of: dict[str, str | None] = {}
    records = []
    for slide_id in draw(st.lists(slide_ids, min_size=1, max_size=6, unique_by=same_file_key)):
        case_id = draw(words)
        record = SlideRecord(
            slide_id=slide_id,
            case_id=case_id,
            path=draw(st.none() | st.builds(Path.joinpath, folders, slide_ids)),
            label=draw(st.none() | words),
            split=split_of.setdefault(case_id, draw(st.sampled_from([None, "train", "val", "test"]))),
            mpp_um=draw(st.none() | st.floats(0.01, 1000)),
            mask=draw(st.none() | st.builds(Path.joinpath, folders, slide_ids)),
            annotations=draw(st.none() | st.builds(Path.joinpath, folders, slide_ids)),
            extra={name: draw(hard_text) for name in columns},
        )
        records.append(record)
    return Cohort.of(records)


def written(folder: Path, text: str, name: str = "cohort.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_cohort_survives_writing_and_reading(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cohort.csv"
        cohort = data.draw(cohorts(Path(folder)))
        write_manifest(path, cohort)
        assert read_manifest(path) == cohort


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_cohort_written_elsewhere_still_names_the_same_files(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        cohort = data.draw(cohorts(Path(folder)))
        for path in (Path(folder) / "first.csv", Path(folder) / "slides/second.csv", Path(folder) / "a/b/third.csv"):
            write_manifest(path, cohort)
            cohort, before = read_manifest(path), cohort
            assert cohort == before


def test_every_column_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "slide_id,path,case_id,label,split,mpp,mask,annotations,fold,site\n"
        "s1,slides/a.svs,p1,tumour,train,0.25,masks/a.png,drawn/a.xml,0,Ulm\n"
        "s2,/data/b.svs,p2,,,,,,, Köln \n",
    )
    cohort = read_manifest(path)
    assert cohort.classes == ("tumour",)
    assert cohort.records == (
        SlideRecord(
            slide_id="s1",
            case_id="p1",
            path=tmp_path / "slides/a.svs",
            label="tumour",
            split="train",
            mpp_um=0.25,
            mask=tmp_path / "masks/a.png",
            annotations=tmp_path / "drawn/a.xml",
            extra={"fold": "0", "site": "Ulm"},
        ),
        SlideRecord("s2", "p2", path=Path("/data/b.svs"), extra={"fold": "", "site": " Köln "}),
    )


def test_only_an_id_is_required_and_a_slide_is_then_its_own_case(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, "slide_id\na\n")).records == (SlideRecord("a", "a"),)


def test_without_ids_the_file_names_are_the_ids(tmp_path: Path) -> None:
    cohort = read_manifest(written(tmp_path, "path\na/b.svs\nc.ome.tiff\ns3://bucket/d.svs?versionId=1\n"))
    assert [record.slide_id for record in cohort.records] == ["b", "c", "d"]


def test_a_path_may_be_a_url_which_is_kept_and_not_looked_up(tmp_path: Path) -> None:
    cohort = read_manifest(written(tmp_path, "slide_id,path\na,s3://bucket//a.svs\n"), need_path=True)
    assert (cohort.records[0].path, cohort.records[0].url) == (None, "s3://bucket//a.svs")
    write_manifest(tmp_path / "again.csv", cohort)
    assert read_manifest(tmp_path / "again.csv") == cohort


@pytest.mark.parametrize(
    "text", ["\ufeffslide_id\na\n", "slide_id\r\na\r\n", "slide_id\ra\r", "\n\nslide_id\n\na", "slide_id\na\n \n"]
)
def test_a_byte_order_mark_any_line_ends_and_blank_lines_are_fine(tmp_path: Path, text: str) -> None:
    assert read_manifest(written(tmp_path, text)).records == (SlideRecord("a", "a"),)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from(";\t"))
def test_semicolons_and_tabs_separate_as_well_as_commas(data: st.DataObject, separator: str) -> None:
    with TemporaryDirectory() as folder:
        cohort = data.draw(cohorts(Path(folder)))
        write_manifest(Path(folder) / "commas.csv", cohort)
        with open(Path(folder) / "commas.csv", newline="", encoding="utf-8") as file:
            cells = list(csv.reader(file))
        with open(Path(folder) / "other.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(cells)
        assert read_manifest(Path(folder) / "other.csv") == cohort


def test_a_separator_is_told_by_known_names_and_not_by_how_often_it_stands(tmp_path: Path) -> None:
    (record,) = read_manifest(written(tmp_path, "slide_id,a;b;c;d\ns,1;2;3;4\n")).records
    assert record.extra == {"a;b;c;d": "1;2;3;4"}
    (record,) = read_manifest(written(tmp_path, "PATIENT;FILE\np;s,1\n"), columns={"slide_id": "FILE"}).records
    assert record.slide_id == "s,1"


def test_blanks_around_cells_and_names_are_dropped(tmp_path: Path) -> None:
    cohort = read_manifest(written(tmp_path, "slide_id, label ,split\n a , b, train \n"))
    assert cohort.records == (SlideRecord("a", "a", label="b", split="train"),)


def test_paths_are_relative_to_the_manifest_and_not_to_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.svs").touch()
    written(tmp_path, "path\na.svs\n", "data/cohort.csv")
    monkeypatch.chdir(tmp_path)
    assert read_manifest(Path("data/cohort.csv"), need_path=True).records[0].path == tmp_path / "data/a.svs"


def test_a_folder_may_move_with_its_manifest_and_slides(tmp_path: Path) -> None:
    (tmp_path / "old/slides").mkdir(parents=True)
    (tmp_path / "old/slides/a.svs").touch()
    path = written(tmp_path, "path\nslides/a.svs\n", "old/cohort.csv")
    write_manifest(tmp_path / "old/split.csv", read_manifest(path))
    (tmp_path / "old").rename(tmp_path / "new")
    assert len(read_manifest(tmp_path / "new/split.csv", need_path=True)) == 1


def test_a_path_that_climbs_out_of_the_folder_is_written_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, "slide_id,path\na,../slides/a.svs\n")
    write_manifest(tmp_path / "again.csv", read_manifest(path))
    assert (tmp_path / "again.csv").read_text() == "slide_id,path,case_id\na,../slides/a.svs,a\n"


def test_a_renamed_column_is_kept_and_the_written_table_needs_no_rename(tmp_path: Path) -> None:
    path = written(tmp_path, "slide_id,label,KRAS\na,x,mut\nb,y,wt\n")
    cohort = read_manifest(path, columns={"label": "KRAS"})
    assert cohort.classes == ("mut", "wt")
    assert cohort.records[0].extra == {"KRAS": "mut", "original_label": "x"}
    write_manifest(tmp_path / "again.csv", cohort)
    assert read_manifest(tmp_path / "again.csv") == cohort
    assert read_manifest(tmp_path / "again.csv", columns={"label": "KRAS"}) == cohort


def test_a_renamed_fold_is_a_fold(tmp_path: Path) -> None:
    path = written(tmp_path, "slide_id,cv\na,0\nb,1\nc,2\n")
    cohort = read_manifest(path, columns={"fold": "cv"})
    assert cohort.folds() == {"a": 0, "b": 1, "c": 2}
    write_manifest(tmp_path / "again.csv", cohort)
    assert read_manifest(tmp_path / "again.csv").with_fold(0).part("test").records[0].slide_id == "a"


def test_labels_are_needed_only_to_learn_from(tmp_path: Path) -> None:
    text = "slide_id,label,split\na,x,train\nb,,test\nc,,\n"
    assert len(read_manifest(written(tmp_path, text), need_label=True)) == 3


PEERS = [
    ("CLAM", "case_id,slide_id,label\np1,s1,tumor\n", {}, SlideRecord("s1", "p1", label="tumor")),
    (
        "STAMP slide table",
        "PATIENT,FILENAME\np1,s1.h5\n",
        {"slide_id": "FILENAME", "case_id": "PATIENT"},
        SlideRecord("s1.h5", "p1", extra={"PATIENT": "p1", "FILENAME": "s1.h5"}),
    ),
    (
        "TRIDENT",
        "wsi,mpp\na/s1.svs,0.25\n",
        {"path": "wsi"},
        SlideRecord("s1", "s1", path=Path("a/s1.svs"), mpp_um=0.25, extra={"wsi": "a/s1.svs"}),
    ),
    (
        "hs2p",
        "sample_id,image_path,mask_path,spacing_at_level_0\ns1,a/s1.tif,m/s1.tif,0.5\n",
        {"slide_id": "sample_id", "path": "image_path", "mask": "mask_path", "mpp": "spacing_at_level_0"},
        SlideRecord("s1", "s1", path=Path("a/s1.tif"), mask=Path("m/s1.tif"), mpp_um=0.5),
    ),
    (
        "Slideflow",
        "patient,slide,HPV\np1,s1,positive\n",
        {"slide_id": "slide", "case_id": "patient", "label": "HPV"},
        SlideRecord("s1", "p1", label="positive"),
    ),
]


@pytest.mark.parametrize(("text", "columns", "record"), [peer[1:] for peer in PEERS], ids=[peer[0] for peer in PEERS])
def test_a_peers_table_loads(tmp_path: Path, text: str, columns: dict[str, str], record: SlideRecord) -> None:
    (read,) = read_manifest(written(tmp_path, text), columns=columns).records
    assert (read.slide_id, read.case_id, read.label, read.mpp_um) == (
        record.slide_id,
        record.case_id,
        record.label,
        record.mpp_um,
    )
    assert read.path == (tmp_path / record.path if record.path else None)
    assert read.mask == (tmp_path / record.mask if record.mask else None)
    if record.extra:
        assert read.extra == record.extra


def test_columns_are_parsed_from_one_text_or_several() -> None:
    expected = {"slide_id": "FILE NAME", "case_id": "PATIENT"}
    assert parse_columns(["slide_id=FILE NAME,case_id=PATIENT"]) == expected
    assert parse_columns(["slide_id = FILE NAME", "case_id=PATIENT"]) == expected
    assert parse_columns(["label=a=b"]) == {"label": "a=b"}
    assert parse_columns([]) == {}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("FILENAME", "--columns 'FILENAME': write it as ours=theirs, such as slide_id=FILENAME"),
        ("slide_id=", "--columns 'slide_id=': write it as ours=theirs, such as slide_id=FILENAME"),
        ("id=FILENAME", "--columns id=FILENAME: 'id' is no column of a manifest; known: slide_id, path, case_id,"),
        ("label=a,label=b", "--columns label=b: label is already a"),
    ],
)
def test_a_rename_that_makes_no_sense_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_columns([assignment])
    assert str(error.value).startswith(message)
