"""Write cached patches to files that other tools read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from wsi_dbps.cohort.given import Columns, cohort_part
from wsi_dbps.core.options import Range, options_with, to_stderr
from wsi_dbps.core.settings import settings
from wsi_dbps.formats.run_folders import paths_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.exporting.export import ExportOutcome, ExportSpec

ExportFormat = Literal["jpeg", "png", "tar"]
"""What is written for each slide: its cached JPEG files, their pixels as PNG, or a WebDataset."""


@settings
class ExportOptions:
    """The options of `export`."""

    max: Annotated[int | None, "Export at most N patches of each slide, drawn at random.", Range(min=1)] = None
    seed: Annotated[int, "Random seed for drawing patches.", Range(min=0)] = 0
    columns: Columns = ()
    overwrite: Annotated[bool, "Export again slides that are exported already."] = False


@dataclass(frozen=True)
class ExportResult:
    """What `export` has left in its folder."""

    out: Path
    """The folder."""
    written: tuple[Path, ...]
    """A folder or TAR for each slide that was exported."""
    kept: tuple[Path, ...]
    """Those that were there already, from the same cache with the same settings."""
    num_patches: int
    """Patches in those that were written."""
    failed: tuple[str, ...]
    """A line for each cache that could not be exported, with the reason."""
    labels: Path | None
    """labels.csv, where a cohort gave labels."""

    @property
    def summary(self) -> str:
        """What the command prints."""
        done = (
            f"{len(self.written)} slides exported ({self.num_patches} patches), {len(self.kept)} kept as they were, "
            f"{len(self.failed)} failed: {self.out}"
        )
        return done if self.labels is None else f"{done}\nlabels: {self.labels}"


def export(
    caches: PathLike | Iterable[PathLike],
    out: PathLike,
    format: ExportFormat,  # noqa: A002 - the option is called so
    options: ExportOptions = ExportOptions(),
    *,
    labels: Cohort | PathLike | None = None,
    say: Say = to_stderr,  # noqa: ARG001 - failures are said by the progress display
    **changes: Any,
) -> ExportResult:
    """Write cached patches to files that other tools read; each patch keeps its place on the slide.

    A slide that is exported already, from the same cache with the same settings, is kept.

    Args:
        caches: A patch cache, a folder of them, or several of both.
        out: Folder for a folder or TAR per slide.
        format: `jpeg`, the cached JPEG files unchanged; `png`, their pixels; `tar`, a WebDataset of the JPEG files.
        options: Options; see `ExportOptions`.
        labels: A cohort or its manifest, whose case, label and split of each slide go into labels.csv.
        say: Takes lines of notice.
        changes: Options to change, by name: `export("caches", "out", "png", max=100)`.

    Raises:
        CacheError: If a path holds no patch cache.
        ManifestError: If `labels` lacks a slide.
        OutputError: If a file cannot be written, or somebody else's file would be replaced.
        ConfigError: If an option is wrong.
    """
    from wsi_dbps.core.ownership import refuse_to_replace
    from wsi_dbps.core.settings import build
    from wsi_dbps.exporting.export import LABELS, ExportSpec, find_caches, records_of, write_labels

    o, out = options_with(options, changes), Path(out)
    spec = build(ExportSpec, {"format": format, "max_patches": o.max, "seed": o.seed}, "export")
    paths = find_caches(paths_of(caches))
    cohort = None if labels is None else cohort_part(labels, o.columns, "all")
    records = None if cohort is None else records_of(paths, cohort)
    if records is not None:
        refuse_to_replace(out / LABELS)
    outcomes = _export_all(paths, out, spec, records, overwrite=o.overwrite)
    written = [each for each in outcomes if each.target is not None and not each.skipped]
    any_there = any(each.target is not None for each in outcomes)
    return ExportResult(
        out=out,
        written=tuple(each.target for each in written if each.target is not None),
        kept=tuple(each.target for each in outcomes if each.target is not None and each.skipped),
        num_patches=sum(each.num_patches for each in written),
        failed=tuple(each.error for each in outcomes if each.error is not None),
        labels=write_labels(out, cohort) if cohort is not None and any_there else None,
    )


def _export_all(
    paths: list[Path], out: Path, spec: ExportSpec, records: Mapping[str, SlideRecord] | None, *, overwrite: bool
) -> list[ExportOutcome]:
    """Export every cache, with a progress display."""
    from wsi_dbps.core.cores import num_cores
    from wsi_dbps.core.progress import Progress
    from wsi_dbps.exporting.export import export_caches

    outcomes: list[ExportOutcome] = []
    with Progress("exporting", len(paths), "slides") as progress:
        for outcome in export_caches(paths, out, spec, records=records, overwrite=overwrite, threads=num_cores()):
            outcomes.append(outcome)
            if outcome.error is not None:
                progress.say(outcome.error)
            elif outcome.target is None:
                progress.say(f"{outcome.path}: no patches, nothing to export")
            progress.advance(extra=f"{sum(each.num_patches for each in outcomes)} patches")
    return outcomes
