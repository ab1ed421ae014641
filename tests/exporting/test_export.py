"""What is exported is what is cached, whole or absent, and the same on every run."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.cohort.names import why_unsafe
from wsi_dbps.core.errors import OutputError
from wsi_dbps.core.files import claimed
from wsi_dbps.core.ownership import RECORD
from wsi_dbps.exporting.export import (
    LABELS,
    ExportSpec,
    export_cache,
    export_caches,
    find_caches,
    sample_key,
    write_labels,
)
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.tiling.outcomes import Tiled
from wsi_dbps.tiling.tile_slide import tile_slide

ID = "TCGA-A8 é.8F5C%2E"
FORMATS = ("jpeg", "png", "tar")
PAGE = Path(__file__).parents[2] / "docs" / "formats" / "export.md"

slide_ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda text: not why_unsafe(text))
places = st.tuples(slide_ids, st.integers(0, 10**6), st.integers(0, 10**6))


@pytest.fixture(scope="session")
def many(slide_path: Path, make_spec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of more patches than are held at a time, of a slide with an odd id; read only."""
    folder = tmp_path_factory.mktemp("many")
    assert isinstance(tile_slide(SlideRecord(ID, "p1", slide_path), make_spec(size_px=32), folder), Tiled)
    return folder / f"{ID}.h5"


@pytest.fixture
def mine(many: Path, tmp_path: Path) -> Path:
    """A copy of the cache, to be damaged."""
    return Path(shutil.copy(many, tmp_path))


def export(path: Path, out: Path, format_: str, *, overwrite: bool = False, **settings) -> Path:
    outcome = export_cache(path, out, ExportSpec(format=format_, **settings), overwrite=overwrite, threads=2)
    assert outcome.error is None
    return outcome.target


def refusal(path: Path, out: Path, format_: str = "jpeg", **settings) -> str:
    outcome = export_cache(path, out, ExportSpec(format=format_, **settings))
    assert outcome.target is None
    assert "\n" not in outcome.error
    return outcome.error


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "coordinates.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def samples(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Samples of a TAR as the WebDataset convention has it: a key ends at the first dot of the file's name."""
    found: list[tuple[str, dict[str, bytes]]] = []
    with tarfile.open(path) as archive:
        for member in archive:
            key, ending = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", member.name).groups()
            if not found or found[-1][0] != key:
                found.append((key, {}))
            assert ending not in found[-1][1]
            found[-1][1][ending] = archive.extractfile(member).read()
    return found


def content(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("[!.]*")) if path.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(set(os.listdir(folder)) - {RECORD})


# Laws


def test_every_exported_jpeg_is_the_cached_one_byte_for_byte(many: Path, tmp_path: Path) -> None:
    cache, folder = PatchCache(many), export(many, tmp_path, "jpeg")
    assert len(cache) > 128
    assert [(folder / row["file"]).read_bytes() for row in table(folder)] == cache.jpegs(range(len(cache)))


def test_every_exported_png_has_the_pixels_of_the_patch(many: Path, tmp_path: Path) -> None:
    cache, folder = PatchCache(many), export(many, tmp_path, "png")
    found = np.stack([np.asarray(Image.open(folder / row["file"])) for row in table(folder)])
    np.testing.assert_array_equal(found, cache.patches(range(len(cache))))


@pytest.mark.parametrize("format_", ["jpeg", "png"])
def test_the_table_holds_every_file_with_its_place_in_the_order_of_the_cache(
    many: Path, tmp_path: Path, format_: str
) -> None:
    cache, folder = PatchCache(many), export(many, tmp_path, format_)
    rows = table(folder)
    assert sorted(row["file"] for row in rows) == sorted({*names(folder)} - {"coordinates.csv", "slide.json"})
    assert [(int(row["x"]), int(row["y"])) for row in rows] == [tuple(xy) for xy in cache.grid.origins_lv0.tolist()]
    np.testing.assert_array_equal(np.array([row["tissue"] for row in rows], np.float32), cache.tissue_N)


def test_members_of_a_tar_pair_up_and_hold_the_cache(many: Path, tmp_path: Path) -> None:
    cache, found = PatchCache(many), samples(export(many, tmp_path, "tar"))
    assert [set(sample) for _, sample in found] == [{"jpg", "json"}] * len(cache)
    assert [sample["jpg"] for _, sample in found] == cache.jpegs(range(len(cache)))
    about = [json.loads(sample["json"]) for _, sample in found]
    assert [(a["x"], a["y"]) for a in about] == [tuple(xy) for xy in cache.grid.origins_lv0.tolist()]
    np.testing.assert_array_equal(np.array([a["tissue"] for a in about], np.float32), cache.tissue_N)
    assert {a["slide_id"] for a in about} == {ID}
    assert [key for key, _ in found] == [sample_key(ID, a["x"], a["y"]) for a in about]


@given(places, places)
def test_two_patches_have_one_key_only_if_they_are_one(a: tuple[str, int, int], b: tuple[str, int, int]) -> None:
    assert (sample_key(*a) == sample_key(*b)) == (a == b)
    assert not set(sample_key(*a)) & {".", "/"}


@pytest.mark.parametrize("format_", FORMATS)
def test_two_exports_are_the_same_bytes(many: Path, tmp_path: Path, format_: str) -> None:
    for out in ("a", "b"):
        export(many, tmp_path / out, format_)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_tar_tells_nothing_of_who_wrote_it_and_when(many: Path, tmp_path: Path) -> None:
    with tarfile.open(export(many, tmp_path, "tar")) as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive} == {(0, 0, 0, "", "", 0o644)}
    assert os.path.getsize(tmp_path / f"{ID}.tar") % tarfile.RECORDSIZE == 0


@pytest.mark.parametrize("format_", ["jpeg", "tar"])
def test_a_draw_is_of_the_cache_in_its_order_and_the_same_for_one_seed(
    many: Path, tmp_path: Path, format_: str
) -> None:
    def drawn(out: str, **settings) -> list[tuple[int, int]]:
        target = export(many, tmp_path / out, format_, **settings)
        about = table(target) if format_ == "jpeg" else [json.loads(s["json"]) for _, s in samples(target)]
        return [(int(a["x"]), int(a["y"])) for a in about]

    every = drawn("all")
    ten = drawn("ten", max_patches=10)
    assert len(ten) == 10
    assert ten == [place for place in every if place in ten] == drawn("again", max_patches=10)
    assert ten != drawn("other", max_patches=10, seed=1)
    assert drawn("more", max_patches=10_000) == every


# Whole or absent


@pytest.mark.parametrize("format_", FORMATS)
def test_what_fails_midway_leaves_nothing_and_the_next_run_completes(
    many: Path, mine: Path, tmp_path: Path, format_: str
) -> None:
    whole, out = mine.read_bytes(), tmp_path / "out"
    with h5py.File(mine) as file:
        place = file["patches/data"].id.get_offset() + int(file["patches/offsets"][-2])
    mine.write_bytes(whole[:place] + bytes(8) + whole[place + 8 :])
    assert refusal(mine, out, format_).endswith("is damaged: not the bytes that were written; delete it and tile again")
    assert names(out) == []
    mine.write_bytes(whole)
    export(mine, out, format_)
    export(many, tmp_path / "unbroken", format_)
    assert content(out) == content(tmp_path / "unbroken")


@pytest.mark.parametrize("format_", FORMATS)
def test_what_fails_midway_of_overwriting_leaves_the_old_export(mine: Path, tmp_path: Path, format_: str) -> None:
    out = tmp_path / "out"
    export(mine, out, format_)
    old = content(out)
    with h5py.File(mine, "a") as file:
        file["patches/crc32"][-1] ^= 1
    spec = ExportSpec(format=format_)
    assert "is damaged" in export_cache(mine, out, spec, overwrite=True).error
    assert content(out) == old


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("format_", ["jpeg", "tar"])
def test_sigkill_at_any_time_leaves_a_whole_export_or_none(many: Path, tmp_path: Path, format_: str) -> None:
    code = f"""
import sys
from pathlib import Path
from wsi_dbps.exporting.export import ExportSpec, export_cache
print("go", flush=True)
while True:
    outcome = export_cache(Path(sys.argv[1]), Path(sys.argv[2]), ExportSpec(format="{format_}"), overwrite=True)
    assert outcome.error is None, outcome.error
"""
    export(many, tmp_path / "expected", format_)
    expected = content(tmp_path / "expected")
    for wait_s in (0.02, 0.05, 0.11):
        arguments = [sys.executable, "-B", "-c", code, many, tmp_path / "out"]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"go\n"
            time.sleep(wait_s)
            process.send_signal(signal.SIGKILL)
        left = {name: data for name, data in content(tmp_path / "out").items() if not name.startswith(".")}
        assert {name: data for name, data in left.items() if not name.endswith(".wsi-dbps-part")} in ({}, expected)
    export(many, tmp_path / "out", format_)
    assert content(tmp_path / "out").items() >= expected.items()
    export(many, tmp_path / "out", format_, overwrite=True)
    assert content(tmp_path / "out") == expected


def test_what_a_killed_run_left_is_cleared_away(many: Path, tmp_path: Path) -> None:
    for left in (f".{ID}.new", f".{ID}.old"):
        (tmp_path / "out" / left).mkdir(parents=True)
        (tmp_path / "out" / left / "x.jpg").write_text("half")
    (tmp_path / "out" / f".{ID}.wsi-dbps-part").touch()
    export(many, tmp_path / "out", "jpeg")
    assert names(tmp_path / "out") == [ID]
    assert "x.jpg" not in names(tmp_path / "out" / ID)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_complete_export_is_kept_without_reading_patches_unless_overwritten(
    mine: Path, tmp_path: Path, format_: str
) -> None:
    target = export(mine, tmp_path / "out", format_)
    before = target.stat()
    export(mine, tmp_path / "out", format_, overwrite=True)
    assert target.stat().st_ino != before.st_ino
    before = target.stat()
    with h5py.File(mine, "a") as file:
        file["patches/crc32"][:] ^= 1
    again = export_cache(mine, tmp_path / "out", ExportSpec(format=format_))
    assert (again.target, again.skipped, again.num_patches) == (target, True, len(PatchCache(mine)))
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_slide_that_another_run_is_at_is_left_for_the_end(
    many: Path, cache_file: Path, tmp_path: Path, format_: str
) -> None:
    spec = ExportSpec(format=format_)
    busy = tmp_path / (f"{ID}.tar" if format_ == "tar" else f".{ID}")
    with claimed(busy):
        assert export_cache(many, tmp_path, spec, wait=False).busy
        outcomes = export_caches([many, cache_file], tmp_path, spec)
        assert next(outcomes).path == cache_file
    (last,) = outcomes
    assert (last.path, last.error, last.skipped) == (many, None, False)


# The command, by hand


def test_the_command_writes_a_folder_per_slide(wsi_dbps, cache_file: Path, tmp_path: Path) -> None:
    found = wsi_dbps("export", cache_file.parent, "--out", tmp_path / "out", "--format", "jpeg", "--max", 2)
    assert (found.code, found.err) == (0, "")
    assert found.out == f"1 slides exported (2 patches), 0 kept as they were, 0 failed: {tmp_path / 'out'}\n"
    rows = table(tmp_path / "out" / "a")
    assert names(tmp_path / "out" / "a") == sorted([*(row["file"] for row in rows), "coordinates.csv", "slide.json"])
    assert all(row["file"] == f"a_x{row['x']}_y{row['y']}.jpg" for row in rows)
    made = json.loads((tmp_path / "out" / "a" / "slide.json").read_text(encoding="utf-8"))
    assert made.pop("wsi_dbps_version")
    assert made == {
        "slide_id": "a",
        "mpp": 0.5,
        "patch_size": 64,
        "patch_size_level0": 64,
        "mpp_level0": 0.5,
        "slide_size": [700, 500],
        "cache_fingerprint": PatchCache(cache_file).fingerprint,
        "format": "jpeg",
        "max_patches": 2,
        "seed": 0,
    }


def test_labels_of_the_manifest_go_beside_the_patches(wsi_dbps, small_cohort, tmp_path: Path) -> None:
    manifest, caches = small_cohort
    some = (caches / "slide_02.h5", caches / "slide_09.h5")
    export = ("export", *some, "--out", tmp_path / "out", "--max", 3, "--format")
    found = wsi_dbps(*export, "tar", "--labels", manifest)
    assert (found.code, found.out.splitlines()[-1]) == (0, f"labels: {tmp_path / 'out' / 'labels.csv'}")
    expected = "slide_id,case_id,label,split\nslide_02,case_02,flat,test\nslide_09,case_09,coarse,train\n"
    assert (tmp_path / "out" / "labels.csv").read_text() == expected
    for _, sample in samples(tmp_path / "out" / "slide_09.tar"):
        about = json.loads(sample["json"])
        assert (about["slide_id"], about["case_id"], about["label"], about["split"]) == (
            *("slide_09", "case_09"),
            *("coarse", "train"),
        )
    # Rows of a further slide join those that are there, and labels that have changed are not taken for the old ones.
    assert wsi_dbps("export", caches / "slide_10.h5", *export[3:], "jpeg", "--labels", manifest).code == 0
    assert [line[:8] for line in (tmp_path / "out" / "labels.csv").read_text().split()[1:]] == [
        *("slide_02", "slide_09", "slide_10"),
    ]
    assert json.loads((tmp_path / "out" / "slide_10" / "slide.json").read_text())["label"] == "flat"
    other = tmp_path / "other.csv"
    other.write_text("slide_id,label\nslide_02,coarse\nslide_09,coarse\n")
    found = wsi_dbps(*export, "tar", "--labels", other)
    assert found.code == 1
    assert (
        "slide_02.tar was made otherwise: case_id is 'case_02' in it, 'slide_02' asked; label is 'flat' in it"
        in found.err
    )


def test_a_users_labels_are_kept_and_said_before_the_export_begins(wsi_dbps, small_cohort, tmp_path: Path) -> None:
    manifest, caches = small_cohort
    (tmp_path / "labels.csv").write_text("mine")
    found = wsi_dbps(
        "export", caches / "slide_02.h5", "--out", tmp_path, "--format", "tar", "--labels", manifest, "--max", 3
    )
    assert (found.code, found.out) == (2, "")
    assert "labels.csv: exists and was not written by wsi-dbps" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]


def test_exports_that_end_at_once_write_labels_one_after_the_other(small_cohort, tmp_path: Path) -> None:
    cohort = read_manifest(small_cohort[0])
    with ThreadPoolExecutor(1) as other, claimed(tmp_path / LABELS):
        written = other.submit(write_labels, tmp_path, cohort)
        time.sleep(0.1)
        assert not written.done()
        assert not (tmp_path / LABELS).exists()
    assert written.result().read_text() == "slide_id,case_id,label,split\n"


def test_a_slide_that_the_manifest_of_labels_lacks_is_named_before_anything_is_written(
    wsi_dbps, small_cohort, tmp_path: Path
) -> None:
    (tmp_path / "some.csv").write_text("slide_id,label\nslide_02,flat\n")
    export = (
        "export",
        small_cohort[1],
        "--out",
        tmp_path / "out",
        "--format",
        "jpeg",
        "--labels",
        tmp_path / "some.csv",
    )
    found = wsi_dbps(*export)
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert "--labels: 19 of the slides to export are not in the manifest: slide_00, slide_01, slide_03, " in found.err
    assert not (tmp_path / "out").exists()


def test_the_command_goes_on_where_it_was(wsi_dbps, cache_file: Path, many: Path, tmp_path: Path) -> None:
    wsi_dbps("export", many, "--out", tmp_path, "--format", "tar")
    found = wsi_dbps("export", cache_file, many, "--out", tmp_path, "--format", "tar")
    patches = len(PatchCache(cache_file))
    assert found.out == f"1 slides exported ({patches} patches), 1 kept as they were, 0 failed: {tmp_path}\n"
    assert names(tmp_path) == sorted(["a.tar", f"{ID}.tar"])


def test_the_command_names_a_damaged_cache_and_goes_on(wsi_dbps, cache_file: Path, tmp_path: Path) -> None:
    (tmp_path / "b.h5").write_text("hello")
    found = wsi_dbps("export", tmp_path / "b.h5", cache_file, "--out", tmp_path / "out", "--format", "png")
    assert found.code == 1
    assert found.err.startswith(f"{tmp_path / 'b.h5'}: not a readable patch cache: ")
    assert found.err.count("\n") == 1
    assert found.out.endswith(f"0 kept as they were, 1 failed: {tmp_path / 'out'}\n")
    assert names(tmp_path / "out") == ["a"]


def test_a_slide_without_patches_is_said_and_gives_nothing(wsi_dbps, blank_path, make_spec, tmp_path: Path) -> None:
    assert isinstance(tile_slide(SlideRecord("b", "p", blank_path), make_spec(), tmp_path), Tiled)
    found = wsi_dbps("export", tmp_path / "b.h5", "--out", tmp_path / "out", "--format", "tar")
    assert (found.code, found.err) == (0, f"{tmp_path / 'b.h5'}: no patches, nothing to export\n")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "b").mkdir(parents=True)
    said = f"{tmp_path / 'out' / 'b'} holds patches, and {tmp_path / 'b.h5'} has none; delete it"
    assert refusal(tmp_path / "b.h5", tmp_path / "out") == said


def test_the_page_is_true(many: Path, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    tar, folder = export(many, tmp_path, "tar"), export(many, tmp_path, "png")
    first, second = re.findall(r"```python\n(.*?)```", page, re.S)
    in_folder, in_tar = {"folder": folder}, {"path": tar}
    exec(first, in_folder)
    exec(second, in_tar)
    assert len(in_folder["table"]) == len(in_tar["about"]) == len(PatchCache(many))
    with in_folder["patch"] as patch:
        assert patch.size == (32, 32)
    told = set(re.findall(r"^\| `(\w+)`", page, re.M))
    assert told == set(json.loads(samples(tar)[0][1]["json"]))
    assert told - {"x", "y", "tissue"} == set(json.loads((folder / "slide.json").read_text(encoding="utf-8")))


# What is refused


def test_a_folder_without_caches_is_refused(wsi_dbps, tmp_path: Path) -> None:
    (tmp_path / "a.h5.wsi-dbps-part").touch()
    (tmp_path / "._a.h5").touch()
    found = wsi_dbps("export", tmp_path, "--out", tmp_path / "out", "--format", "jpeg")
    said = f"wsi-dbps: {tmp_path}: no patch caches (*.h5) in this folder; run `wsi-dbps tile` first\n"
    assert (found.code, found.out, found.err) == (2, "", said)


def test_a_cache_that_is_not_there_is_refused(wsi_dbps, tmp_path: Path) -> None:
    found = wsi_dbps("export", tmp_path / "a.h5", "--out", tmp_path / "out", "--format", "jpeg")
    assert (found.code, found.err) == (2, f"wsi-dbps: {tmp_path / 'a.h5'}: no such cache or folder\n")


def test_two_caches_of_one_slide_are_refused_and_one_named_twice_is_not(
    wsi_dbps, cache_file: Path, tmp_path: Path
) -> None:
    other = shutil.copy(cache_file, tmp_path / "A.h5")
    found = wsi_dbps("export", cache_file, other, "--out", tmp_path / "out", "--format", "jpeg")
    said = f"{cache_file} and {other} are of one slide; export them one by one, each to its own --out"
    assert (found.code, found.err) == (2, f"wsi-dbps: {said}\n")
    assert find_caches([cache_file, cache_file.parent]) == [cache_file]


def test_an_export_made_otherwise_is_refused_with_what_differs(many: Path, tmp_path: Path) -> None:
    target = export(many, tmp_path, "jpeg")
    assert refusal(many, tmp_path, "png", max_patches=5) == (
        f"{target} was made otherwise: format is 'jpeg' in it, 'png' asked; max_patches is None in it, 5 asked; "
        "seed is None in it, 0 asked; pass --overwrite, or another --out folder"
    )
    export(many, tmp_path, "png", overwrite=True, max_patches=5)
    assert {Path(name).suffix for name in names(target)} == {".png", ".csv", ".json"}
    assert len(names(target)) == 7


@pytest.mark.parametrize("format_", ["jpeg", "tar"])
def test_an_export_of_another_cache_is_refused(
    many: Path, slide_path: Path, make_spec, tmp_path: Path, format_: str
) -> None:
    record = SlideRecord(ID, "p1", slide_path)
    assert isinstance(tile_slide(record, make_spec(size_px=32, quality=50), tmp_path), Tiled)
    target = export(many, tmp_path, format_)
    said = refusal(tmp_path / f"{ID}.h5", tmp_path, format_)
    assert said.startswith(f"{target} was made otherwise: cache_fingerprint is '{PatchCache(many).fingerprint}' in it")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_no_export_is_never_replaced(cache_file: Path, tmp_path: Path, format_: str, overwrite: bool) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Slidedat.ini").write_text("a scanner's own folder")
    (tmp_path / "a.tar").write_text("a backup")
    before, target = content(tmp_path), tmp_path / ("a.tar" if format_ == "tar" else "a")
    outcome = export_cache(cache_file, tmp_path, ExportSpec(format=format_), overwrite=overwrite)
    assert outcome.error == f"{target}: there already, and no export; remove it, or name another --out folder"
    assert content(tmp_path) == before


def test_a_cache_whose_name_is_not_its_slides_is_refused(cache_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(cache_file, tmp_path / "b.h5"))
    assert refusal(path, tmp_path) == f"{path}: the patches are those of slide a; name it a.h5"


def test_a_slide_id_that_leads_elsewhere_is_refused(cache_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(cache_file, tmp_path / "a.h5"))
    with h5py.File(path, "a") as file:
        file.attrs["slide_id"] = "../a"
    assert refusal(path, tmp_path / "out") == (
        f"{path}: slide id '../a' cannot name files: it contains '/'; tile again"
    )


def test_two_patches_at_one_place_are_refused(mine: Path, tmp_path: Path) -> None:
    with h5py.File(mine, "a") as file:
        file["coords"][1] = file["coords"][0]
    assert refusal(mine, tmp_path) == f"{mine}: two patches lie at one place; delete it and tile again"


@pytest.mark.parametrize("format_", FORMATS)
def test_an_output_folder_that_is_a_file_ends_the_run(wsi_dbps, cache_file: Path, tmp_path: Path, format_: str) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written: (File exists|Not a directory)$"):
        export(cache_file, tmp_path / "out", format_)
    found = wsi_dbps("export", cache_file, "--out", tmp_path / "out", "--format", format_)
    assert (found.code, found.err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_patches": 0}, "max_patches must be at least 1, found 0"),
        ({"seed": -1}, "seed must be at least 0, found -1"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        ExportSpec(format="tar", **settings)
