"""`wsi-dbps tile` and `wsi-dbps inspect` as a user meets them."""

import csv
import glob
import html
import os
import re
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np
import pytest
from PIL import Image

from wsi_dbps.core.files import write_text
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.tiling.contact_sheet import PER_PAGE, write_contact_sheet

ARGUMENTS = ("--size", 64, "--workers", 1)


@pytest.fixture
def cohort(slide_path: Path, blank_path: Path, tmp_path: Path):
    """Writes a manifest of `a`, a good slide, `blank`, one without tissue, and what else is given."""

    def write(*rows: str, name: str = "cohort.csv") -> Path:
        lines = ["slide_id,path,mpp", f"a,{slide_path},", f"blank,{blank_path},", *rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return write


def test_tiling_writes_a_cache_a_slide_says_what_is_empty_and_ends_with_0(wsi_dbps, cohort, tmp_path: Path) -> None:
    out = tmp_path / "caches"
    done = wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS)
    assert done.code == 0
    assert sorted(glob.glob("*", root_dir=out)) == ["a.h5", "blank.h5", "contact-sheet.html", "tiling.csv"]
    num_patches = len(PatchCache(out / "a.h5"))
    assert done.err == "blank: no tissue found; no patches\n"
    pattern = rf"2 slides tiled \({num_patches} patches, \d+/s\), 0 kept as they were, 0 failed: {out}\n"
    assert re.fullmatch(pattern, done.out)
    again = wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS)
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("0 slides tiled (0 patches, 0/s), 2 kept as they were, 0 failed")


def test_one_bad_slide_ends_with_1_and_is_named(wsi_dbps, cohort, tmp_path: Path) -> None:
    bad, flat = tmp_path / "bad.svs", tmp_path / "flat.png"
    bad.write_text("hello")
    Image.fromarray(np.zeros((99, 99, 3), np.uint8)).save(flat)
    manifest, out = cohort("bad,bad.svs,", "flat,flat.png,"), tmp_path / "caches"
    done = wsi_dbps("tile", manifest, "--out", out, *ARGUMENTS)
    assert done.code == 1
    assert sorted(glob.glob("*", root_dir=out)) == ["a.h5", "blank.h5", "contact-sheet.html", "tiling.csv"]
    assert sorted(done.err.splitlines()) == [
        f"bad: {bad}: not a slide: neither OpenSlide nor tiffslide knows the format",
        "blank: no tissue found; no patches",
        f"flat: {flat}: no mpp in the file; add an mpp column to the manifest for flat",
    ]
    assert "2 slides tiled" in done.out
    assert "2 failed" in done.out


def test_other_settings_on_the_same_folder_end_with_1_and_overwrite_helps(wsi_dbps, cohort, tmp_path: Path) -> None:
    out = tmp_path / "caches"
    assert wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS).code == 0
    done = wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS, "--quality", 80)
    assert done.code == 1
    said = f"a: {out}/a.h5 was made otherwise: quality is 90 in it, 80 asked; pass --overwrite, or another --out folder"
    assert said in done.err.splitlines()
    done = wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS, "--quality", 80, "--overwrite")
    assert done.code == 0
    assert PatchCache(out / "a.h5").facts.jpeg_quality == 80


def table(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "tiling.csv", newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def heading(out: Path) -> str:
    return re.search("<h1>(.*)</h1>", (out / "contact-sheet.html").read_text())[1]


def test_a_refused_run_leaves_table_and_sheet_as_true_as_they_were(wsi_dbps, cohort, tmp_path: Path) -> None:
    out = tmp_path / "caches"
    assert wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS).code == 0
    files = {name: (out / name).read_bytes() for name in glob.glob("*", root_dir=out)}
    assert (table(out)["a"]["status"], table(out)["a"]["reason"]) == ("tiled", "")
    assert heading(out) == "2 slides, 1 to look at"  # `blank`
    assert wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS, "--mpp", 1.0).code == 1
    assert {name: (out / name).read_bytes() for name in glob.glob("*", root_dir=out)} == files
    assert wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS).code == 0
    assert {name: (out / name).read_bytes() for name in glob.glob("*", root_dir=out)} == files


def test_the_table_says_what_is_true_of_the_caches_that_are_there(wsi_dbps, cohort, tmp_path: Path) -> None:
    out, bad = tmp_path / "caches", tmp_path / "bad.tif"
    bad.write_text("hello")
    manifest = cohort("bad,bad.tif,")
    assert wsi_dbps("tile", manifest, "--out", out, *ARGUMENTS).code == 1
    assert table(out)["bad"]["status"] == "failed"
    before = table(out)["a"]
    bad.write_bytes((out / "a.h5").read_bytes())  # still no slide
    (out / "bad.h5").write_bytes((out / "blank.h5").read_bytes())
    (out / "a.h5").write_text("damaged")
    assert wsi_dbps("tile", manifest, "--out", out, *ARGUMENTS).code == 1
    assert table(out)["a"]["status"] == "failed"
    assert "not a readable patch cache" in table(out)["a"]["reason"]
    assert heading(out) == "3 slides, 3 to look at"
    (out / "a.h5").unlink()
    assert wsi_dbps("tile", manifest, "--out", out, *ARGUMENTS).code == 1
    assert {k: v for k, v in table(out)["a"].items() if k != "seconds"} == {
        k: v for k, v in before.items() if k != "seconds"
    }
    (out / "tiling.csv").unlink()  # a cache that is kept and has no row gets one from what it holds
    assert wsi_dbps("tile", manifest, "--out", out, *ARGUMENTS).code == 1
    assert table(out)["a"] == before | {"status": "kept", "seconds": ""}
    (out / "blank.h5").unlink()
    assert wsi_dbps("tile", manifest, "--out", out, *ARGUMENTS, "--slide", "a").code == 0
    assert sorted(table(out)) == ["a", "bad"]


def test_one_slide_can_be_tiled_again_and_the_sheet_keeps_the_others(wsi_dbps, cohort, tmp_path: Path) -> None:
    out = tmp_path / "caches"
    assert wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS).code == 0
    (out / "a.h5").write_text("damaged")
    blank = (out / "blank.h5").stat()
    assert wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS, "--slide", "a").code == 1
    done = wsi_dbps("tile", cohort(), "--out", out, *ARGUMENTS, "--slide", "a", "--overwrite")
    assert done.code == 0
    assert done.out.startswith("1 slides tiled")
    assert len(PatchCache(out / "a.h5")) > 0
    assert (out / "blank.h5").stat() == blank
    assert heading(out) == "2 slides, 1 to look at"
    done = wsi_dbps("tile", cohort(), "--out", out, "--slide", "a", "--slide", "A")
    assert (done.code, done.err) == (
        2,
        f"wsi-dbps: --slide A: {tmp_path}/cohort.csv has no slide of this id; name one of its column slide_id\n",
    )


def test_a_long_sheet_has_pages_the_doubtful_slides_first(
    wsi_dbps, slide_path: Path, blank_path: Path, cache_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "caches"
    out.mkdir()
    ids = [f"s {i:03d}&" for i in range(PER_PAGE + 20)]
    for name in ids:
        os.link(cache_file, out / f"{name}.h5")
    (out / "damaged.h5").write_text("damaged")
    write_text(out / "contact-sheet-3.html", "of a longer sheet")
    (out / "contact-sheet-4.html").write_text("a user's")
    (out / "contact-sheet-old.html").write_text("a user's")
    assert write_contact_sheet([*ids, "damaged"], out) == out / "contact-sheet.html"
    pages = [(out / name).read_text() for name in ("contact-sheet.html", "contact-sheet-2.html")]
    assert not (out / "contact-sheet-3.html").exists()
    for name in ("contact-sheet-4.html", "contact-sheet-old.html"):
        assert (out / name).read_text() == "a user's"
    assert [page.count("<figure") for page in pages] == [PER_PAGE, 21]
    assert [page.count("<h1>121 slides, 1 to look at</h1>") for page in pages] == [1, 1]
    shown = [html.unescape(name) for page in pages for name in re.findall("<figcaption><b>(.*?)</b>", page)]
    assert shown == ["damaged", *ids]
    links = re.findall('href="(contact-sheet[^"#]*)(?:#([^"]*))?"', pages[0])
    assert links[0] == ("contact-sheet-2.html", "")
    assert len(links) == 122
    places = dict(zip(("contact-sheet.html", "contact-sheet-2.html"), pages, strict=True))
    for name, anchor in links[1:]:
        assert f"id='{html.escape(unquote(anchor))}'" in places[name]
    assert '<a href="contact-sheet.html">1 (1 to look at)</a>' in pages[1]
    assert write_contact_sheet(ids[:5], out).exists()
    assert not (out / "contact-sheet-2.html").exists()


def test_a_dry_run_prints_a_table_and_writes_nothing(wsi_dbps, cohort, slide_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "caches"
    done = wsi_dbps("tile", cohort("c,gone-wrong.svs,0.25"), "--out", out, "--size", 64, "--dry-run")
    assert done.code == 2  # a missing file is the manifest's mistake
    (tmp_path / "flat.png").write_bytes(b"not a picture")
    done = wsi_dbps("tile", cohort("c,flat.png,0.25", f"d,{slide_path},0.25"), "--out", out, "--size", 64, "--dry-run")
    assert done.code == 1
    assert not out.exists()
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert lines[0] == "slide vendor size mpp from level tiles size MB"
    assert re.fullmatch(r"a generic-tiff 700 x 500 0\.5 file 0 \d+ 0\.\d", lines[1])
    assert lines[2:4] == ["blank generic-tiff 400 x 300 0.5 file 0 0 0.0", "no tissue found; no patches"]
    assert lines[4].startswith(f"fails: c: {tmp_path}/flat.png: not a readable image: ")
    assert re.fullmatch(r"d generic-tiff 700 x 500 0\.25 manifest 0 \d+ 0\.\d", lines[5])
    assert lines[6] == "the manifest says 0.25 µm/px and the file 0.5; the manifest is believed"
    assert re.fullmatch(r"4 slides, 1 would fail; \d+ tiles, about 0 MB; nothing was written", lines[7])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--overlap", 64), "wsi-dbps: tile: tiling: overlap_px must lie in 0 .. size_px - 1 = 63, found 64"),
        (("--mpp", 0), "mpp_um must be above 0, found 0.0"),
        (("--quality", 101), "wsi-dbps: tile: quality must lie in 1 .. 100, found 101"),
        (("--min-tissue", 2), "min_tissue must lie in 0 .. 1, found 2.0"),
        (("--reader", "cucim"), "'cucim' is not one of 'auto', 'openslide', 'tiffslide', 'image'"),
        (("--workers", -1), "Invalid value for '--workers'"),
        (("--workers", 10**9), "Invalid value for '--workers'"),
        (("--time-limit", "inf"), "time_limit: Input should be a finite number, found inf"),
        (("--time-limit", "nan"), "time_limit: Input should be a finite number, found nan"),
        (("--time-limit", -1), "--time-limit -1: expected 1 to 2592000 seconds (30 days), or 0 for no limit"),
        (("--mpp", "inf"), "wsi-dbps: tile: mpp: Input should be a finite number, found inf"),
        (("--mpp", 1e300), "mpp_um must be at most 1000, found 1e+300"),
        (("--mag", "nan"), "Invalid value for '--mag'"),
        (("--size", 0), "size_px must be at least 1, found 0"),
        (("--size", 10**30), "a patch is a JPEG of at most 65500 px"),
        (("--min-tissue", "nan"), "min_tissue: Input should be a finite number, found nan"),
        (("--native-tolerance", "nan"), "native_tolerance: Input should be a finite number, found nan"),
    ],
)
def test_a_request_that_cannot_be_met_ends_with_2(wsi_dbps, cohort, tmp_path: Path, arguments, said: str) -> None:
    done = wsi_dbps("tile", cohort(), "--out", tmp_path / "caches", "--size", 64, *arguments)
    assert done.code == 2
    assert said in " ".join(done.err.replace("│", " ").split())
    assert not (tmp_path / "caches").exists()


def test_an_output_folder_that_cannot_be_written_ends_with_2_in_one_line(wsi_dbps, cohort, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    done = wsi_dbps("tile", cohort(), "--out", tmp_path / "out", *ARGUMENTS)
    assert done.code == 2
    pattern = rf"wsi-dbps: {tmp_path}/out/\w+\.h5: cannot be written: (File exists|Not a directory)\n"
    assert re.fullmatch(pattern, done.err)


def test_a_cohort_that_is_not_there_ends_with_2(wsi_dbps, tmp_path: Path) -> None:
    done = wsi_dbps("tile", tmp_path / "none.csv", "--out", tmp_path / "caches")
    assert done.code == 2
    assert done.err.startswith(f"wsi-dbps: {tmp_path}/none.csv")
    assert done.err.count("\n") == 1


def test_inspect_says_what_a_slide_and_a_cache_are(wsi_dbps, slide_path: Path, cache_file: Path) -> None:
    done = wsi_dbps("inspect", slide_path, cache_file)
    assert done.code == 0
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert lines[:5] == [
        str(slide_path),
        "what slide (generic-tiff, read by openslide)",
        "size 700 x 500 px",
        "mpp 0.5 µm/px",
        "levels 700 x 500 (1/1), 175 x 125 (1/4)",
    ]
    cache = PatchCache(cache_file)
    assert re.fullmatch(r"what patch cache \(version 1, wsi-dbps [\d.]+\S*\)", lines[7])
    assert lines[8:12] == [
        "slide a, 700 x 500 px at 0.5 µm/px (from the file)",
        "scanner generic-tiff, read by openslide",
        f"patches {len(cache)} of 64 px at 0.5 µm/px, {cache.num_bytes / 1e6:.1f} MB",
        "jpeg quality 90",
    ]


def test_inspect_names_what_it_cannot_use_and_ends_with_1(wsi_dbps, cache_file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("hello")
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "cut.h5").write_bytes(cache_file.read_bytes()[:9000])
    with h5py.File(tmp_path / "trident.h5", "w") as file:
        file["coords"] = np.zeros((3, 2), np.int64)
    names = ["gone.svs", "gone.h5", "text.svs", "text.h5", "cut.h5", "trident.h5", "."]
    done = wsi_dbps("inspect", *(tmp_path / name for name in names))
    assert done.code == 1
    said = done.out.splitlines()[1::2]
    assert len(said) == len(names)
    ends = ["no such file", "no such file", "knows the format", "not an HDF5 file", "tile again", "--out folder", "it"]
    for line, end in zip(said, ends, strict=True):
        assert line.startswith("  cannot be used: ")
        assert line.endswith(end)
