"""The code is built as docs/architecture.md says: its table of rooms is what these tests go by."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| `.+ \| (?:yes|no) \|$", PAGE, re.M)]
FOUNDATION = set(re.findall(r"`(\w+)\.py`", ROWS[0][0]))
ROOMS = {row[0].strip("`/"): set(re.findall(r"`(\w+)`", row[2])) for row in ROWS[1:]}
LEFT_BANK = FOUNDATION | {row[0].strip("`/") for row in ROWS[1:] if row[3] == "no"}
TORCH_FREE = re.findall(r"`([\w/]+)\.py`", PAGE.partition("Without torch on the right bank:")[2].partition("\n\n")[0])


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(room: str) -> list[Path]:
    module = ROOT / "wsi_dbps" / f"{room}.py"
    return [module] if module.exists() else sorted((ROOT / "wsi_dbps" / room).rglob("*.py"))


def loaded_by(code: str, *names: str) -> str:
    """Which of the named packages a fresh interpreter has loaded after `code`."""
    code = f"{code}\nimport sys\nprint(*(n for n in {names} if n in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_table_names_every_room_and_no_other() -> None:
    found = {p.stem for p in (ROOT / "wsi_dbps").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"__init__"} == FOUNDATION | set(ROOMS)


@pytest.mark.parametrize("room", [*sorted(FOUNDATION), *ROOMS])
def test_a_room_imports_what_the_table_says(room: str) -> None:
    found = {name for path in files(room) for name in imports(path)}
    assert not {name for name in found if name.startswith(("wsi_dbps_cli", "cli."))}
    assert {name.split(".")[1] for name in found if name.startswith("wsi_dbps.")} - FOUNDATION - {room} == ROOMS.get(
        room, set()
    )
    if room in LEFT_BANK:
        assert not {name for name in found if name.split(".")[0] in ("torch", "torchvision", "timm")}


def test_a_room_imports_only_rooms_above_it() -> None:
    order = list(ROOMS)
    assert all(order.index(below) < order.index(room) for room in order for below in ROOMS[room])


def test_the_left_bank_loads_no_torch_even_indirectly() -> None:
    paths = [p.relative_to(ROOT).with_suffix("") for room in sorted(LEFT_BANK) for p in files(room)]
    names = [".".join(path.parts) for path in (*paths, *(Path("wsi_dbps", name) for name in TORCH_FREE))]
    assert len(names) > 40
    assert "wsi_dbps.metrics.metrics" in names
    assert not loaded_by("\n".join(f"import {name.removesuffix('.__init__')}" for name in names), "torch", "timm")


def test_help_loads_nothing_heavy() -> None:
    assert not loaded_by("import wsi_dbps_cli.main", "torch", "timm", "openslide", "h5py", "numpy", "pydantic", "PIL")


def test_an_init_file_is_a_docstring() -> None:
    inits = [*(ROOT / "wsi_dbps").rglob("__init__.py"), ROOT / "cli" / "__init__.py"]
    for path in inits:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert len(body) == 1, path
        assert ast.get_docstring(ast.Module(body, [])), path
