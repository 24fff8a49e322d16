"""Ten kills at random instants, which take minutes: `make test-slow`."""

import signal
from pathlib import Path

import pytest

from tests.training.kill_run import killed_against_straight


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_again_and_again_comes_to_the_same(
    tmp_path: Path, request: pytest.FixtureRequest, number: signal.Signals
) -> None:
    if not request.config.getoption("--slow"):
        pytest.skip("minutes: make test-slow")
    kills, differing = killed_against_straight(tmp_path, 10, number, seed=1)
    assert len(kills) == 10 and differing == []
    if number == signal.SIGKILL:  # the other one lets a checkpoint be finished
        assert any(kill.writing for kill in kills)
