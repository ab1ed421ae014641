"""Slide ids name files: which ids can, which two ids would name the same file, and the id made from a file's name."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath

MAX_ID_BYTES = 200  # a file name has 255 at most; the rest is for endings such as .ome.tiff.wsi-dbps-part

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


def why_unsafe(slide_id: str) -> str | None:
    """Why an id cannot name a file on every system; None if it can. Letters of any script and emoji can.

    Examples:
        >>> why_unsafe("a/b")
        "it contains '/'"
        >>> why_unsafe("Präparat 7 🔬")
    """
    if unsafe := [char for char in slide_id if char in '/\\:*?"<>|' or unicodedata.category(char) in ("Cc", "Cs")]:
        return f"it contains {unsafe[0]!r}"
    if slide_id.startswith("."):
        return "it starts with a dot"
    if slide_id.endswith((".", " ")):
        return "it ends with a dot or a space"
    if slide_id.partition(".")[0].lower() in _RESERVED:
        return "Windows reserves that name"
    if (num_bytes := len(slide_id.encode())) > MAX_ID_BYTES:
        return f"it is {num_bytes} bytes long, at most {MAX_ID_BYTES} leave room for file endings"
    return None


def same_file_key(slide_id: str) -> str:
    """Equal for two ids that name one file where disks ignore case or Unicode form (macOS, Windows, many shares)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", slide_id).casefold())


def id_of_file(where: str) -> str:
    """The slide id that the name of a slide file makes: the name without its ending, of which `.ome.tif` is one.

    Args:
        where: A path or a URL.

    Examples:
        >>> id_of_file("slides/a.b.svs"), id_of_file("https://host/c.ome.tif?token=1")
        ('a.b', 'c')
    """
    stem = PurePosixPath(where.partition("?")[0]).stem if is_url(where) else Path(where).stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def is_url(where: str) -> bool:
    """Whether a cell names a file by a URL, and not by a path."""
    return "://" in where
