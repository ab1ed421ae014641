"""Slide ids name files: which ids can, and which two would name the same one."""

from __future__ import annotations

import unicodedata

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
