"""Split a cohort by patient into train, val and test, or into folds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from wsi_dbps.cohort.given import Columns, SlidesFolder, as_cohort, cohort_name
from wsi_dbps.core.options import options_with, to_stderr
from wsi_dbps.core.settings import settings

if TYPE_CHECKING:
    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.cohort.splits import SplitCount
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say


@settings
class SplitOptions:
    """The options of `split`."""

    folds: Annotated[int | None, "Divide the cases into this many folds instead of train, val and test."] = None
    val: Annotated[float, "Fraction of the cases for validation."] = 0.2
    test: Annotated[float, "Fraction of the cases for testing."] = 0.2
    seed: Annotated[int, "Random seed for shuffling."] = 0
    columns: Columns = ()
    join: Annotated[Path | None, "Table with a row per case, such as STAMP's clini table: its columns are added."] = (
        None
    )
    slides: SlidesFolder = None


@dataclass(frozen=True)
class SplitResult:
    """A cohort that has been split."""

    cohort: Cohort
    """The cohort with its split or fold column filled."""
    out: Path
    """The manifest that was written."""
    counts: tuple[SplitCount, ...]
    """How many slides and cases of each class lie in each part."""
    summary: str
    """What the command prints."""
    failed: int = 0


def split(
    cohort: Cohort | PathLike,
    out: PathLike,
    options: SplitOptions = SplitOptions(),
    *,
    say: Say = to_stderr,  # noqa: ARG001 - every workflow has it
    **changes: Any,
) -> SplitResult:
    """Split a cohort by patient, stratified by label, and write it as a manifest.

    The same seed and cases give the same split in any order of the rows.

    Args:
        cohort: A cohort, or the path of its manifest.
        out: The manifest to write, with its split or fold column filled.
        options: Options; see `SplitOptions`.
        say: Takes lines of notice.
        changes: Options to change, by name: `split(cohort, "splits.csv", test=0.3)`.

    Raises:
        ManifestError: If the manifest cannot be used, or there are too few cases.
        ConfigError: If an option is wrong, or `out` is the table that is read.
    """
    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.cohort.manifest import write_manifest
    from wsi_dbps.cohort.splits import fold_cohort, split_cohort, split_table
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.core.output_folder import output_folder

    o, out = options_with(options, changes), Path(out)
    whole = as_cohort(cohort, o.columns, join=o.join, slides=o.slides)
    if o.folds is None:
        dealt, column = split_cohort(whole, val=o.val, test=o.test, seed=o.seed), "split"
    else:
        dealt, column = fold_cohort(whole, num_folds=o.folds, seed=o.seed), "fold"
    read = [Path(path) for path in (cohort, o.join) if path is not None and not isinstance(path, Cohort)]
    with output_folder(out.parent, "split", (out.name,)):
        if out.exists() and any(path.samefile(out) for path in read):
            raise ConfigError(f"{out}: is the table that is read, whose parts would be lost; give --out another name")
        write_manifest(out, dealt)
    counts = tuple(split_table(dealt, by=column))
    lines = [*_table(counts, column), *_notes(whole, dealt, column, cohort_name(cohort), out), f"wrote {out}"]
    return SplitResult(dealt, out, counts, "\n".join(lines))


def _table(counts: tuple[SplitCount, ...], column: str) -> list[str]:
    row = "{:<8} {:<20} {:>7} {:>7}"
    lines = [row.format(column, "label", "slides", "cases")]
    for count in counts:
        if not count.num_slides and None in (count.part, count.label):
            continue  # slides without a label lie in no part: those zeros say nothing
        lines.append(row.format(count.part or "-", count.label or "-", count.num_slides, count.num_cases))
    return lines


def _notes(whole: Cohort, dealt: Cohort, column: str, name: str, out: Path) -> list[str]:
    """What a user may not expect of the split."""
    notes = []
    before = {record.slide_id: record.split for record in whole.records if record.split}
    if changed := sum(before.get(record.slide_id, record.split) != record.split for record in dealt.records):
        notes.append(
            f"{name} has splits of its own, and {out} has others: {changed} of {len(before)} slides have moved"
        )
    if without := sum(record.label is None for record in dealt.records):
        notes.append(
            f"{without} of {len(dealt)} slides have no label; they are kept with an empty {column}, and not used"
        )
    return notes
