"""The plan of a run, and warnings about what comes after its end."""

from pathlib import Path

import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.training.plan import Plan, make_plan

QUICKSTART = Path(__file__).resolve().parents[2] / "configs/quickstart/shapes_r18_fpn.yml"


@pytest.mark.parametrize(
    ("length", "milestones", "late"),
    [
        ("6 epochs", "[8 epochs, 11 epochs]", "8 epochs, 11 epochs"),
        ("11 epochs", "[8 epochs, 11 epochs]", "11 epochs"),
        ("12 epochs", "[8 epochs, 11 epochs]", None),
        ("60 iterations", "[3 epochs, 90 iterations]", "90 iterations"),
        ("30 iterations", "[3 epochs]", "3 epochs"),
    ],
)
def test_milestones_beyond_the_end(
    length: str, milestones: str, late: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = f"schedule={{type: PiecewiseSchedule, warmup_iterations: 5, milestones: {milestones}}}"
    make_plan(load_config(QUICKSTART, [f"train.length={length}", schedule]), per_epoch=10)
    expected = (
        f"command line: schedule.milestones: the learning rate is not lowered at {late}, "
        f"since training ends after {length} (train.length)"
    )
    assert [record.message for record in caplog.records] == ([] if late is None else [expected])


def test_what_is_due_every_few_iterations_is_due_at_the_end_too() -> None:
    plan = Plan(total=10, per_epoch=5, checkpoint_every=4, evaluate_every=None, early_stop=None)
    iterations = range(1, 11)
    assert [i for i in iterations if plan.due(plan.checkpoint_every, i)] == [4, 8, 10]
    assert [i for i in iterations if plan.due(plan.evaluate_every, i)] == [10]


@pytest.mark.parametrize(("warmup", "warned"), [(9, False), (10, True)])
def test_a_warm_up_that_does_not_end(warmup: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Iterations 0 to 9: a warm-up of 10 would reach the full rate only in iteration 10."""
    make_plan(load_config(QUICKSTART, ["train.length=10 iterations", f"schedule.warmup_iterations={warmup}"]), 5)
    assert ("the warm-up of 10 iterations is not over when training ends after 10" in caplog.text) == warned


@pytest.mark.parametrize(("start", "warned"), [(9, False), (10, True)])
def test_mimicking_that_never_begins(start: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    config = QUICKSTART.parent / "shapes_r18_fpn_mimic.yml"
    make_plan(load_config(config, ["train.length=10 iterations", f"model.mimic.start_iteration={start}"]), 5)
    assert ("model.mimic.start_iteration is 10, training ends after 10 iterations" in caplog.text) == warned


def test_a_length_of_no_iteration_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.length: must be at least one iteration, got 0 epochs"):
        make_plan(load_config(QUICKSTART, ["train.length=0 epochs"]), per_epoch=5)
