"""Attention and heatmaps on a disk that fills up: one error in plain words, no crash, nothing left behind."""

import glob
import subprocess
import sys

import pytest

WRITE = """
import resource, sys
from pathlib import Path
import numpy as np
from wsi_dbps.core.errors import OutputError
from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.drawing.geojson import write_geojson
from wsi_dbps.drawing.ome_tiff import write_coloured_map, write_value_map
from wsi_dbps.drawing.overlay import draw_overlay
from wsi_dbps.drawing.tile_csv import write_scores
from wsi_dbps.drawing.tile_maps import raw_map
from wsi_dbps.formats.predictions import Prediction
from wsi_dbps.formats.attention import SlideAttention

n = 900
coords = np.array([[100 * (i % 30), 100 * (i // 30)] for i in range(n)])
random = np.random.default_rng(0)
a = SlideAttention(
    "s", Prediction("s", "c", None, None, n, (0.5, 0.5)), ("a", "b"), TileGrid(coords, 100.0, Size(3000, 3000), 0.25),
    random.normal(size=(n, 4)).astype(np.float32), (random.dirichlet(np.ones(n))).astype(np.float32),
    np.zeros(n, np.uint8), "c", "k", random.normal(size=(n, 2)).astype(np.float32),
)
writers = {
    "a.h5": a.write,
    "a.png": lambda path: draw_overlay(path, a, random.integers(0, 255, (300, 300, 3), dtype=np.uint8)),
    "a.ome.tiff": lambda path: write_value_map(path, a),
    "a.rgb.ome.tiff": lambda path: write_coloured_map(path, a, raw_map(a)),
    "a.geojson": lambda path: write_geojson(path, a),
    "a.csv": lambda path: write_scores(path, a),
}
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for name, write in writers.items():
        try:
            write(Path(sys.argv[1]) / name)
        except OutputError as error:
            print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files by POSIX's RLIMIT_FSIZE")
def test_no_writer_crashes_or_leaves_a_torn_file(tmp_path) -> None:
    limits = ["1", "500", "3000", "10000"]
    command = [sys.executable, "-c", WRITE, str(tmp_path), *limits]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    names = ("a.h5", "a.png", "a.ome.tiff", "a.rgb.ome.tiff", "a.geojson", "a.csv")
    lines = ended.stdout.splitlines()
    assert len(lines) >= 3 * len(names)
    for name in names:
        assert f"{tmp_path / name}: cannot be written: File too large" in lines
    assert set(glob.glob("*", root_dir=tmp_path)) <= set(names)
