"""Slides behind a URL: the patches of the local file, out of ranges of bytes, and failures that name the URL."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.config import build
from wsi_dbps.errors import UnreadableSlideError
from wsi_dbps.patches.cache import PatchCache
from wsi_dbps.patches.spec import CacheSpec
from wsi_dbps.patches.tile import tile_slide
from wsi_dbps.slides.reader import open_slide
from wsi_dbps.slides.source import sampled_fingerprint
from wsi_dbps.synth.pyramid import write_aperio

pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A file server that honours `Range`, as object stores do, and counts what it sends."""

    sent = 0
    broken_after: int | None = None

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        if Ranges.broken_after is not None and Ranges.sent > Ranges.broken_after:
            self.send_error(503)
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), int(asked[2] or len(content)) + 1) if asked else (0, len(content))
        part = content[start:end]
        Ranges.sent += len(part)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    Ranges.sent, Ranges.broken_after = 0, None
    handler = functools.partial(Ranges, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def slide(folder: Path, side: int = 512) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    write_aperio(folder / "a.svs", noise, mpp_um=0.25, tile_px=64, downsamples=(1, 4))
    return folder / "a.svs"


def spec(**settings) -> CacheSpec:
    tiling = {"mpp_um": 0.25, "size_px": 64, "tissue": "none"} | settings.pop("tiling", {})
    return build(CacheSpec, {"tiling": tiling, "thumbnail_px": 200, "reader": "tiffslide"} | settings, "test")


@pytest.mark.parametrize(
    ("settings", "path"),
    [({}, "copy"), ({"tiling": {"mpp_um": 0.4}}, "tiles"), ({"codec": "reader"}, "reader")],
    ids=["copy", "tiles", "reader"],
)
def test_patches_are_those_of_the_local_file(tmp_path: Path, served: str, settings: dict, path: str) -> None:
    local = slide(tmp_path)
    near = tile_slide(SlideRecord("a", "a", local), spec(**settings), tmp_path / "near")
    far = tile_slide(SlideRecord("a", "a", url=f"{served}/a.svs"), spec(**settings), tmp_path / "far")
    assert (near.error, far.error, far.pixel_path) == (None, None, path)
    one, other = PatchCache(near.path), PatchCache(far.path)
    assert one.jpegs(range(len(one))) == other.jpegs(range(len(other)))
    assert one.fingerprint == other.fingerprint


def test_auto_reads_it_with_tiffslide(tmp_path: Path, served: str) -> None:
    local = slide(tmp_path)
    with open_slide(f"{served}/a.svs") as reader:
        assert (reader.info.reader, reader.info.mpp_um) == ("tiffslide", 0.25)
        assert reader.info.fingerprint == sampled_fingerprint(local)


def test_a_few_tiles_of_a_large_slide_are_a_part_of_its_bytes(tmp_path: Path, served: str) -> None:
    from wsi_dbps.slides.jpeg_tiles import JpegLevel, jpeg_levels
    from wsi_dbps.slides.source import ByteRanges

    local = slide(tmp_path, side=4096)
    with open_slide(f"{served}/a.svs") as reader:
        [level, *_] = jpeg_levels(f"{served}/a.svs", reader.info)
    assert isinstance(level, JpegLevel)
    with ByteRanges(f"{served}/a.svs") as file:
        assert all(isinstance(jpeg, bytes) for jpeg in level.jpegs(file, np.array([[5, 5], [6, 5], [7, 30]])))
    assert Ranges.sent < 0.2 * local.stat().st_size


def test_a_flat_image_is_read_too(tmp_path: Path, served: str) -> None:
    from PIL import Image

    Image.new("RGB", (90, 60), (9, 8, 7)).save(tmp_path / "a.png")
    with open_slide(f"{served}/a.png") as reader:
        assert str(reader.info.size_lv0) == "90 x 60"


def test_a_network_that_fails_fails_the_slide_and_is_no_damaged_tile(tmp_path: Path, served: str) -> None:
    slide(tmp_path, side=4096)
    Ranges.broken_after = 6_000_000
    record = SlideRecord("a", "a", url=f"{served}/a.svs")
    outcome = tile_slide(record, spec(max_damaged=1.0), tmp_path / "far")
    assert outcome.error is not None
    assert outcome.error.startswith(f"a: {served}/a.svs: ")
    assert "503" in outcome.error
    assert "\n" not in outcome.error
    assert not list(tmp_path.glob("far/*"))


@pytest.mark.parametrize(
    ("name", "reader", "said"),
    [
        ("none.svs", "auto", "none.svs: cannot be opened: FileNotFoundError"),
        ("a.svs", "openslide", "OpenSlide reads local files only; copy it, or pass --reader tiffslide"),
        ("text.mrxs", "auto", "neither a TIFF nor a flat image; of other formats only local files are read"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path: Path, served: str, name: str, reader: str, said: str) -> None:
    slide(tmp_path)
    (tmp_path / "text.mrxs").write_text("hello")
    with pytest.raises(UnreadableSlideError, match=re.escape(said)):
        open_slide(f"{served}/{name}", reader)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(UnreadableSlideError, match=r"^nowhere://b/a\.svs: cannot be opened: .*not known: nowhere"):
        open_slide("nowhere://b/a.svs")
