"""Read and write the cohort manifest. All of it is checked before any work, and what is written reads back the same.

The format is docs/formats/manifest.md.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dbps.cohort.cohort import SPLITS, Cohort, SlideRecord, finite_number
from wsi_dbps.cohort.csv_table import OURS, Row, parse_columns, quoted, read_table, refuse
from wsi_dbps.cohort.names import id_of_file, is_url, same_file_key, why_unsafe
from wsi_dbps.core.errors import ManifestError
from wsi_dbps.core.files import write_text
from wsi_dbps.core.geometry import POSSIBLE_MPP_UM

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from wsi_dbps.cohort.csv_table import Problem, Table
    from wsi_dbps.core.files import PathLike

__all__ = ["parse_columns", "read_manifest", "write_manifest"]

SLIDE_ENDINGS = (
    *(".svs", ".ndpi", ".ome.tiff", ".ome.tif", ".tiff", ".tif", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".vmu"),
    *(".dcm", ".png", ".jpg", ".jpeg"),
)
"""Endings by which slide files are found in a folder; a longer one before one that it ends in."""
_PLURAL = {"mask": "masks", "annotations": "annotations"}
# labels that other programs write for an empty cell
_MISSING_WORDS = ("nan", "na", "n/a", "null")


def read_manifest(
    path: PathLike,
    *,
    columns: Mapping[str, str] = {},
    need_path: bool = False,
    need_label: bool = False,
    join: PathLike | None = None,
    slides: PathLike | None = None,
) -> Cohort:
    """The slides of a CSV file, in its order; classes are its labels in the order of `ordered_classes`.

    Without a `slide_id` column, the id is the slide file's name without its ending (`.ome.tif` is one); without a
    `case_id` column, every slide is its own case.

    Args:
        path: The CSV file; slide, mask and annotation paths in it are relative to its folder.
        columns: Our column name to the file's, where they differ.
        need_path: Every slide needs a path, and slides and masks must exist (a URL is not looked up).
        need_label: Slides to learn from need a label: those in train or val or in a fold, or all if the table has
            neither column.
        join: A table with a row per case, whose columns (such as labels) each slide of the case gets.
        slides: A folder in which, or below which, slide files are found by their slide_id where the table names no file
            that is there.

    Raises:
        ManifestError: Listing every problem with its line.
    """
    path = Path(path)
    required = ["slide_id", *(["path"] if need_path and slides is None else []), *(["label"] if need_label else [])]
    table = read_table(path, columns, required, None if join is None else Path(join))
    folder = path.parent.absolute()
    search_problems: list[Problem] = []
    if slides is not None:
        table = replace(table, rows=tuple(_with_found_files(table, folder, Path(slides).absolute(), search_problems)))
    rows = [(row, _slide_id(row, table)) for row in table.rows]
    problems = [
        *table.problems,
        *search_problems,
        *_id_problems(rows, table),
        *_case_problems(table),
        *_number_problems(table.rows),
        *_character_problems(table.rows),
        *_label_problems(table, need_label=need_label),
        *_file_problems(table, folder, need_path=need_path and not search_problems),
    ]
    refuse(path, problems)
    return Cohort.of(_record(row, slide_id, folder, table) for row, slide_id in rows)


def write_manifest(path: PathLike, cohort: Cohort) -> None:
    """Write a cohort atomically under our column names, every other column after them.

    A slide below the manifest's folder gets a relative path, so that the folder can move; any other an absolute one.
    Columns of ours that hold nothing are left out.
    """
    path = Path(path)
    folder = path.parent.absolute()
    rows = [{**record.extra, **_cells(record, folder)} for record in cohort.records]
    filled = {name for row in rows for name, cell in row.items() if cell}
    names = [name for name in OURS if name in filled or name in ("slide_id", "case_id")]
    names += [name for name in dict.fromkeys(name for row in rows for name in row) if name not in OURS]
    cells = [names, *([row.get(name, "") for name in names] for row in rows)]

    # csv leaves a lone carriage return unquoted, and then reads it as the end of a line
    has_return = any("\r" in cell for row in cells for cell in row)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL)
    writer.writerows(cells)
    write_text(path, text.getvalue())


def _slide_id(row: Row, table: Table) -> str:
    if "slide_id" in table.columns:
        return row.ours["slide_id"]
    return id_of_file(row.ours["path"])


def _record(row: Row, slide_id: str, folder: Path, table: Table) -> SlideRecord:
    cells = row.ours
    url = cells["path"] if is_url(cells["path"]) else None
    return SlideRecord(
        slide_id=slide_id,
        case_id=cells["case_id"] if "case_id" in table.columns else slide_id,
        path=folder / cells["path"] if cells["path"] and not url else None,
        label=cells["label"] or None,
        split=cells["split"] or None,
        mpp_um=finite_number(cells["mpp"]),
        mask=folder / cells["mask"] if cells["mask"] else None,
        annotations=folder / cells["annotations"] if cells["annotations"] else None,
        url=url,
        extra=row.extra,
    )


def _cells(record: SlideRecord, folder: Path) -> dict[str, str]:
    return {
        "slide_id": record.slide_id,
        "path": record.url or _written_path(record.path, folder),
        "case_id": record.case_id,
        "label": record.label or "",
        "split": record.split or "",
        "mpp": "" if record.mpp_um is None else repr(record.mpp_um),
        "mask": _written_path(record.mask, folder),
        "annotations": _written_path(record.annotations, folder),
    }


def _written_path(path: Path | None, folder: Path) -> str:
    if path is None:
        return ""
    path = path.absolute()
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _id_problems(rows: Sequence[tuple[Row, str]], table: Table) -> Iterator[Problem]:
    given = "slide_id" in table.columns
    hint = "" if given else " (ids are file names here; add a slide_id column)"
    first: dict[str, tuple[int, str]] = {}
    for row, slide_id in rows:
        if not slide_id:
            yield row.line, "slide_id is empty" if given else "path is empty, so the slide has no id"
            continue
        if why := why_unsafe(slide_id):
            yield row.line, f"slide_id {quoted(slide_id)} cannot name a file: {why}{hint}"
        line, other = first.setdefault(same_file_key(slide_id), (row.line, slide_id))
        if line != row.line and other == slide_id:
            yield row.line, f"slide_id {quoted(slide_id)} is already on line {line}{hint}"
        elif line != row.line:
            yield (
                row.line,
                (
                    f"slide_id {quoted(slide_id)} differs only in case from {quoted(other)} on line {line}; "
                    f"their files would overwrite each other on some disks{hint}"
                ),
            )


def _case_problems(table: Table) -> Iterator[Problem]:
    first: dict[str, tuple[int, str]] = {}
    for row in table.rows:
        case_id, split = row.ours["case_id"], row.ours["split"]
        if split and split not in SPLITS:
            yield row.line, f"unknown split {quoted(split)}; known: {', '.join(SPLITS)}, or empty for not used"
            continue
        if "case_id" not in table.columns:
            continue
        if not case_id:
            yield row.line, "case_id is empty; without the column every slide is its own case"
        elif split:
            line, other = first.setdefault(case_id, (row.line, split))
            if other != split:
                yield row.line, f"case {quoted(case_id)} is in {split} here and in {other} on line {line}"


def _number_problems(rows: Sequence[Row]) -> Iterator[Problem]:
    low, high = POSSIBLE_MPP_UM
    for row in rows:
        cell = row.ours["mpp"]
        number = finite_number(cell)
        if cell and number is None:
            with_point = cell.replace(",", ".")
            hint = f"; write {with_point}" if finite_number(with_point) is not None else ""
            yield row.line, f"mpp {quoted(cell)} is not a number{hint}"
        elif number is not None and number <= 0:
            yield row.line, f"mpp {quoted(cell)} is not above 0"
        elif number is not None and not low <= number <= high:
            yield row.line, f"mpp {quoted(cell)} is not the size of a pixel in µm ({low:g} to {high:g})"


def _character_problems(rows: Sequence[Row]) -> Iterator[Problem]:
    """Control characters would break paths, file names, tables and pictures. A slide_id has a check of its own."""
    for row in rows:
        for name in ("path", "case_id", "label", "mask", "annotations"):
            if control := [char for char in row.ours[name] if unicodedata.category(char) == "Cc"]:
                yield row.line, f"{name} {quoted(row.ours[name])} contains the control character {control[0]!r}"


def _label_problems(table: Table, *, need_label: bool) -> Iterator[Problem]:
    unsplit = not table.columns & {"split", "fold"}
    for row in table.rows:
        label, split, fold = row.ours["label"], row.ours["split"], row.ours["fold"]
        if label.lower() in _MISSING_WORDS:
            yield row.line, f"label {quoted(label)} reads as a missing value; empty the cell or rename the class"
        elif need_label and not label and (unsplit or fold or split in ("train", "val")):
            where = f" of a slide in {split or f'fold {fold}'}" if split or fold else ""
            yield row.line, f"the label{where} is empty"


def _file_problems(table: Table, folder: Path, *, need_path: bool) -> Iterator[Problem]:
    for row in table.rows:
        if need_path and not row.ours["path"] and "slide_id" in table.columns:
            yield row.line, "path is empty"
        for name in ("path", "mask", "annotations"):
            cell = row.ours[name]
            if is_url(cell):
                if name != "path":
                    yield row.line, f"{name} {quoted(cell)} is a URL; {_PLURAL[name]} are read from local files"
            elif need_path and cell and name != "annotations" and not os.path.exists(folder / cell):
                where = "" if Path(cell).is_absolute() else f" in {folder}"
                yield row.line, f"{name} {quoted(cell)}: no such file{where}; correct the cell, or remove the line"


def _with_found_files(table: Table, folder: Path, slides: Path, problems: list[Problem]) -> Iterator[Row]:
    """The rows; one whose path names no existing file gets the file in the folder whose name is its slide_id."""
    if not slides.is_dir():
        raise ManifestError(f"--slides {slides}: no such folder")
    files: dict[str, list[Path]] = {}
    for file in sorted(slides.rglob("*")):
        if ending := next((e for e in SLIDE_ENDINGS if file.name.lower().endswith(e)), None):
            files.setdefault(file.name[: -len(ending)], []).append(file)
    for row in table.rows:
        cell, slide_id = row.ours["path"], _slide_id(row, table)
        found = files.get(slide_id, [])
        if (cell and (is_url(cell) or os.path.exists(folder / cell))) or not slide_id:
            yield row
        elif len(found) == 1:
            yield replace(row, ours={**row.ours, "path": str(found[0])})
        else:
            said = f"no file of this name with an ending of a slide ({', '.join(SLIDE_ENDINGS[:5])} ...)"
            if found:
                said = f"{len(found)} files of this name ({', '.join(map(str, found[:3]))}); give it a path"
            problems.append((row.line, f"slide_id {quoted(slide_id)}: found in {slides}: {said}"))
            yield row
