"""The notebook of the README goes from a slide file to a heatmap figure, as written there."""

import re
import subprocess
import sys
from pathlib import Path

from wsi_dbps.synth.cohort import make_cohort

CHECKS = """
assert picture.shape[2] == 3 and tissue.mask_HW.any()
import json, pathlib
written = json.loads((pathlib.Path(predictions) / "metrics.json").read_text())
assert report.metrics.cases.scores["auroc"].value == written["cases"]["scores"]["auroc"]["value"]
assert heatmap.figure().axes
print(patches.shape)
"""
ROOT = Path(__file__).parents[2]


def notebook() -> str:
    """The Python block of the README."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    return block


def test_the_notebook_goes_from_a_slide_file_to_a_heatmap_figure(tmp_path: Path) -> None:
    """As a script, which has no `if __name__ == "__main__":` either."""
    code = notebook()
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    make_cohort(tmp_path / "demo_out", num_slides=8, size_px=1024)
    (tmp_path / "notebook.py").write_text(code + CHECKS, encoding="utf-8")
    done = subprocess.run([sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.splitlines()[-1] == "(3, 48, 48, 3)"
    assert (tmp_path / "heatmap.png").stat().st_size > 10_000
