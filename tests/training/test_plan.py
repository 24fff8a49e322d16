"""The plan of a run, and warnings about what comes after its end."""

from pathlib import Path

import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.training.plan import make_plan

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
