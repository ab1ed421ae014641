"""Say what files and folders are, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dbps.core.options import to_stderr
from wsi_dbps.formats.run_folders import paths_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say


@dataclass(frozen=True)
class Inspected:
    """One file or folder."""

    path: Path
    facts: Mapping[str, str]
    """What is known of it, by name, in the order of importance; empty if it cannot be used."""
    problem: str | None = None
    """Why it cannot be used, in one line or a line for each problem of a manifest."""

    @property
    def what(self) -> str | None:
        """What it is, for instance `cohort manifest`; None if it cannot be used."""
        return self.facts.get("what")

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.path}\n  cannot be used: {self.problem}"
        return "\n".join([str(self.path), *(f"  {name:<12} {value}" for name, value in self.facts.items())])


@dataclass(frozen=True)
class InspectResult:
    """What files and folders are, in the order in which they were named."""

    files: tuple[Inspected, ...]

    @property
    def failed(self) -> tuple[Path, ...]:
        """Those that cannot be used."""
        return tuple(each.path for each in self.files if each.problem is not None)

    @property
    def summary(self) -> str:
        """What the command prints."""
        return "\n".join(map(str, self.files))

    def __str__(self) -> str:
        return self.summary


def inspect(
    files: PathLike | Iterable[PathLike],
    *,
    say: Say = to_stderr,  # noqa: ARG001 - every workflow has it
) -> InspectResult:
    """Say what files and folders are, and what is in them.

    Slides, manifests, caches, files of features, attention and coordinates (also of TRIDENT, CLAM, hs2p and STAMP),
    checkpoints, folders of runs and of predictions.

    Args:
        files: A path, or several.
        say: Takes lines of notice.

    Returns:
        Facts about each; a file that cannot be used has its `problem` in place of facts, and raises nothing.
    """
    from wsi_dbps.core.errors import WsiDbpsError
    from wsi_dbps.inspection.describe import describe

    found = []
    for path in paths_of(files):
        try:
            found.append(Inspected(path, describe(path)))
        except WsiDbpsError as error:
            found.append(Inspected(path, {}, str(error)))
    return InspectResult(tuple(found))
