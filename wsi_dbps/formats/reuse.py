"""The one rule of reuse: an output that is there already is kept only if its inputs and settings are the same.

If they are not, the error names every difference. What counts as an input is for the caller to say: only what decides
the content, never what merely tells where or when it was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from wsi_dbps.core.errors import SpecMismatchError, WsiDbpsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

IN_IT: Final = "{name} is {before} in it, {now} asked"


def differences(
    found: Mapping[str, Any], asked: Mapping[str, Any], *, words: Mapping[str, str] = {}, sentence: str = IN_IT
) -> list[str]:
    """A phrase for each thing asked for that is not the same in what was found.

    Args:
        found: What the output was made with, by name.
        asked: What it would be made with now; what it does not name is not compared.
        words: The whole phrase for some names, where value and value would tell a reader nothing.
        sentence: The phrase for the others.

    Examples:
        >>> differences({"mpp": 0.5, "size": 256}, {"mpp": 0.5, "size": 512, "seed": 1})
        ['size is 256 in it, 512 asked', 'seed is not named in it, 1 asked']
    """
    return [
        words.get(name)
        or sentence.format(name=name, before=repr(found[name]) if name in found else "not named", now=repr(now))
        for name, now in asked.items()
        if name not in found or found[name] != now
    ]


def is_kept(
    path: Path, found: Mapping[str, Any], asked: Mapping[str, Any], repair: str, *, overwrite: bool = False
) -> bool:
    """Whether an output stays as it is; False if it is to be overwritten.

    Raises:
        SpecMismatchError: If it was made otherwise and is not to be overwritten, with every difference and `repair`.
    """
    if not overwrite:
        refuse_others(f"{path} was made otherwise", differences(found, asked), repair)
    return not overwrite


def refuse_others(what: str, differ: list[str], repair: str, *, raised: type[WsiDbpsError] = SpecMismatchError) -> None:
    """Raise one error that names all differences, if there are any."""
    if differ:
        raise raised(f"{what}: {'; '.join(differ)}; {repair}")
