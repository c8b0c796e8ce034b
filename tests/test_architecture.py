"""The shape of the code: who may import whom, what stays light, how large a file and a function are."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "cupola").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def levels() -> dict[str, int]:
    """The table of docs/architecture.md: `corpus` -> 2, `models.table` -> 2."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = text.split("    level  packages\n")[1].split("\n\n")[0]
    found = {}
    for line in table.splitlines():
        match = re.match(r"\s+(\d+)\s{2,}(\S+(?:\s{1,2}\S+)*)", line)
        assert match, f"not a line of the table: {line!r}"
        for package in match[2].split():
            found[package] = int(match[1])
    return found


LEVELS = levels()


def package_of(module: str) -> str:
    """The entry of the table that a module belongs to: the longest that it begins with."""
    inner = module.removeprefix("cupola").lstrip(".")
    parts = inner.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in LEVELS:
            return ".".join(parts[:length])
    return ""


def imports(path: Path) -> set[str]:
    """Every module of Cupola that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    known = {module_name(module) for module in MODULES}
    return {name for name in found if name in known and name != "cupola"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_imports_upward(path):
    module = module_name(path)
    if module in ("cupola", "cupola.__main__"):
        return
    own = package_of(module)
    assert own, f"{module} has no level in docs/architecture.md"
    for imported in imports(path):
        other = package_of(imported)
        assert other, f"{module} imports {imported}, which has no level in docs/architecture.md"
        assert LEVELS[other] <= LEVELS[own] or part_of(own, other), f"{module} imports {imported}"


def part_of(inner: str, outer: str) -> bool:
    return inner.split(".")[0] == outer.split(".")[0]


def test_packages_of_one_level_do_not_import_each_other_in_a_circle():
    below: dict[str, set[str]] = {}
    for path in MODULES:
        own = package_of(module_name(path)).split(".")[0]
        below.setdefault(own, set()).update(package_of(name).split(".")[0] for name in imports(path))
    graph = {own: others - {own} for own, others in below.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_a_module_of_a_lower_level_within_a_package_imports_none_of_its_upper_part():
    """`models.table` is level 2, `models` level 3: the table must not import the modules."""
    for path in MODULES:
        own = package_of(module_name(path))
        if "." in own:
            for imported in imports(path):
                assert LEVELS[package_of(imported)] <= LEVELS[own], f"{module_name(path)} imports {imported}"


def contracts() -> list[tuple[str, str]]:
    """(module, name) of everything that the map's contracts call."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    block = text.split("## Contracts between the parts")[1].split("\n## ")[0]
    found, module = [], ""
    for line in block.splitlines():
        if match := re.match(r"    ([a-z_.]+)\s", line):
            module = match[1]
        if line.startswith("    "):
            names = re.findall(r"(?<![.\w])([A-Za-z_]\w*)\(", line.partition(" #")[0])
            found += [(module, name) for name in names if name != "module"]
    return found


@pytest.mark.parametrize(("module", "name"), contracts())
def test_what_the_map_names_is_there(module, name):
    assert hasattr(importlib.import_module(f"cupola.{module}"), name)


LIGHT = ["cupola", "cupola.cli", "cupola.models.table"] + [
    module_name(path)
    for path in MODULES
    if {"recipe", "chat", "plan"} & set(path.parts) and path.name != "__init__.py"
]


def test_recipe_chat_table_plan_and_command_line_load_no_torch():
    code = f"import sys, importlib\nfor name in {LIGHT}: importlib.import_module(name)\n"
    code += "print('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_every_command_loads_without_torch():
    """`cupola run --help` is as quick as `cupola --help`: heavy imports stand inside the functions."""
    code = (
        "import sys, importlib, pathlib, cupola.cli\n"
        "folder = pathlib.Path(cupola.cli.__file__).parent\n"
        "names = [n for n in cupola.cli.COMMANDS if (folder / f'{n}.py').exists()]\n"
        "for name in names: importlib.import_module(f'cupola.cli.{name}')\n"
        "print(len(names), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, torch = result.stdout.split()
    assert int(number) >= 1
    assert torch == "False"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_files_and_functions_are_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES, f"{path.name} is a file of {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{path.name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_say_what_they_are_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"
    assert path.stem not in ("utils", "util", "helpers", "misc", "common")


def test_no_two_test_files_have_one_name():
    """pytest imports them by name: the second would end the whole collection."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
