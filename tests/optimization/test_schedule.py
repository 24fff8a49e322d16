"""Learning-rate schedules at chosen iterations, and durations."""

import math

import pytest

from ppdet_lite.optimization.duration import to_iterations
from ppdet_lite.optimization.schedule import CosineSchedule, PiecewiseSchedule


@pytest.mark.parametrize(
    ("text", "iterations"),
    [("12 epochs", 84), ("1 epoch", 7), ("500 iterations", 500), ("1 iteration", 1), ("0 epochs", 0), ("3epochs", 21)],
)
def test_durations(text: str, iterations: int) -> None:
    assert to_iterations(text, 7) == iterations


@pytest.mark.parametrize("text", ["12", "", "epochs", "1.5 epochs", "-1 epochs", "2 steps", " 2 epochs", "2 epochs "])
def test_invalid_durations(text: str) -> None:
    with pytest.raises(ValueError) as error:
        to_iterations(text, 7)
    assert str(error.value) == "a duration such as '12 epochs' or '500 iterations'"


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [(0, 0.1), (5, 0.55), (9, 0.91), (10, 1), (19, 1), (20, 0.2), (34, 0.2), (35, 0.04), (10**6, 0.04)],
)
def test_piecewise(iteration: int, factor: float) -> None:
    """Milestones at 20 and 35, written in any order and unit; the rate is lower from the milestone on."""
    schedule = PiecewiseSchedule(10, 0.1, milestones=("35 iterations", "2 epochs"), gamma=0.2)
    assert schedule.factor(iteration, 1000, 10) == pytest.approx(factor)


def test_milestones_follow_the_length_of_an_epoch() -> None:
    schedule = PiecewiseSchedule(0, milestones=["2 epochs"])
    assert [schedule.factor(i, 1000, 100) for i in (0, 199, 200)] == [1, 1, pytest.approx(0.1)]


def test_equal_milestones_count_twice() -> None:
    schedule = PiecewiseSchedule(0, milestones=("1 epoch", "10 iterations"))
    assert schedule.factor(10, 1000, 10) == pytest.approx(0.01)


def test_no_milestones() -> None:
    assert PiecewiseSchedule(0, milestones=()).factor(10**6, 1000, 10) == 1


def test_the_defaults_are_detectron2s_1x() -> None:
    """90000 iterations, 7500 per epoch: factor 1 from 1000, 0.1 from 60000, 0.01 from 82500."""
    schedule = PiecewiseSchedule()
    found = [schedule.factor(i, 90_000, 7500) for i in (0, 500, 1000, 59_999, 60_000, 82_499, 82_500, 89_999)]
    assert found == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [
        (0, 1),
        (25, 0.2 + 0.4 * (1 + math.sqrt(0.5))),
        (50, 0.6),
        (75, 0.2 + 0.4 * (1 - math.sqrt(0.5))),
        (100, 0.2),
        (150, 0.2),
    ],
)
def test_cosine(iteration: int, factor: float) -> None:
    assert CosineSchedule(0, floor=0.2).factor(iteration, 100, 10) == pytest.approx(factor)


def test_warm_up_multiplies_the_decay() -> None:
    schedule = CosineSchedule(warmup_iterations=50, warmup_factor=0.0)
    assert schedule.factor(0, 100, 10) == 0
    assert schedule.factor(25, 100, 10) == pytest.approx(0.5 * 0.5 * (1 + math.sqrt(0.5)))
    assert schedule.factor(50, 100, 10) == pytest.approx(0.5)


def test_warm_up_is_linear() -> None:
    schedule = PiecewiseSchedule(4, 0.2, milestones=())
    assert [schedule.factor(i, 100, 10) for i in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
