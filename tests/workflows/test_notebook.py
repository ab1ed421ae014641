"""The notebook of the README goes from a slide file to a heatmap figure, as written there."""

import re
from pathlib import Path

import pytest

from wsi_dbps.synth.cohort import make_cohort

ROOT = Path(__file__).parents[2]


def notebook() -> str:
    """The first Python block of the README that uses this package; until it has one, that of notebook.md."""
    for page in (ROOT / "README.md", Path(__file__).with_name("notebook.md")):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            if "import wsi_dbps as wd" in block:
                return block
    raise AssertionError("no page has the notebook")


@pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")
def test_the_notebook_goes_from_a_slide_file_to_a_heatmap_figure(tmp_path: Path, monkeypatch) -> None:
    code = notebook()
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    make_cohort(tmp_path / "demo_out", num_slides=8, size_px=1024)
    monkeypatch.chdir(tmp_path)
    made: dict = {}
    exec(compile(code, "notebook", "exec"), made)
    assert made["picture"].shape[2] == 3
    assert made["tissue"].mask_HW.any()
    assert made["patches"].shape == (3, 48, 48, 3)
    assert 0 <= made["report"].metrics.cases.scores["auroc"].value <= 1
    assert made["heatmap"].figure().axes
    assert (tmp_path / "heatmap.png").stat().st_size > 10_000
