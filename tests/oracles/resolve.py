"""Ask pip which Python and system the requirements in pyproject.toml have wheels for, without those machines.

    python -m tests.oracles.resolve                    # every pair; 20 to 30 minutes, nothing is installed
    python -m tests.oracles.resolve --python 3.13 --system linux-x86-64

Each pair is a row of a Markdown table: whether the base requirements resolve with [cpu] and [dev], and with [cpu] and
[onnx], or the first requirement without a wheel. The exit code is 1 if a pair of EXPECTED does not resolve with [cpu],
or if another pair does. Needs Python 3.11 (tomllib), `packaging`, and pip 25 or newer.

pip evaluates the markers of the requirements' own requirements (`; sys_platform == "win32"`) for the machine that asks.
Those of pyproject.toml are evaluated here, for the machine in question.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35, 36)  # minor versions up to Debian 12's, as in manylinux_2_17
SYSTEMS = {  # pip's platforms, and the markers' variables
    "linux-x86-64": (
        ["manylinux1_x86_64", "manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in GLIBC)],
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    ),
    "linux-arm64": (
        ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in GLIBC)],
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    ),
    "macos-arm64": (
        ["macosx_14_0_arm64"],
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    ),
    "macos-x86-64": (
        ["macosx_14_0_x86_64"],
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "x86_64"},
    ),
    "windows-x86-64": (
        ["win_amd64"],
        {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
    ),
}
EXPECTED = {
    (python, system)
    for python in ("3.10", "3.11", "3.12", "3.13")
    for system in ("linux-x86-64", "macos-arm64", "windows-x86-64")
}
WORKERS = 6  # calls of pip at once, which mostly wait for the network
NO_WHEEL = re.compile(r"No matching distribution found for ([\w.-]+\S*)")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(extras: Sequence[str], python: str, variables: dict[str, str]) -> list[str]:
    """Return the requirements with these extras whose markers are true there, Paddle first."""
    optional = project()["optional-dependencies"]
    lines = [line for extra in extras for line in optional[extra]] + project()["dependencies"]
    environment = {**variables, "python_version": python, "python_full_version": f"{python}.0"}
    found = []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            found.append(str(requirement))
    return found


def resolve(extras: Sequence[str], python: str, system: str) -> str:
    """Return "" if pip finds a wheel for everything, else the requirement without one, or pip's error."""
    platforms, variables = SYSTEMS[system]
    with tempfile.TemporaryDirectory() as target:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
        command += ["--only-binary=:all:", "--target", target, "--python-version", python, "--implementation", "cp"]
        for platform in platforms:
            command += ["--platform", platform]
        done = subprocess.run([*command, *requirements(extras, python, variables)], capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    missing = NO_WHEEL.search(done.stderr)
    return missing.group(1) if missing else (done.stderr.strip().splitlines() or ["pip failed"])[-1]


def row(python: str, system: str) -> tuple[str, bool]:
    """Return a pair's row of the table, and whether it is as EXPECTED."""
    if python not in SpecifierSet(project()["requires-python"]):
        missing = resolve(["cpu"], python, system)
        reason = f"no wheel: {missing}" if missing else "requires-python excludes it"
        return f"| {python} | {system} | {reason} | |", (python, system) not in EXPECTED
    missing = resolve(["cpu", "dev"], python, system)
    cells = [f"no wheel: {missing}" if missing else "yes", ""]
    if not missing:  # of no use without Paddle
        without = resolve(["cpu", "onnx"], python, system)
        cells[1] = f"no wheel: {without}" if without else "yes"
        if "paddle2onnx" not in " ".join(requirements(["onnx"], python, SYSTEMS[system][1])) and not without:
            cells[1] = "yes, without the export (paddle2onnx)"
    return f"| {python} | {system} | {' | '.join(cells)} |", (not missing) == ((python, system) in EXPECTED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=PYTHONS, choices=PYTHONS)
    parser.add_argument("--system", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    args = parser.parse_args()
    print("| Python | system | [cpu], [dev] | [cpu], [onnx] |\n|---|---|---|---|")
    pairs = [(python, system) for system in args.system for python in args.python]
    wrong = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for pair, (line, as_expected) in zip(pairs, pool.map(lambda pair: row(*pair), pairs), strict=True):
            print(line, flush=True)
            wrong += [] if as_expected else [pair]
    for python, system in wrong:
        print(f"not as expected: Python {python} on {system}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
