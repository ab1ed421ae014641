"""Manifests that cannot be used: every problem is named with its line, in one error."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.core.errors import ManifestError


def refusal(folder: Path, content: str | bytes, **arguments: object) -> str:
    """The message of the error that reading `content` raises."""
    path = folder / "cohort.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManifestError) as error:
        read_manifest(path, **arguments)
    return str(error.value)


def problems(folder: Path, content: str | bytes, **arguments: object) -> list[str]:
    """The lines of the message after the first, without their indent."""
    header, *lines = refusal(folder, content, **arguments).split("\n")
    assert header.startswith(f"{folder / 'cohort.csv'}: {len(lines)} problem")
    assert all(line.startswith("  line ") for line in lines)
    return [line.strip() for line in lines]


@given(st.binary(max_size=200) | st.text(st.characters(codec="utf-8")).map(str.encode))
def test_any_bytes_are_read_or_refused_and_never_a_crash(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cohort.csv"
        path.write_bytes(b"slide_id,path,label,mpp,split,case_id\n" + content)
        with suppress(ManifestError):
            read_manifest(path, need_path=True, need_label=True)


@given(st.sets(st.integers(0, 30), min_size=1))
def test_every_wrong_line_is_named_once_and_in_order(wrong: set[int]) -> None:
    rows = [f"s{i},{'x' if i in wrong else '0.5'}\n" for i in range(31)]
    with TemporaryDirectory() as folder:
        said = problems(Path(folder), "slide_id,mpp\n" + "".join(rows))
    assert said == [f"line {i + 2}: mpp 'x' is not a number" for i in sorted(wrong)]


def test_everything_wrong_is_in_one_error(tmp_path: Path) -> None:
    text = (
        "slide_id,path,case_id,label,split,mpp\n"
        "a,here.svs,p1,x,train,0.25\n"
        "a,here.svs,p1,x,test,0.25\n"
        '"b\n/",gone.svs,,,validation,"0,5"\n'
        "c,here.svs,p3,NaN,,0\n"
        "d,here.svs\n"
    )
    (tmp_path / "here.svs").touch()
    assert refusal(tmp_path, text, need_path=True, need_label=True).split("\n") == [
        f"{tmp_path / 'cohort.csv'}: 9 problems in the cohort manifest; nothing was done",
        "  line 3: slide_id 'a' is already on line 2",
        "  line 3: case 'p1' is in test here and in train on line 2",
        "  line 4: slide_id 'b\\n/' cannot name a file: it contains '\\n'",
        "  line 4: unknown split 'validation'; known: train, val, test, or empty for not used",
        "  line 4: mpp '0,5' is not a number; write 0.5",
        f"  line 4: path 'gone.svs': no such file in {tmp_path}; correct the cell, or remove the line",
        "  line 6: mpp '0' is not above 0",
        "  line 6: label 'NaN' reads as a missing value; empty the cell or rename the class",
        "  line 7: 2 cells under 6 column names",
    ]


def test_fifty_problems_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, "slide_id\n" + "a/b\n" * 80)
    assert message.startswith(f"{tmp_path / 'cohort.csv'}: 159 problems in")
    assert len(message.split("\n")) == 52
    assert message.endswith("\n  and 109 more")


EXAMPLES = [
    ("slide_id\na/b\n", "line 2: slide_id 'a/b' cannot name a file: it contains '/'"),
    ("slide_id\n..\n", "line 2: slide_id '..' cannot name a file: it starts with a dot"),
    ("slide_id,label\n,x\n", "line 2: slide_id is empty"),
    (
        "slide_id\nS1\ns1\n",
        "line 3: slide_id 's1' differs only in case from 'S1' on line 2; "
        "their files would overwrite each other on some disks",
    ),
    (
        "path\na/s.svs\nb/s.svs\n",
        "line 3: slide_id 's' is already on line 2 (ids are file names here; add a slide_id column)",
    ),
    ("path,label\n,x\n", "line 2: path is empty, so the slide has no id"),
    ("slide_id,case_id\na,\n", "line 2: case_id is empty; without the column every slide is its own case"),
    ("slide_id,split\na,Train\n", "line 2: unknown split 'Train'; known: train, val, test, or empty for not used"),
    ("slide_id,mpp\na,nan\n", "line 2: mpp 'nan' is not a number"),
    ("slide_id,mpp\na,inf\n", "line 2: mpp 'inf' is not a number"),
    ("slide_id,mpp\na,0_25\n", "line 2: mpp '0_25' is not a number"),
    ("slide_id,mpp\na,-0.5\n", "line 2: mpp '-0.5' is not above 0"),
    (
        "slide_id,mpp\na,0,25\n",
        "line 2: 3 cells under 2 column names; a value with a comma needs quotes, a number takes a decimal point",
    ),
    ("slide_id,mask\na,s3://b/m.png\n", "line 2: mask 's3://b/m.png' is a URL; masks are read from local files"),
    (
        "slide_id,annotations\na,https://b/a.xml\n",
        "line 2: annotations 'https://b/a.xml' is a URL; annotations are read from local files",
    ),
    ("slide_id,label\na,N/A\n", "line 2: label 'N/A' reads as a missing value; empty the cell or rename the class"),
    ('slide_id\na\n"b\nc\n', "line 3: not CSV: unexpected end of data; a quote that opens here is never closed"),
    ('slide_id\n"a"b\n', "line 2: not CSV: ',' expected after '\"'"),
    ("", "line 1: the file is empty; a manifest starts with a line of column names"),
    (" \n,,\n", "line 1: the file is empty; a manifest starts with a line of column names"),
    ("slide_id,path\n", "line 1: nothing follows the column names; a manifest has a line per slide"),
    ("slide_id,label,label\na,x,y\n", "line 1: the column name 'label' appears 2 times"),
    ("slide_id,,\na,x,y\n", "line 1: 2 columns have no name"),
    (
        "PATIENT,FILE\np,a\n",
        "line 1: no column slide_id; found: 'PATIENT', 'FILE'; name the one to use: --columns slide_id=FILENAME",
    ),
    ("slide_id;label;mpp\na;x;0,25\n", "line 2: mpp '0,25' is not a number; write 0.25"),
    ("slide_id;label\na;x;y\n", "line 2: 3 cells under 2 column names; a value with a semicolon needs quotes"),
    (
        "PATIENT;FILE\np;a\n",
        "line 1: no column slide_id; found: 'PATIENT', 'FILE'; name the one to use: --columns slide_id=FILENAME",
    ),
    (
        "slide_id|label\na|x\n",
        "line 1: the columns are separated by vertical bars; save the table with commas, semicolons or tabs",
    ),
    ("slide_id,mpp\na,1e300\n", "line 2: mpp '1e300' is not the size of a pixel in µm (0.01 to 1000)"),
    ("slide_id,mpp\na,0.005\n", "line 2: mpp '0.005' is not the size of a pixel in µm (0.01 to 1000)"),
    ("slide_id,mpp\na,1e-9\n", "line 2: mpp '1e-9' is not the size of a pixel in µm (0.01 to 1000)"),
    ("slide_id,label\na,x\0y\n", "line 2: label 'x\\x00y' contains the control character '\\x00'"),
    ("slide_id,case_id\na,p\x1by\n", "line 2: case_id 'p\\x1by' contains the control character '\\x1b'"),
    ("slide_id,path\na,x\0.svs\n", "line 2: path 'x\\x00.svs' contains the control character '\\x00'"),
    ("slide_id\na\0b\n", "line 2: slide_id 'a\\x00b' cannot name a file: it contains '\\x00'"),
]


@pytest.mark.parametrize(("text", "problem"), EXAMPLES)
def test_a_problem_is_said_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    assert problems(tmp_path, text) == [problem]


def test_a_file_is_missed_only_where_it_is_needed(tmp_path: Path) -> None:
    text = "slide_id,path,mask\na,/gone/a.svs,m.png\nb,,\n"
    assert len(read_after_writing(tmp_path, text)) == 2
    assert problems(tmp_path, text, need_path=True) == [
        "line 2: path '/gone/a.svs': no such file; correct the cell, or remove the line",
        f"line 2: mask 'm.png': no such file in {tmp_path}; correct the cell, or remove the line",
        "line 3: path is empty",
    ]


def read_after_writing(folder: Path, text: str) -> object:
    (folder / "cohort.csv").write_text(text)
    return read_manifest(folder / "cohort.csv")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("slide_id,label\na,\n", "line 2: the label is empty"),
        ("slide_id,label,split\na,,val\nb,,test\n", "line 2: the label of a slide in val is empty"),
        ("slide_id,label,fold\na,,0\nb,,\n", "line 2: the label of a slide in fold 0 is empty"),
        ("slide_id\na\n", "line 1: no column label; found: 'slide_id'; name the one to use: --columns label=NAME"),
        (
            "slide_id,Label\na,x\n",
            "line 1: no column label; found: 'slide_id', 'Label'; name the one to use: --columns label=Label",
        ),
    ],
)
def test_a_label_is_missed_where_it_is_needed(tmp_path: Path, text: str, problem: str) -> None:
    assert problems(tmp_path, text, need_label=True) == [problem]
    assert read_after_writing(tmp_path, text)


def test_a_path_column_is_missed_where_it_is_needed(tmp_path: Path) -> None:
    said = "line 1: no column path; found: 'slide_id', 'file'; name the one to use: --columns path=NAME"
    assert problems(tmp_path, "slide_id,file\na,b\n", need_path=True) == [said]


def test_a_rename_to_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    columns = {"slide_id": "FILENAME", "id": "wsi"}
    assert problems(tmp_path, "wsi,label\na,x\n", columns=columns) == [
        "line 1: 'id' is no column of a manifest and cannot be renamed; "
        "known: slide_id, path, case_id, label, split, mpp, mask, annotations, fold, site",
        "line 1: no column 'FILENAME' to use as slide_id; found: 'wsi', 'label'",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "slide_id,label\na,grün\n".encode("latin-1"),
            "not UTF-8: byte 0xfc at offset 19, on line 2; save it as UTF-8 (in Excel: 'CSV UTF-8')",
        ),
        (
            b"\xef\xbb\xbfslide_id\n\xff\n",
            "not UTF-8: byte 0xff at offset 12, on line 2; save it as UTF-8 (in Excel: 'CSV UTF-8')",
        ),
        ("slide_id\na\n".encode("utf-16"), "encoded as UTF-16 (byte 0xff at offset 0); save it as UTF-8"),
        (b"PK\x03\x04...", "a spreadsheet or zip file, not CSV; in Excel, save as 'CSV UTF-8'"),
    ],
)
def test_a_wrong_encoding_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    assert refusal(tmp_path, content) == f"{tmp_path / 'cohort.csv'}: {message}"


def test_a_manifest_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone\.csv: no such manifest$"):
        read_manifest(tmp_path / "gone.csv")
    with pytest.raises(ManifestError, match=r"cannot be read: Is a directory$"):
        read_manifest(tmp_path)
