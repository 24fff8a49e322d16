"""The package as pip installs it: a built wheel and an editable install, each in an environment of its own.

The environments see the packages of the environment that runs the tests, but not the checkout.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from ppdet_lite import __version__
from ppdet_lite.__main__ import command_names
from tests.tiny_run import WITHOUT_STAGE_5

ROOT = Path(__file__).resolve().parents[1]
NO_NETWORK = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError")
RECIPE = "quickstart/shapes_r18_fpn"
SMALL = [
    *WITHOUT_STAGE_5,
    "model.neck.out_channels=32",
    "model.box_head.width=32",
    "data.preprocess={short_side: 64, long_side: 96, stride: 32}",
    "schedule.warmup_iterations=1",
    "train.length=2 iterations",
    "train.rehearse=false",
]

# Runs command lines one after the other in one process, then writes where the package and its recipes are.
RUN_ALL = """
import json, sys
import ppdet_lite
from ppdet_lite.__main__ import main
from ppdet_lite.config.recipes import recipe_names, recipes_folder
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["ppdet-lite", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
found = {"package": ppdet_lite.__file__, "recipes": str(recipes_folder()), "names": recipe_names()}
with open("found.json", "w") as file:
    json.dump(found, file)
"""


def run(command: list, **options) -> subprocess.CompletedProcess:
    """Run a program without the variables that would let it see the checkout; a failure shows its output."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, **options)
    if done.returncode and any(sign in done.stderr for sign in NO_NETWORK):
        pytest.skip("pip needs a network to get the build system")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package into a new environment; return the folder of the environment."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = folder / "venv"
    venv.create(environment)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    what: list = ["-e", ROOT]
    if request.param == "wheel":
        run([*pip, "wheel", "--no-deps", "-w", folder, ROOT])
        what = list(folder.glob("*.whl"))
        assert len(what) == 1
    run([*pip, "--python", executable(environment, "python"), "install", "--no-deps", *what])
    # lines of a .pth file are folders to import from; .pth files in these, as of an editable install, have no effect
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages(environment) / "packages_of_the_tests.pth").write_text("\n".join(sorted(packages)), "utf-8")
    return environment


def executable(environment: Path, name: str) -> Path:
    """Return the path of a program of an environment."""
    return environment / ("Scripts" if os.name == "nt" else "bin") / name


def site_packages(environment: Path) -> Path:
    """Return the folder of an environment's packages."""
    paths = {"base": str(environment), "platbase": str(environment)}
    scheme = "nt" if os.name == "nt" else "posix_prefix"
    return Path(sysconfig.get_path("purelib", scheme=scheme, vars=paths))


def test_installed_package_trains_evaluates_exports_and_detects_outside_the_checkout(
    installed: Path, tmp_path: Path
) -> None:
    model = ["-c", RECIPE, "-o", *SMALL]
    trained = [*model, "weights=output/shapes_r18_fpn"]
    commands = [
        *([name, "--help"] for name in command_names()),
        ["make-shapes", "--train", "2", "--val", "2", "--size", "96"],
        ["train", *model],
        ["eval", *trained],
        ["export-model", *trained, "--output", "exported"],
        ["infer", *trained, "--input", "dataset/shapes/val", "--output", "predictions"],
    ]
    shown = run([executable(installed, "python"), "-c", RUN_ALL, json.dumps(commands)], cwd=tmp_path).stdout

    assert all(f"usage: ppdet-lite {name} " in shown for name in command_names())
    for written in ("output/shapes_r18_fpn/metrics.json", "exported/model.json", "predictions/detections.json"):
        assert (tmp_path / written).is_file(), written
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    editable = installed.parent.name.startswith("editable")
    package = ROOT / "ppdet_lite" if editable else site_packages(installed) / "ppdet_lite"
    assert Path(found["package"]) == package / "__init__.py"
    assert Path(found["recipes"]) == (ROOT / "configs" if editable else package / "configs")
    complete = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/*/*.yml")}
    assert set(found["names"]) == {name for name in complete if not name.startswith("_")}
    if not editable:
        assert (package / "py.typed").is_file()


def test_the_command_is_installed(installed: Path, tmp_path: Path) -> None:
    shown = run([executable(installed, "ppdet-lite"), "--version"], cwd=tmp_path).stdout
    assert shown == f"ppdet-lite {__version__}\n"
