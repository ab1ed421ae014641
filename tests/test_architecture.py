"""The code is built as docs/architecture.md says: its table of rooms is what these tests go by, without exceptions."""

import ast
import graphlib
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| `.+ \| (?:yes|no) \|$", PAGE, re.M)]
ROOMS = {row[0].strip("`/"): set(re.findall(r"`(\w+)`", row[2])) for row in ROWS}
TORCH_FREE = {row[0].strip("`/") for row in ROWS if row[3] == "no"}
TORCH = {"torch", "torchvision", "timm"}
SOURCES = [*sorted((ROOT / "wsi_dbps").rglob("*.py")), *sorted((ROOT / "cli").rglob("*.py"))]


def imports(path: Path, *, at_run_time: bool = False) -> Iterator[str]:
    """Full names of what a file imports, anywhere in it; or, `at_run_time`, not for the type checker alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if at_run_time and isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_files(room: str) -> list[Path]:
    return sorted((ROOT / "wsi_dbps" / room).rglob("*.py"))


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def loaded_by(code: str, *names: str) -> str:
    """Which of the named packages a fresh interpreter has loaded after `code`."""
    code = f"{code}\nimport sys\nprint(*(n for n in {names} if n in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_table_names_every_room_and_no_other() -> None:
    assert set(ROOMS) == {p.name for p in (ROOT / "wsi_dbps").iterdir() if (p / "__init__.py").exists()}
    assert [p.name for p in (ROOT / "wsi_dbps").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_table_says(room: str) -> None:
    found = {name for path in room_files(room) for name in imports(path)}
    assert not {name for name in found if name.startswith(("wsi_dbps_cli", "cli."))}
    assert {name.split(".")[1] for name in found if name.startswith("wsi_dbps.")} - {room} == ROOMS[room]


def test_a_room_imports_only_rooms_above_it() -> None:
    order = list(ROOMS)
    assert all(order.index(above) < order.index(room) for room in order for above in ROOMS[room])


@pytest.mark.parametrize("room", sorted(TORCH_FREE))
def test_torch_is_imported_in_the_rooms_of_torch_only(room: str) -> None:
    assert not {name for path in room_files(room) for name in imports(path) if name.split(".")[0] in TORCH}


def test_rooms_without_torch_load_none_even_indirectly() -> None:
    names = [module_name(path) for room in sorted(TORCH_FREE) for path in room_files(room)]
    assert len(names) > 80
    assert not loaded_by("\n".join(f"import {name}" for name in names), *TORCH)


def test_modules_import_each_other_in_no_circle() -> None:
    modules = {module_name(path): path for path in SOURCES}
    graph = {}
    for name, path in modules.items():
        found = set(imports(path, at_run_time=True))
        graph[name] = {other for other in found | {f.rpartition(".")[0] for f in found} if other in modules} - {name}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_the_command_line_is_thin() -> None:
    lengths = {path.name: num_lines(path) for path in (ROOT / "cli").glob("*.py")}
    assert sum(lengths.values()) < 1100, lengths


def test_rooms_and_modules_are_small() -> None:
    rooms = {room: sum(map(num_lines, room_files(room))) for room in ROOMS}
    assert not {room: lines for room, lines in rooms.items() if lines > 2500}
    assert not {path: lines for path in SOURCES if (lines := num_lines(path)) > 400}


def test_functions_are_small() -> None:
    lengths = {
        (module_name(path), node.name): (node.end_lineno or 0) - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    ordered = sorted(lengths.values())
    assert not {name: lines for name, lines in lengths.items() if lines > 60}
    assert statistics.median(ordered) <= 9
    assert ordered[int(0.9 * len(ordered))] <= 30


def test_help_and_the_package_load_nothing_heavy() -> None:
    heavy = ("torch", "timm", "openslide", "h5py", "numpy", "pandas", "pydantic", "PIL", "matplotlib")
    assert not loaded_by("import wsi_dbps", *heavy)
    assert not loaded_by("import wsi_dbps_cli.main", *heavy)


def test_the_init_file_of_a_room_is_a_docstring() -> None:
    rooms = [path for path in (ROOT / "wsi_dbps").rglob("__init__.py") if path.parent.name != "wsi_dbps"]
    for path in [*rooms, ROOT / "cli" / "__init__.py"]:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert len(body) == 1, path
        assert ast.get_docstring(ast.Module(body, [])), path
