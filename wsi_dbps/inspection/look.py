"""Look at a slide: its picture and its tissue; and read what earlier steps have left."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dbps.formats.spec import CacheSpec

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt

    from wsi_dbps.core.files import PathLike
    from wsi_dbps.formats.predictions import Predictions
    from wsi_dbps.slides.base import SlideReader
    from wsi_dbps.tiling.tissue import Method, TissueMask
    from wsi_dbps.training.checkpoint import Checkpoint


def thumbnail(slide: SlideReader | PathLike, max_px: int = CacheSpec.thumbnail_px) -> npt.NDArray[np.uint8]:
    """A picture of a whole slide, never enlarged.

    Args:
        slide: An open slide, or the path of a slide file.
        max_px: Longest side of the picture.

    Returns:
        (H, W, 3) RGB pixels.

    Raises:
        UnreadableSlideError: If the file cannot be read.
    """
    from wsi_dbps.slides.sampling import thumbnail as picture_of

    with _opened(slide) as reader:
        return picture_of(reader, max_px)


def find_tissue(
    slide: SlideReader | PathLike,
    method: Method = "stain",
    *,
    drop_pen: bool = True,
    mpp_um: float | None = None,
    thumbnail_px: int = CacheSpec.thumbnail_px,
) -> TissueMask:
    """The tissue of a slide, found as `tile` finds it.

    Args:
        slide: An open slide, or the path of a slide file.
        method: `stain`, `otsu`, `hsv` or `entropy`; see `wsi_dbps.tiling.tissue.segment`.
        drop_pen: Whether to leave out strokes of green, blue and black pens.
        mpp_um: µm per level-0 pixel; None: as the file has it.
        thumbnail_px: Longest side of the picture on which tissue is found.

    Returns:
        The mask; its (H, W) array `mask_HW` is stretched over the slide.

    Raises:
        UnreadableSlideError: If the file cannot be read.
        MissingMppError: If neither the file nor `mpp_um` says how large a pixel is.
    """
    from wsi_dbps.tiling.plan import resolve_mpp
    from wsi_dbps.tiling.tissue import segment

    with _opened(slide) as reader:
        mpp_lv0_um, _ = resolve_mpp("the slide", mpp_um, reader.info.mpp_um)
        picture = thumbnail(reader, thumbnail_px)
        return segment(picture, reader.info.size_lv0, mpp_lv0_um, method, drop_pen=drop_pen)


def _opened(slide: SlideReader | PathLike) -> AbstractContextManager[SlideReader]:
    """The slide, opened for the while if it is a path."""
    from wsi_dbps.slides.open import open_slide

    if isinstance(slide, (str, os.PathLike)):
        return open_slide(slide if isinstance(slide, str) else Path(slide))
    return nullcontext(slide)


def read_predictions(predictions: PathLike) -> Predictions:
    """The predictions in a folder of `predict`, or in a file predictions.csv.

    Raises:
        PredictionError: If there is no such file, or it holds what `predict` does not write.
    """
    from wsi_dbps.formats import predictions as files

    path = Path(predictions)
    return files.read_predicted(path) if path.is_dir() else files.read_predictions(path)


def load_run(run: PathLike) -> Checkpoint:
    """The model of a run's best epoch, with its classes and settings.

    Args:
        run: A run folder, or a checkpoint file.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    from wsi_dbps.training.checkpoint import load_checkpoint

    path = Path(run)
    return load_checkpoint(path / "best.pt" if path.is_dir() else path)
