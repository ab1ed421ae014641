"""Colours by a slide's ICC profile: applied only when asked for, noted always."""

import struct
from pathlib import Path

import numpy as np
import pytest

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.errors import UnreadableSlideError
from wsi_dbps.core.settings import build
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.spec import CacheSpec
from wsi_dbps.slides.icc import profile_name, to_srgb
from wsi_dbps.slides.open import open_slide
from wsi_dbps.synth.pyramid import write_aperio
from wsi_dbps.tiling.outcomes import Tiled
from wsi_dbps.tiling.tile_slide import tile_slide

TILE = 64
SRGB = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
"""Primaries of sRGB in D50 XYZ, as IEC 61966-2-1's profiles state them."""
WHITE = (0.9642, 1.0, 0.8249)


def profile(primaries, gamma: float, name: str = "a scanner") -> bytes:
    """A display profile of three primaries and one tone curve: the least that ICC.1 allows."""

    def xyz(values) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))

    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
    text = name.encode() + b"\0"
    desc = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": desc, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": xyz(WHITE)}
    for letter, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags |= {letter + b"XYZ": xyz(primary), letter + b"TRC": curve}
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head = (head + bytes(12) + b"acsp").ljust(68, b"\0") + struct.pack(">3i", *(round(v * 65536) for v in WHITE))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def linear(value: np.ndarray) -> np.ndarray:
    """sRGB levels as light, by IEC 61966-2-1."""
    share = value / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def picture() -> np.ndarray:
    x, y = np.arange(384), np.arange(256)[:, None]
    waves = [130 + 80 * np.sin(x / a + y / b) for a, b in ((37, 23), (29, 45), (31, 51))]
    return np.stack(waves, axis=-1).astype(np.uint8)


def tile(folder: Path, icc_profile: bytes | None, **settings) -> tuple[PatchCache, tuple[str, ...]]:
    folder.mkdir(exist_ok=True)
    slide = folder / "a.svs"
    write_aperio(slide, picture(), mpp_um=0.25, tile_px=TILE, quality=95, icc_profile=icc_profile)
    tiling = {"mpp_um": 0.25, "size_px": TILE, "tissue": "none"}
    spec = build(CacheSpec, {"tiling": tiling, "quality": 95} | settings, "test")
    outcome = tile_slide(SlideRecord("a", "a", slide), spec, folder)
    assert isinstance(outcome, Tiled), outcome
    return PatchCache(outcome.path), outcome.notes


@pytest.mark.parametrize("codec", ["auto", "reader"])
def test_a_tone_curve_is_undone(tmp_path: Path, codec: str) -> None:
    """A profile with sRGB's primaries and gamma 1.0 holds light itself, which sRGB encodes."""
    stored, _ = tile(tmp_path / "keep", profile(SRGB, 1.0))
    shown, _ = tile(tmp_path / "srgb", profile(SRGB, 1.0), icc="srgb", codec=codec)
    assert (stored.facts.pixel_path, shown.facts.pixel_path) == ("copy", {"auto": "tiles"}.get(codec, codec))
    rows = range(len(stored))
    light = linear(shown.patches(rows).astype(float)) * 255
    assert np.abs(light - stored.patches(rows)).mean() < 3  # JPEG, twice


def test_the_profile_is_kept_with_the_patches_and_named(tmp_path: Path) -> None:
    import h5py

    stored = profile(SRGB, 1.0, "Leica GT450 no. 7")
    for icc in ("keep", "srgb"):
        cache, notes = tile(tmp_path / icc, stored, icc=icc)
        assert (cache.facts.icc_profile, bool(cache.facts.icc_applied)) == ("Leica GT450 no. 7", icc == "srgb")
        with h5py.File(cache.path) as file:
            assert file["icc_profile"][:].tobytes() == stored
        assert not notes


def test_a_profile_that_changes_nothing_costs_no_copy(tmp_path: Path) -> None:
    from PIL import ImageCms

    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert to_srgb(own) is None
    cache, _ = tile(tmp_path, own, icc="srgb")
    assert cache.facts.pixel_path == "copy"


def test_a_slide_without_a_profile_is_as_it_is_and_says_so(tmp_path: Path) -> None:
    cache, notes = tile(tmp_path, None, icc="srgb")
    assert (cache.facts.icc_profile, bool(cache.facts.icc_applied)) == ("", False)
    assert notes == ("no ICC profile that can be read; its colours are taken for sRGB",)


@pytest.mark.parametrize("reader", ["openslide", "tiffslide"])
def test_every_reader_hands_out_the_profile(tmp_path: Path, reader: str) -> None:
    stored = profile(SRGB, 1.8)
    write_aperio(tmp_path / "a.svs", picture(), mpp_um=0.25, tile_px=TILE, icc_profile=stored)
    with open_slide(tmp_path / "a.svs", reader) as slide:
        assert slide.info.icc_profile == stored


def test_a_flat_image_has_one_too(tmp_path: Path) -> None:
    from PIL import Image

    stored = profile(SRGB, 1.8)
    Image.fromarray(picture()).save(tmp_path / "a.png", icc_profile=stored)
    with open_slide(tmp_path / "a.png") as slide:
        assert slide.info.icc_profile == stored


def test_what_is_no_profile_is_named_and_refused(tmp_path: Path) -> None:
    assert profile_name(b"") == ""
    assert profile_name(b"not a profile").startswith("unreadable")
    with pytest.raises(UnreadableSlideError, match=r"its ICC profile cannot be applied \(.*\); tile with --icc keep$"):
        to_srgb(b"not a profile")
