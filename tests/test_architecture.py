"""The rules of this code base that a program can check: one direction of imports, short files, cheap imports."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ppdet_lite"
LONGEST_FUNCTION = 60  # lines
MODULES = sorted(PACKAGE.rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))

# What each folder may import of the package besides itself; the subfolders of `data` and `ops` have their own rules.
# docs/architecture.md describes the folders.
GROUND = {"core", "structures"}
BASE = {"core", "config", "storage"}
IN_DATA = ("images", "annotations", "loading", "synthetic", "importing", "checking")  # each may import the ones before
DATA_FOLDERS = ["data", *(f"data.{folder}" for folder in IN_DATA)]
ALLOWED = {
    "core": set(),
    "structures": set(),
    "config": {"core"},
    "storage": {"core"},
    "ops": GROUND | {"ops.cpu"},
    "ops.cpu": GROUND | {"ops"},
    "modeling": {"ops", "config", *GROUND},
    "optimization": {"ops", "modeling", "config", *GROUND},
    "peers": BASE,
    "__init__": {"core"},
    "data": {"data.annotations"},  # registers the datasets
}
for number, folder in enumerate(DATA_FOLDERS[1:], start=1):
    ALLOWED[folder] = {*BASE, *DATA_FOLDERS[1:number]}
below = {*BASE, *GROUND, *DATA_FOLDERS, "ops", "modeling", "optimization", "peers"}
for folder in ("assembly", "deployment", "evaluation", "reporting", "training", "benchmarks"):
    ALLOWED[folder] = set(below)
    below.add(folder)
ALLOWED["commands"] = set(below)
ALLOWED["__main__"] = {"core", "commands"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def folder_of(path: Path) -> str:
    """Return the folder that a module belongs to, such as "data.images"."""
    return folder_of_name(path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."))


def folder_of_name(module: str) -> str:
    """Return the folder of "data.images.files", or of a name in such a module: "data.images"."""
    first, *rest = module.split(".")
    return f"{first}.{rest[0]}" if rest and f"{first}.{rest[0]}" in ALLOWED else first


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Yield the full names that a file imports: "package.module.name" for `from package.module import name`."""
    module = tree(path)
    if path == PACKAGE / "__init__.py":  # what it exports is imported for type checkers there, and on first use
        module.body = [node for node in module.body if not is_for_type_checkers(node)]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_for_type_checkers(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def internal(path: Path) -> set[str]:
    """Return the folders of the package that a file imports."""
    parts = (name.partition(".") for name in imported(path))
    return {folder_of_name(rest) for top, _, rest in parts if top == "ppdet_lite" and rest and rest != "__version__"}


def outside(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_imports_point_one_way() -> None:
    wrong = {name_of(path): internal(path) - {folder_of(path)} - ALLOWED[folder_of(path)] for path in MODULES}
    assert {name: parts for name, parts in wrong.items() if parts} == {}


def test_every_folder_is_documented_with_its_contents_and_imports() -> None:
    packages = [
        *PACKAGE.glob("*/__init__.py"),
        *(PACKAGE / "data").glob("*/__init__.py"),
        PACKAGE / "ops/cpu/__init__.py",
    ]
    folders = {".".join(path.relative_to(PACKAGE).parts[:-1]): ast.get_docstring(tree(path)) for path in packages}
    assert {*folders, "structures", "__init__", "__main__"} == set(ALLOWED)
    silent = [
        name
        for name, text in folders.items()
        if not text or not re.search(r"\b([Mm]ay import|Imports nothing)\b", text)
    ]
    assert silent == []
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert [name for name in folders if f"`{name.replace('.', '/')}/`" not in page] == []


def test_the_package_has_few_folders() -> None:
    names = {path.relative_to(PACKAGE).parts[0] for path in MODULES}
    assert len(names - {"__init__.py", "__main__.py"}) <= 16, sorted(names)


def test_the_cpu_implementations_are_reached_through_ops_alone() -> None:
    assert [
        name_of(path) for path in MODULES if "ops.cpu" in internal(path) and folder_of(path) not in ("ops", "ops.cpu")
    ] == []


def test_imports_go_in_no_circle() -> None:
    """Among modules, imports inside functions included; a package's own `__init__` counts where it is named."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES}
    known = set(names.values())
    graph = {
        name: {found for target in imported(path) if (found := module_of(target, known)) and found != name}
        for path, name in names.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def module_of(target: str, known: set[str]) -> str | None:
    """The module that "package.module.name" is imported from."""
    return next((name for name in (target, target.rpartition(".")[0]) if name in known), None)


@pytest.mark.parametrize("part", ["core", "config", "storage", "peers", *DATA_FOLDERS, "__init__"])
def test_parts_that_run_without_paddle(part: str) -> None:
    assert [name_of(path) for path in MODULES if folder_of(path) == part and "paddle" in outside(path)] == []


def test_nothing_imports_tools_or_tests() -> None:
    assert [name_of(path) for path in MODULES + TOOLS if outside(path) & {"tools", "tests", "pytest"}] == []


def test_files_are_short() -> None:
    files = [*MODULES, *TOOLS, *(ROOT / "tests").rglob("*.py")]
    assert [name_of(path) for path in files if line_count(path) >= 400] == []


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{name_of(path)}: {node.name}"
        for path in MODULES + TOOLS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert long == []


def test_commands_only_parse_load_and_call() -> None:
    assert [name_of(path) for path in (PACKAGE / "commands").glob("*.py") if line_count(path) > 65] == []


def test_every_command_has_its_tool() -> None:
    """tools/train.py runs `ppdet-lite train` from a checkout; model_zoo.py and check_python.py are no commands."""
    commands = {path.stem for path in (PACKAGE / "commands").glob("*.py")} - {"__init__", "quickstart"}
    assert {path.stem for path in TOOLS} - {"model_zoo", "check_python"} == commands
    for path in TOOLS:
        call = f'run_command("{path.stem.replace("_", "-")}", sys.argv[1:])'
        assert path.stem in ("model_zoo", "check_python") or call in path.read_text(encoding="utf-8")


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


def test_what_the_package_offers_is_there() -> None:
    import ppdet_lite
    from ppdet_lite import ops
    from ppdet_lite.assembly import setup

    assert set(ppdet_lite.__all__) <= set(dir(ppdet_lite))
    assert ppdet_lite.load_config is setup.load_config and ppdet_lite.build_model is setup.build_model
    assert ppdet_lite.deform_conv2d is ops.deform_conv2d and ppdet_lite.deform_roi_pool is ops.deform_roi_pool
    (block,) = (node for node in tree(PACKAGE / "__init__.py").body if is_for_type_checkers(node))
    assert {alias.name: node.module for node in block.body for alias in node.names} == ppdet_lite._MODULE_OF


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
