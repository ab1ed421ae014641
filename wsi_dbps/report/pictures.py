"""Pictures within a report: which slides to show, and files as data that the page itself holds."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Final

from wsi_dbps.core.errors import PredictionError

if TYPE_CHECKING:
    from pathlib import Path

WIDTH_PX: Final = 1100
MAX_BYTES: Final = 110_000
"""Of one picture, before base64: twenty of them are 3 MB at worst."""
_QUALITIES: Final = (82, 70, 55, 40, 25)


def inline_picture(path: Path) -> str | None:
    """A picture as a WebP within a data URL, at most 1100 px wide; None where there is no such file.

    Raises:
        PredictionError: If the file is no picture.
    """
    from PIL import Image

    if not path.is_file():
        return None
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise PredictionError(f"{path}: not a picture that can be shown: {error}; draw it again") from None
    if picture.width > WIDTH_PX:
        size = (WIDTH_PX, max(1, round(picture.height * WIDTH_PX / picture.width)))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    for quality in _QUALITIES:
        out = io.BytesIO()
        picture.save(out, format="webp", quality=quality)
        if out.tell() <= MAX_BYTES:
            break
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def atlas_pictures(folder: Path, num_slides: int = 4) -> list[tuple[str, str]]:
    """(name, picture): how selection moved over training, then the maps of the first slides.

    Raises:
        PredictionError: If the folder holds no PNG file.
    """
    curves = folder / "churn_entropy.png"
    paths = [path for path in sorted(folder.glob("*.png")) if path != curves][:num_slides]
    named = [("Churn and entropy of the choice", curves), *((path.stem.removesuffix(".atlas"), path) for path in paths)]
    found = [(name, image) for name, path in named if (image := inline_picture(path))]
    if not found:
        raise PredictionError(f"{folder}: holds no PNG file of a selection atlas")
    return found
