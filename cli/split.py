"""`wsi-dbps split`: cases are dealt to train, val and test, or to folds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import CohortCsv, Columns, Slides

if TYPE_CHECKING:
    from wsi_dbps.cohort.cohort import Cohort


def command(
    cohort: CohortCsv,
    out: Annotated[Path, typer.Option(help="Manifest to write, with its split or fold column filled.")],
    folds: Annotated[int | None, typer.Option(help="Deal to this many folds instead of train, val and test.")] = None,
    val: Annotated[float, typer.Option(help="Share of cases for validation.")] = 0.2,
    test: Annotated[float, typer.Option(help="Share of cases for testing.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Random seed for shuffling.")] = 0,
    columns: Columns = [],
    join: Annotated[
        Path | None, typer.Option(help="Table with a row per case, such as STAMP's clini table: its columns are added.")
    ] = None,
    slides: Slides = None,
) -> None:
    """Split a cohort by patient into train, val and test.

    The split is stratified by label. The same seed and cases give the same split in any order of the rows.
    """
    from wsi_dbps.cohort.manifest import parse_columns, read_manifest, write_manifest
    from wsi_dbps.cohort.splits import fold_cohort, split_cohort
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.core.output_folder import output_folder

    whole = read_manifest(cohort, columns=parse_columns(columns), join=join, slides=slides)
    if folds is None:
        dealt, column = split_cohort(whole, val=val, test=test, seed=seed), "split"
    else:
        dealt, column = fold_cohort(whole, num_folds=folds, seed=seed), "fold"
    with output_folder(out.parent, "split", (out.name,)):
        if out.exists() and any(path.samefile(out) for path in (cohort, join) if path is not None):
            raise ConfigError(f"{out}: is the table that is read, whose parts would be lost; give --out another name")
        write_manifest(out, dealt)
    print_split(dealt, column)
    before = {record.slide_id: record.split for record in whole.records if record.split}
    changed = sum(before.get(record.slide_id, record.split) != record.split for record in dealt.records)
    if changed:
        print(f"{cohort} has splits of its own, and {out} has others: {changed} of {len(before)} slides have moved")
    if without := sum(record.label is None for record in dealt.records):
        print(f"{without} of {len(dealt)} slides have no label; they are kept with an empty {column}, and not used")
    print(f"wrote {out}")


def print_split(cohort: Cohort, column: str) -> None:
    """Print how many slides and cases of each class lie in each part."""
    from wsi_dbps.cohort.splits import split_table

    row = "{:<8} {:<20} {:>7} {:>7}"
    print(row.format(column, "label", "slides", "cases"))
    for count in split_table(cohort, by=column):
        if not count.num_slides and None in (count.part, count.label):
            continue  # slides without a label lie in no part: those zeros say nothing
        print(row.format(count.part or "-", count.label or "-", count.num_slides, count.num_cases))
