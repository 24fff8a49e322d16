"""What `make setup` installs, and where from."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def steps(*arguments: str) -> str:
    """The commands that make would run."""
    return subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(("#", "--", "paddlepaddle"))]


def test_both_files_of_requirements_differ_in_paddle_alone() -> None:
    assert requirements("requirements-gpu.txt") == requirements("requirements.txt")


def test_a_cuda_version_chooses_paddles_index_and_is_remembered(tmp_path: Path) -> None:
    done = steps("setup", "GPU=cu126", f"VENV={tmp_path}")
    assert "PADDLE_CUDA=cu126" in done and "-r requirements-gpu.txt" in done
    assert "uninstall -qq --yes paddlepaddle\n" in done  # the two cannot be installed together
    (tmp_path / ".installed-cu126").touch()
    assert "pip" not in steps("lint", f"VENV={tmp_path}").replace("ruff", "")
    other = steps("setup", "GPU=", f"VENV={tmp_path}")
    assert "-r requirements.txt" in other and "uninstall -qq --yes paddlepaddle-gpu\n" in other


def test_without_one_the_cpus_paddle_is_installed(tmp_path: Path) -> None:
    assert "-r requirements.txt" in steps("setup", f"VENV={tmp_path}")
