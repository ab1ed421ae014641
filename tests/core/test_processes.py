"""Worker processes do not begin the program again that started them."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from concurrent.futures import ProcessPoolExecutor
from wsi_dbps.core import processes

print("begun", flush=True)
with ProcessPoolExecutor(2, mp_context=processes.{context}) as pool:
    print(list(pool.map(abs, [-1, -2])), flush=True)
print(__name__, flush=True)
"""


@pytest.mark.parametrize("context", ["new_interpreters()", "copies_with('wsi_dbps.core.geometry')"])
def test_a_script_without_a_main_guard_runs_once(context: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(context=context))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\n[1, 2]\n__main__\n", "")
