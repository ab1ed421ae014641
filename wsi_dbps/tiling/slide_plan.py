"""What is decided about a slide before its patches are read: tissue, tiles, and where their pixels come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from wsi_dbps.core.digests import file_digest
from wsi_dbps.core.errors import SlideError, UnreadableSlideError
from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.formats.cache_writer import PixelSource, Provenance
from wsi_dbps.slides.icc import in_colours, to_srgb
from wsi_dbps.slides.jpeg_tiles import JpegLevel, jpeg_levels
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.readers.tiles import TileReader, steps
from wsi_dbps.slides.sampling import best_level, thumbnail
from wsi_dbps.tiling.given_coords import find_coords, read_coords
from wsi_dbps.tiling.masks import read_mask
from wsi_dbps.tiling.plan import TilePlan, plan_tiles, resolve_mpp
from wsi_dbps.tiling.tissue import METHODS, Method, TissueMask, everywhere, segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.formats.spec import CacheSpec
    from wsi_dbps.slides.base import SlideInfo, SlideReader
    from wsi_dbps.tiling.given_coords import GivenCoords


@dataclass(frozen=True)
class SlidePlan:
    """All that is decided about a slide before its patches are read."""

    record: SlideRecord
    spec: CacheSpec
    """What was asked for; where another tool chose the tiles, with their resolution and size."""
    info: SlideInfo
    plan: TilePlan
    provenance: Provenance
    thumbnail_HWC: npt.NDArray[np.uint8]
    """(H, W, 3) picture of the whole slide, in the colours of the patches."""
    mask: TissueMask
    tiles: list[JpegLevel | str]
    """The JPEG tiles of each stored level, or why they cannot be read; empty with `--codec reader`."""
    pixels: PixelSource


def plan_slide(record: SlideRecord, spec: CacheSpec) -> SlidePlan:
    """Decide a slide's tiles without writing anything.

    Raises:
        SlideError: If the slide cannot be opened or tiled.
    """
    with open_record(record, spec) as reader:
        given, spec = given_tiles(reader.info, record, spec)
        return decide(reader, record, spec, given)


def open_record(record: SlideRecord, spec: CacheSpec) -> SlideReader:
    """Open the slide file of a record.

    Raises:
        SlideError: If there is none, or it cannot be opened.
    """
    if record.file is None:
        raise UnreadableSlideError("no path in the manifest")
    return open_slide(record.file, spec.reader)


def given_tiles(info: SlideInfo, record: SlideRecord, spec: CacheSpec) -> tuple[GivenCoords | None, CacheSpec]:
    """The tiles that another tool chose, and the spec with their resolution and size; else None, and the spec itself.

    Raises:
        SlideError: If the other tool's file is missing or cannot be used, or the slide has no mpp.
    """
    if record.coords is None:
        return None, spec
    given = read_coords(find_coords(record.coords, record.slide_id), info)
    mpp_um, _ = resolve_mpp(record.slide_id, record.mpp_um, info.mpp_um)
    return given, replace(spec, tiling=given.tiling(mpp_um))


def provenance_of(info: SlideInfo, record: SlideRecord, given: GivenCoords | None) -> tuple[float, Provenance]:
    """µm per level-0 pixel, and where the slide's patches will come from.

    Raises:
        SlideError: If the slide has no usable mpp, or its mask cannot be read.
    """
    mpp_um, source = resolve_mpp(record.slide_id, record.mpp_um, info.mpp_um)
    try:
        if given is not None:
            mask_fingerprint = given.fingerprint
        else:
            mask_fingerprint = file_digest(record.mask) if record.mask is not None else record.extra.get("tissue", "")
    except OSError as error:
        raise SlideError(f"mask {record.mask}: cannot be read: {error.strerror}") from None
    return mpp_um, Provenance(record.slide_id, info.fingerprint, info.vendor, info.reader, source, mask_fingerprint)


def decide(reader: SlideReader, record: SlideRecord, spec: CacheSpec, given: GivenCoords | None) -> SlidePlan:
    """Decide the tiles of an open slide.

    Args:
        reader: The slide.
        record: Its row of the manifest.
        spec: What to make, as `given_tiles` returns it.
        given: The tiles that another tool chose, if any.

    Raises:
        SlideError: If the slide cannot be tiled as asked.
    """
    info = reader.info
    mpp_um, provenance = provenance_of(info, record, given)
    tiles = jpeg_levels(record.file, info) if record.file is not None and spec.codec != "reader" else []
    picture = _thumbnail(reader, tiles, spec)
    mask = _mask(record, spec, given, info, mpp_um, picture)
    native, why = _native_level(tiles, info, mpp_um, spec, given)
    tiling = spec.tiling
    if native is not None:
        tiling = replace(tiling, mpp_um=mpp_um * info.levels[native].downsample)
    elif spec.codec == "copy":
        raise SlideError(f"the scanner's tiles cannot be copied: {why}; tile with --codec auto")
    if given is None:
        plan = plan_tiles(mask, mpp_um, tiling)
    else:
        grid = TileGrid(given.origins_lv0, given.tile_lv0, info.size_lv0, mpp_um, tiling.size_px, tiling.mpp_um)
        plan = TilePlan(tiling, grid, given.tissue_N)
    pixels = PixelSource("copy", native) if native is not None else _resampled(tiles, info, plan, why)
    level = info.levels[pixels.level]
    if abs(plan.grid.tile_lv0 - tiling.size_px * level.downsample) < 1e-6 * plan.grid.tile_lv0:
        pixels = replace(pixels, level_px=level.size)
    return SlidePlan(record, spec, info, plan, provenance, picture, mask, tiles, pixels)


def _mask(
    record: SlideRecord,
    spec: CacheSpec,
    given: GivenCoords | None,
    info: SlideInfo,
    mpp_um: float,
    picture_HWC: npt.NDArray[np.uint8],
) -> TissueMask:
    """The slide's tissue: where given tiles lie, from the manifest's mask, or found on the picture."""
    grid, tissue = Size(picture_HWC.shape[1], picture_HWC.shape[0]), _tissue(record, spec)
    if given is not None:
        return given.covered(info.size_lv0, grid)
    if record.mask is not None:
        return read_mask(record.mask, info.size_lv0, grid)
    if tissue == "none":
        return everywhere(info.size_lv0)
    return segment(picture_HWC, info.size_lv0, mpp_um, tissue, drop_pen=spec.tiling.drop_pen)


def _thumbnail(reader: SlideReader, tiles: Sequence[JpegLevel | str], spec: CacheSpec) -> npt.NDArray[np.uint8]:
    """The slide's picture; from its own JPEG tiles, decoded at a fraction of their size, where it has them."""
    if not any(isinstance(level, JpegLevel) for level in tiles):
        return thumbnail(in_colours(reader, spec.icc), spec.thumbnail_px)
    with TileReader(reader, tiles) as fast:
        return thumbnail(in_colours(fast, spec.icc), spec.thumbnail_px)


def _tissue(record: SlideRecord, spec: CacheSpec) -> Method | Literal["none"]:
    """How the slide's tissue is found: the manifest's word for it, or the spec's."""
    asked = record.extra.get("tissue") or spec.tiling.tissue
    if asked not in (*METHODS, "none"):
        raise SlideError(f"the manifest's tissue is {asked!r}; it must be {', '.join(METHODS)} or none")
    return cast("Method | Literal['none']", asked)


def _native_level(
    tiles: Sequence[JpegLevel | str], info: SlideInfo, mpp_um: float, spec: CacheSpec, given: GivenCoords | None
) -> tuple[int | None, str]:
    """The level whose stored tiles are the patches asked for; or None, and why not."""
    if spec.codec in ("jpeg", "reader"):
        return None, f"--codec {spec.codec}"
    if spec.icc == "srgb" and info.icc_profile and to_srgb(info.icc_profile):
        return None, "its ICC profile is to be applied"
    asked, found = spec.tiling, [level.downsample * mpp_um for level in info.levels]
    near = [i for i, um in enumerate(found) if abs(um / asked.mpp_um - 1) <= spec.native_tolerance]
    if not near:
        return None, f"no level has {asked.mpp_um:g} µm/px, they have {', '.join(f'{um:.4g}' for um in found)}"
    level = min(near, key=lambda i: abs(found[i] / asked.mpp_um - 1))
    stored, why = tiles[level], ""
    if isinstance(stored, str):
        why = stored
    elif asked.overlap_px:
        why = "patches overlap"
    elif stored.tile_px != asked.size_px:
        why = f"the scanner's tiles have {stored.tile_px} px, the patches {asked.size_px}"
    elif info.levels[level].downsample % 1:
        why = f"level {level} is {info.levels[level].downsample:.6g} times smaller, not a whole number"
    elif given is not None and not given.are_cells(stored.tile_px * info.levels[level].downsample):
        why = "the given tiles are not the scanner's"
    return (None, why) if why else (level, "")


def _resampled(tiles: Sequence[JpegLevel | str], info: SlideInfo, plan: TilePlan, why: str) -> PixelSource:
    """What to read for patches that have to be decoded."""
    downsample = plan.grid.tile_lv0 / plan.spec.size_px
    if any(isinstance(level, JpegLevel) for level in tiles):
        levels, sources = steps(info, tiles)
        source = sources[best_level(levels, downsample)]
        if source.tiles is not None:
            return PixelSource("tiles", source.level, source.scale, why)
    return PixelSource("reader", best_level(info.levels, downsample), why=why)
