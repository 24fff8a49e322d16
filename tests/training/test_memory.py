"""Memory that does not grow, over minutes: `make test-slow`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("what", ["loader", "steps"])
def test_memory_does_not_grow(request: pytest.FixtureRequest, what: str) -> None:
    if not request.config.getoption("--slow"):
        pytest.skip("minutes: make test-slow")
    command = [sys.executable, "-m", "tests.training.memory_run", what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
