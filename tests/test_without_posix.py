"""The package on a system without POSIX, such as Windows (simulated)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the simulation finds open files in /proc")
def test_the_package_is_imported_trains_and_evaluates(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests/without_posix.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("imported, trained and evaluated\n"), done.stderr[-3000:]
