"""The house's rules that a machine can check: imports go one way, files are short, importing is cheap."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ppdet_lite"
MODULES = sorted(PACKAGE.rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))

# What each part may import of the package beside itself; anyone may import core.
ALLOWED = {
    "core": set(),
    "structures": set(),
    "ops": {"structures"},
    "data": set(),
    "modeling": {"ops", "structures"},
    "engine": {"modeling", "data", "ops", "structures"},
    "api": {"engine"},
    "__init__": {"api"},
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    """The part of the package that a module belongs to: its folder or, at the top, its name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports anywhere in it, "package.module.name" for `from package.module import name`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def internal(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    parts = (name.split(".") for name in imported(path))
    return {name[1] for name in parts if name[0] == "ppdet_lite" and name[1:] and name[1] != "__version__"}


def outside(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_imports_point_one_way() -> None:
    wrong = {name_of(path): internal(path) - {part_of(path), "core"} - ALLOWED[part_of(path)] for path in MODULES}
    assert {name: parts for name, parts in wrong.items() if parts} == {}


@pytest.mark.parametrize("part", ["core", "data", "__init__"])
def test_parts_that_run_without_paddle(part: str) -> None:
    assert [name_of(path) for path in MODULES if part_of(path) == part and "paddle" in outside(path)] == []


def test_nothing_imports_tools_or_tests() -> None:
    assert [name_of(path) for path in MODULES + TOOLS if outside(path) & {"tools", "tests", "pytest"}] == []


def test_files_are_short() -> None:
    files = [*MODULES, *TOOLS, *(ROOT / "tests").rglob("*.py")]
    assert [name_of(path) for path in files if line_count(path) >= 400] == []


def test_tools_only_parse_load_and_call() -> None:
    assert [name_of(path) for path in TOOLS if line_count(path) > 60] == []


def test_public_things_are_described() -> None:
    """A module says what it is, unless it only re-exports; so do its public classes, functions and methods."""
    silent = []
    for path in MODULES:
        described = [tree(path), *public_definitions(tree(path))]
        for node in described[path.name == "__init__.py" :]:
            if not ast.get_docstring(node):
                silent.append(f"{name_of(path)}: {getattr(node, 'name', 'the module')}")
    assert silent == []


def public_definitions(parent: ast.Module | ast.ClassDef) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Public classes and functions of a module and, in turn, the public methods of those classes."""
    for node in parent.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node)


def test_no_bare_except() -> None:
    handlers = ((path, node) for path in MODULES + TOOLS for node in ast.walk(tree(path)))
    bare = [
        f"{name_of(path)}:{node.lineno}"
        for path, node in handlers
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert bare == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, ppdet_lite; heavy = {'paddle', 'numpy', 'cv2', 'pydantic', 'yaml'} & set(sys.modules); "
        "assert not heavy, heavy; ppdet_lite.load_config; assert 'paddle' in sys.modules; "
        "assert {'build_model', 'load_config'} <= set(dir(ppdet_lite))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_of_the_package() -> None:
    import ppdet_lite

    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        _ = ppdet_lite.train
