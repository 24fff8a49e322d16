"""What `make setup` and pip install, and where from."""

import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tools import check_python

ROOT = Path(__file__).resolve().parents[1]
PADDLE = re.compile(r"paddlepaddle(?:-gpu)?==([\d.]+)")
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def steps(*arguments: str) -> str:
    """Return the commands that make would run."""
    return subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_files_of_requirements_refer_to_pyproject() -> None:
    """Versions stand in pyproject.toml alone, apart from Paddle's for GPUs, which equals that for CPUs."""
    versions = {"pyproject.toml": 1, "requirements.txt": 0, "requirements-gpu.txt": 1}
    found = {name: PADDLE.findall((ROOT / name).read_text(encoding="utf-8")) for name in versions}
    assert {name: len(pins) for name, pins in found.items()} == versions
    assert found["pyproject.toml"] == found["requirements-gpu.txt"]
    for path in ROOT.glob("requirements*.txt"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(("#", "--"))]
        assert all(line.startswith(("-e .", "paddlepaddle-gpu==")) for line in lines), path


@needs_make
def test_a_cuda_version_chooses_paddles_index_and_is_remembered(tmp_path: Path) -> None:
    done = steps("setup", "GPU=cu126", f"VENV={tmp_path}")
    assert "PADDLE_CUDA=cu126" in done and "-r requirements-gpu.txt" in done
    assert "uninstall -qq --yes paddlepaddle\n" in done  # the two cannot be installed together
    (tmp_path / ".paddle-cu126").touch()
    assert "pip" not in steps("quickstart", f"VENV={tmp_path}")
    other = steps("setup", "GPU=", f"VENV={tmp_path}")
    assert "-r requirements.txt" in other and "uninstall -qq --yes paddlepaddle-gpu\n" in other


@needs_make
def test_without_one_the_cpus_paddle_is_installed(tmp_path: Path) -> None:
    assert "-r requirements.txt" in steps("setup", f"VENV={tmp_path}")


@needs_make
def test_the_quickstart_installs_no_test_requirements(tmp_path: Path) -> None:
    assert "requirements-dev" not in steps("quickstart", f"VENV={tmp_path}")
    assert "-r requirements-dev.txt" in steps("test", f"VENV={tmp_path}")


def interpreter(monkeypatch: pytest.MonkeyPatch, version=(3, 12), system="Linux", machine="x86_64", **found: bool):
    """Let `check_python` see another Python and system. found: libc, venv, gomp; each True by default."""
    monkeypatch.setattr(check_python, "sys", types.SimpleNamespace(version_info=(*version, 0), maxsize=sys.maxsize))
    monkeypatch.setattr(check_python.platform, "system", lambda: system)
    monkeypatch.setattr(check_python.platform, "machine", lambda: machine)
    monkeypatch.setattr(
        check_python.platform, "libc_ver", lambda: ("glibc", "2.41") if found.get("libc", True) else ("", "")
    )
    monkeypatch.setattr(check_python.importlib.util, "find_spec", lambda name: found.get("venv", True) or None)
    monkeypatch.setattr(check_python, "loads", lambda library: found.get("gomp", True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"version": (3, 10)}, None),
        ({"version": (3, 13), "system": "Darwin", "machine": "arm64"}, None),
        ({"system": "Windows", "machine": "AMD64", "libc": False, "gomp": False}, None),
        ({"version": (3, 14)}, "no wheels for Python 3.14; install Python 3.10 to 3.13"),
        ({"version": (3, 9)}, "no wheels for Python 3.9; install Python 3.10 to 3.13"),
        ({"machine": "aarch64"}, "no wheels for Linux on aarch64; use"),
        ({"system": "Darwin"}, "no wheels for Darwin on x86_64; use"),
        ({"libc": False}, "need glibc"),
        ({"venv": False}, "apt-get install python3-venv"),
        ({"gomp": False}, "apt-get install libgomp1"),
    ],
)
def test_a_python_or_system_without_paddle_is_named_with_the_remedy(monkeypatch, changes: dict, words: str | None):
    interpreter(monkeypatch, **changes)
    found = check_python.problem()
    assert found is None if words is None else words in found and "\n" not in found


@needs_make
@pytest.mark.parametrize(
    ("given", "names"), [([], {"python3": "bad", "python3.12": "good"}), (["PYTHON=mine"], {"mine": "bad"})]
)
def test_make_takes_a_python_that_paddle_has_wheels_for(
    tmp_path: Path, given: list[str], names: dict[str, str]
) -> None:
    """python3 if it is one, else the newest on the PATH; one that was asked for is not replaced."""
    for name, kind in names.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        # as `python check_python.py`: fails with its line; as `python -m venv`: leaves a note and ends make
        check = "exit 0" if kind == "good" else "echo 'error: no wheels' >&2; exit 1"
        venv = f'echo {name} > "{tmp_path}/chosen"; exit 1'
        script.write_text(f'#!/bin/sh\ncase "$1" in *check_python.py) {check};; -m) {venv};; esac\n')
        script.chmod(0o755)
    for tool in ("make", "sh"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    command = ["make", "setup", f"VENV={tmp_path}/venv", *given]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True)
    assert done.returncode == 2
    if given:
        assert done.stderr.startswith("error: no wheels\n") and not (tmp_path / "chosen").exists()
    else:
        assert (tmp_path / "chosen").read_text() == "python3.12\n"
