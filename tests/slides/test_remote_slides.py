"""Slides behind a URL: the patches of the local file, out of ranges of bytes, and failures that name the URL."""

import contextlib
import functools
import http.server
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.core.errors import SlideError, UnreadableSlideError
from wsi_dbps.core.geometry import Region
from wsi_dbps.core.settings import build
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.spec import CacheSpec
from wsi_dbps.slides import source
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.source import ByteRanges, opened, sampled_fingerprint
from wsi_dbps.synth.pyramid import write_aperio
from wsi_dbps.tiling.outcomes import Failed, Tiled
from wsi_dbps.tiling.tile_slide import tile_slide

pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A file server that honours `Range`, as object stores do, and counts what it sends."""

    sent = 0
    broken_after: int | None = None
    silent_after: int | None = None
    ended = threading.Event()
    ranges = "honoured"

    def do_HEAD(self) -> None:
        if Ranges.silent_after == 0:
            Ranges.ended.wait(60)
            return
        super().do_HEAD()

    def end_headers(self) -> None:
        if Ranges.ranges == "says none":
            self.send_header("Accept-Ranges", "none")
        super().end_headers()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        if Ranges.broken_after is not None and Ranges.sent > Ranges.broken_after:
            self.send_error(503)
            return
        if Ranges.silent_after is not None and Ranges.sent >= Ranges.silent_after:
            Ranges.ended.wait(60)
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "") * (Ranges.ranges == "honoured"))
        start, end = (int(asked[1]), int(asked[2] or len(content)) + 1) if asked else (0, len(content))
        part = content[start:end]
        Ranges.sent += len(part)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        if Ranges.ranges == "honoured":
            self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked has gone
            self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    Ranges.sent, Ranges.broken_after, Ranges.silent_after, Ranges.ranges = 0, None, None, "honoured"
    Ranges.ended.clear()
    handler = functools.partial(Ranges, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        Ranges.ended.set()
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
    assert (type(near), type(far), far.pixel_path) == (Tiled, Tiled, path)
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
    assert isinstance(outcome, Failed)
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


ALLOWED = "allowed are a local path and file://, http://, https://, s3://, gs://, az://, abfs://"


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("nowhere://b/a.svs", "'nowhere'"),
        ("reference://x.svs", "'reference'"),
        ("memory://x.svs", "'memory'"),
        ("HTTPS://x/a.svs", "'HTTPS'"),
        ("simplecache::https://x/a.svs", "'simplecache' (a chain of protocols)"),
        ("zip://a.svs::https://x/a.zip", "'zip://a.svs' (a chain of protocols)"),
        ("https://x/a.svs::file:///etc/a.svs", "'https://x/a.svs' (a chain of protocols)"),
        ("reference::file:///a.json", "'reference' (a chain of protocols)"),
    ],
)
def test_only_known_protocols_are_opened_and_nothing_is_loaded_for_others(url: str, protocol: str) -> None:
    loaded = set(sys.modules)
    said = f"{url}: the protocol {protocol} is not opened; {ALLOWED}"
    for open_it in (open_slide, ByteRanges, opened):
        with pytest.raises(UnreadableSlideError, match=f"^{re.escape(said)}$"):
            open_it(url)
    assert not {name for name in set(sys.modules) - loaded if name.startswith("fsspec")}


def test_a_local_name_with_two_colons_is_no_chain(tmp_path: Path) -> None:
    path = tmp_path / "reference::a.svs"
    slide(tmp_path).rename(path)
    with open_slide(path, "tiffslide") as reader:
        assert reader.read(Region(0, 0, 0, 9, 9)).shape == (9, 9, 3)


@pytest.mark.parametrize("way", ["says none", "says nothing"])
def test_a_server_that_sends_whole_files_only_is_said_in_one_line(tmp_path: Path, served: str, way: str) -> None:
    slide(tmp_path, side=1024)
    Ranges.ranges = way
    said = "the server sends whole files only, not the parts that are asked for (HTTP Range requests); download the"
    outcome = tile_slide(SlideRecord("a", "a", url=f"{served}/a.svs"), spec(), tmp_path / "far")
    assert isinstance(outcome, Failed)
    assert outcome.traceback is None
    assert said in outcome.error
    assert "\n" not in outcome.error
    with ByteRanges(f"{served}/a.svs") as file, pytest.raises(SlideError, match=re.escape(said)):
        file.read(100, 16)


@pytest.mark.parametrize("silent_after", [0, 300_000])
def test_a_server_that_falls_silent_is_given_up_and_said(tmp_path: Path, served: str, monkeypatch, silent_after: int):
    slide(tmp_path, side=1024)
    monkeypatch.setattr(source, "TIMEOUT_S", 0.5)
    Ranges.silent_after = silent_after
    outcome = tile_slide(SlideRecord("a", "a", url=f"{served}/a.svs"), spec(max_damaged=1.0), tmp_path / "far")
    assert isinstance(outcome, Failed)
    assert outcome.traceback is None
    assert outcome.error.startswith(f"a: {served}/a.svs: cannot be ")
    assert "no answer within 0.5 s (TIMEOUT_S in wsi_dbps/slides/source.py); check that the server" in outcome.error
