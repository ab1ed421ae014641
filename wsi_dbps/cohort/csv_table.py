"""Read a CSV table into rows that know their line number, under our column names.

All problems are collected, so that one error can list them; nothing is repaired silently.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_dbps.core.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

# "ours" are the column names of docs/formats/manifest.md, "theirs" those of the file that is read
OURS = ("slide_id", "path", "case_id", "label", "split", "mpp", "mask", "annotations")
RENAMABLE = (*OURS, "fold", "site")  # what --columns can rename

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
MAX_SHOWN = 50
_BOM = b"\xef\xbb\xbf"

Problem = tuple[int, str]
"""The line number of a problem, and what is wrong there."""


@dataclass(frozen=True)
class Row:
    """One record of the table."""

    line: int
    """Where it starts in the file, from 1, counting the header."""
    ours: Mapping[str, str]
    """Cells under our names (`RENAMABLE`), without surrounding blanks; empty where there is no such column."""
    extra: Mapping[str, str]
    """Every column of the file that does not already have one of the names in `OURS`, as written."""


@dataclass(frozen=True)
class Table:
    """The rows of a file that have as many cells as its header, and what is wrong with the others."""

    columns: frozenset[str]
    """Our names that the table has."""
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]


def parse_columns(assignments: Iterable[str]) -> dict[str, str]:
    """Renames from `ours=theirs`, several of them in one text separated by commas.

    Raises:
        ConfigError: If one is not of that form, names no column of ours, or names one twice.

    Examples:
        >>> parse_columns(["slide_id=FILENAME,case_id=PATIENT", "label=KRAS"])
        {'slide_id': 'FILENAME', 'case_id': 'PATIENT', 'label': 'KRAS'}
    """
    columns: dict[str, str] = {}
    for assignment in (part for text in assignments for part in text.split(",")):
        ours, _, theirs = (part.strip() for part in assignment.partition("="))
        if not (ours and theirs):
            raise ConfigError(f"--columns {assignment!r}: write it as ours=theirs, such as slide_id=FILENAME")
        if ours not in RENAMABLE:
            raise ConfigError(
                f"--columns {assignment}: {ours!r} is no column of a manifest; known: {', '.join(RENAMABLE)}"
            )
        if ours in columns:
            raise ConfigError(f"--columns {assignment}: {ours} is already {columns[ours]}")
        columns[ours] = theirs
    return columns


def read_table(path: Path, columns: Mapping[str, str], required: Sequence[str], join: Path | None = None) -> Table:
    """The rows of a file whose columns are separated by commas, semicolons or tabs, as its header shows.

    Args:
        path: The file.
        columns: Our name to the name in the file, where they differ.
        required: Our names of the columns that must be there; `slide_id` may be replaced by `path`.
        join: A table with a row per case, whose columns are added to each slide of the case; other slides get empty
            cells.

    Raises:
        ManifestError: If the tables cannot be joined, the header already makes the rows unusable, or there are none.
    """
    problems: list[Problem] = []
    text = _text(path)
    separator = _separator(text, {*RENAMABLE, *columns.values()})
    lines = _lines(text, separator, problems)
    line, header = next(lines, (1, []))
    header = [name.strip() for name in header]
    if not header:
        refuse(path, problems or [(1, "the file is empty; a manifest starts with a line of column names")])
    own, added = len(header), list[str]()
    of_case: dict[str, list[str]] = {}
    if join is not None:
        added, of_case = _read_cases(join, columns, path, header)
        header += added
    refuse(path, [(line, said) for said in _header_problems(header, columns, required)])

    theirs = {ours: columns.get(ours, ours) for ours in RENAMABLE}
    rows: list[Row] = []
    for line, cells in lines:
        if len(cells) == own:
            case_id = cells[header.index(columns.get("case_id", "case_id"))].strip() if join else ""
            whole = cells + of_case.get(case_id, [""] * len(added))
            rows.append(_row(line, dict(zip(header, whole, strict=True)), theirs))
        else:
            hint = f"; a value with a {SEPARATORS[separator]} needs quotes" if len(cells) > own else ""
            hint += ", a number takes a decimal point" if hint and separator == "," else ""
            problems.append((line, f"{len(cells)} cells under {own} column names{hint}"))
    if not rows and not problems:
        refuse(path, [(line, "nothing follows the column names; a manifest has a line per slide")])
    return Table(frozenset(ours for ours in RENAMABLE if theirs[ours] in header), tuple(rows), tuple(problems))


def _read_cases(
    path: Path, columns: Mapping[str, str], slides: Path, header: Sequence[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """The column names that a table of cases adds to one of slides, and its cells under them, by case."""
    problems: list[Problem] = []
    text, key = _text(path), columns.get("case_id", "case_id")
    (_, names), *rows = list(_lines(text, _separator(text, {*RENAMABLE, *columns.values()}), problems)) or [(1, [])]
    names = [name.strip() for name in names]
    for table, found in ((slides, header), (path, names)):
        if key not in found:
            raise ManifestError(
                f"{table}: no column {key!r}, by which the two tables are joined; found: {', '.join(found)}; name the "
                "column of cases, which both must have: --columns case_id=NAME"
            )
    if twice := [name for name in names if name in header and name != key]:
        raise ManifestError(f"{path}: the column {twice[0]!r} is in {slides} too; remove or rename one of them")
    place = names.index(key)
    of_case: dict[str, list[str]] = {}
    for line, cells in rows:
        if len(cells) != len(names):
            problems.append((line, f"{len(cells)} cells under {len(names)} column names"))
        elif (case_id := cells[place].strip()) in of_case:
            problems.append((line, f"case {quoted(case_id)} has a line already; a joined table has one per case"))
        else:
            of_case[case_id] = cells[:place] + cells[place + 1 :]
    refuse(path, problems)
    return names[:place] + names[place + 1 :], of_case


def refuse(path: Path, problems: Iterable[Problem]) -> None:
    """Raise one error that lists the first `MAX_SHOWN` problems by line; do nothing if there are none."""
    if not (found := sorted(problems, key=lambda problem: problem[0])):
        return
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    shown = [f"  line {line}: {said}" for line, said in found[:MAX_SHOWN]]
    more = [f"  and {len(found) - MAX_SHOWN} more"] if len(found) > MAX_SHOWN else []
    raise ManifestError("\n".join([f"{path}: {count} in the cohort manifest; nothing was done", *shown, *more]))


def quoted(text: str) -> str:
    """The text in quotes, on one line and shortened to 80 characters, for a message."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from None
    if content.startswith(b"PK\x03\x04"):
        raise ManifestError(f"{path}: a spreadsheet or zip file, not CSV; in Excel, save as 'CSV UTF-8'")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(f"{path}: encoded as UTF-16 (byte {content[0]:#04x} at offset 0); save it as UTF-8")
    bom = len(_BOM) if content.startswith(_BOM) else 0
    try:
        return content[bom:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + bom
        line = content.count(b"\n", 0, offset) + 1
        raise ManifestError(
            f"{path}: not UTF-8: byte {content[offset]:#04x} at offset {offset}, on line {line}; "
            "save it as UTF-8 (in Excel: 'CSV UTF-8')"
        ) from None


def _separator(text: str, known: Collection[str]) -> str:
    """The separator with which a known column name is found in the header; else the one that gives most columns."""
    headers: dict[str, list[str]] = {}
    for separator in SEPARATORS:
        wrong: list[Problem] = []
        headers[separator] = next(_lines(text, separator, wrong), (1, []))[1]
        if not (headers[separator] or wrong) or any(name.strip() in known for name in headers[separator]):
            return separator
    return max(headers, key=lambda separator: len(headers[separator]))


def _lines(text: str, separator: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, with the line it starts on; reading ends with a problem where it is no CSV."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        hint = "; a quote that opens here is never closed" if "end of data" in str(error) else ""
        problems.append((line, f"not CSV: {error}{hint}"))


def _header_problems(header: list[str], columns: Mapping[str, str], required: Sequence[str]) -> Iterator[str]:
    found = ", ".join(quoted(name) for name in header[:30]) + (", ..." if len(header) > 30 else "")
    for name in dict.fromkeys(header):
        if (count := header.count(name)) > 1:
            yield f"the column name {quoted(name)} appears {count} times" if name else f"{count} columns have no name"
    there = {*header, *columns}
    missing = [name for name in required if name not in there and not (name == "slide_id" and "path" in there)]
    unfound = {ours: theirs for ours, theirs in columns.items() if theirs not in header}
    if (missing or unfound) and "".join(header).count("|") >= len(header):
        yield "the columns are separated by vertical bars; save the table with commas, semicolons or tabs"
        return
    for ours in columns:
        if ours not in RENAMABLE:
            yield f"{quoted(ours)} is no column of a manifest and cannot be renamed; known: {', '.join(RENAMABLE)}"
    for ours, theirs in unfound.items():
        yield f"no column {quoted(theirs)} to use as {ours}; found: {found}"
    for name in missing:
        alike = [theirs for theirs in header if theirs.casefold() == name]
        example = alike[0] if alike else "FILENAME" if name == "slide_id" else "NAME"
        yield f"no column {name}; found: {found}; name the one to use: --columns {name}={example}"


def _row(line: int, cells: Mapping[str, str], theirs: Mapping[str, str]) -> Row:
    extra = {name: cell for name, cell in cells.items() if name not in OURS}
    for ours, name in theirs.items():
        if name != ours and ours in cells:  # --columns label=KRAS beside a column called label: keep what it held
            extra.setdefault(f"original_{ours}", cells[ours])
        if name != ours and ours not in OURS:
            extra[ours] = cells.get(name, "")
    return Row(line, {ours: cells.get(name, "").strip() for ours, name in theirs.items()}, extra)
