"""Tables as other tools keep them: labels in a table of cases, slides known by id and found in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_dbps.cohort.manifest import read_manifest, write_manifest
from wsi_dbps.core.errors import ManifestError

STAMP = {"path": "FILENAME", "case_id": "PATIENT", "label": "isMSIH"}


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """STAMP's slide and clini tables, the second separated by semicolons."""
    slide, clini = tmp_path / "slide.csv", tmp_path / "clini.csv"
    slide.write_text("FILENAME,PATIENT\na.svs,p1\nb.svs,p1\nc.svs,p2\nd.svs,p3\n")
    clini.write_text("isMSIH;PATIENT;AGE\nMSIH; p1;61\nnonMSIH;p2;70\nMSIH;p9;50\n")
    return slide, clini


def test_each_slide_gets_the_columns_of_its_case(tables, tmp_path: Path) -> None:
    cohort = read_manifest(tables[0], columns=STAMP, join=tables[1])
    assert [(r.slide_id, r.case_id, r.label, r.extra["AGE"]) for r in cohort.records] == [
        ("a", "p1", "MSIH", "61"),
        ("b", "p1", "MSIH", "61"),
        ("c", "p2", "nonMSIH", "70"),
        ("d", "p3", None, ""),
    ]
    write_manifest(tmp_path / "cohort.csv", cohort)
    assert read_manifest(tmp_path / "cohort.csv") == cohort


def test_tables_that_cannot_be_joined_are_named(tables, tmp_path: Path) -> None:
    def refusal(text: str, **columns: str) -> str:
        (tmp_path / "clini.csv").write_text(text)
        with pytest.raises(ManifestError) as error:
            read_manifest(tables[0], columns=STAMP | columns, join=tables[1])
        return str(error.value)

    assert refusal("PATIENT,isMSIH\np1,x\np1,y\np2\n") == (
        f"{tables[1]}: 2 problems in the cohort manifest; nothing was done\n"
        "  line 3: case 'p1' has a line already; a joined table has one per case\n"
        "  line 4: 1 cells under 2 column names"
    )
    assert refusal("case,isMSIH\np1,x\n") == (
        f"{tables[1]}: no column 'PATIENT', by which the two tables are joined; found: case, isMSIH; name the column "
        "of cases, which both must have: --columns case_id=NAME"
    )
    assert refusal("PATIENT,isMSIH,FILENAME\np1,x,y\n") == (
        f"{tables[1]}: the column 'FILENAME' is in {tables[0]} too; remove or rename one of them"
    )
    assert "no column 'isMSIH' to use as label" in refusal("PATIENT,AGE\np1,60\n")
    assert "no column 'PATIENT'" in refusal("")


def test_split_joins_and_finds_and_writes_one_manifest_and_keeps_slides_without_a_label(tmp_path, wsi_dbps) -> None:
    (tmp_path / "scans" / "2021").mkdir(parents=True)
    for i in range(10):
        (tmp_path / "scans" / "2021" / f"s{i}.svs").touch()
    (tmp_path / "slide.csv").write_text("slide_id,case_id\n" + "".join(f"s{i},p{i}\n" for i in range(10)))
    (tmp_path / "clini.csv").write_text("case_id,label\n" + "".join(f"p{i},{'ab'[i % 2]}\n" for i in range(8)))
    out = tmp_path / "cohort.csv"
    code, said, err = wsi_dbps(
        *("split", tmp_path / "slide.csv", "--join", tmp_path / "clini.csv", "--slides", tmp_path / "scans"),
        *("--val", 0.25, "--test", 0.25, "--out", out),
    )
    assert (code, err) == (0, "")
    assert "2 of 10 slides have no label; they are kept with an empty split, and not used\n" in said
    records = read_manifest(out, need_path=True).records
    assert records[0].path == tmp_path / "scans" / "2021" / "s0.svs"
    assert [record.split for record in records[8:]] == [None, None]
    assert all(record.split for record in records[:8])


def test_slides_are_found_by_id_below_a_folder_and_a_path_that_is_there_stands(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    (scans / "b").mkdir(parents=True)
    for name in ("scans/a.SVS", "scans/b/b.ome.tif", "scans/c.xml", "c.tif", "scans/c.tif"):
        (tmp_path / name).touch()
    (tmp_path / "cohort.csv").write_text("slide_id,path\na,\nb,/old/disk/b.tif\nc,c.tif\n")
    found = read_manifest(tmp_path / "cohort.csv", need_path=True, slides=scans).records
    assert [r.path for r in found] == [scans / "a.SVS", scans / "b" / "b.ome.tif", tmp_path / "c.tif"]
    (tmp_path / "ids.csv").write_text("slide_id\na\n")
    assert read_manifest(tmp_path / "ids.csv", need_path=True, slides=scans).records[0].path == scans / "a.SVS"


def test_slides_that_are_not_found_or_found_twice_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    (tmp_path / "a.tif").touch()
    (tmp_path / "cohort.csv").write_text("slide_id\na\nb\n")
    with pytest.raises(ManifestError) as error:
        read_manifest(tmp_path / "cohort.csv", need_path=True, slides=tmp_path)
    assert str(error.value).splitlines()[1:] == [
        f"  line 2: slide_id 'a': found in {tmp_path}: 2 files of this name ({tmp_path}/a.svs, {tmp_path}/a.tif); give "
        "it a path",
        f"  line 3: slide_id 'b': found in {tmp_path}: no file of this name with an ending of a slide (.svs, .ndpi, "
        ".ome.tiff, .ome.tif, .tiff ...)",
    ]
    with pytest.raises(ManifestError, match=r"^--slides .*/gone: no such folder$"):
        read_manifest(tmp_path / "cohort.csv", slides=tmp_path / "gone")
