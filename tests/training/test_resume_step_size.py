"""Resuming with another batch size, accumulation or number of devices: the epochs done so far are kept."""

import logging
from pathlib import Path

import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.log import configure
from ppdet_lite.storage.checkpoint import checkpoint_meta
from ppdet_lite.training.loop import train
from ppdet_lite.training.metrics_file import read_metrics
from ppdet_lite.training.state import RunState, StepSize, convert_progress
from tests.tiny_run import QUICKSTART, small_shapes

EIGHT_IMAGES = 8


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    plan = ["train.log_every=1", "train.evaluate_every=1 epoch", "train.checkpoint_every=1 epoch", "eval.loss=true"]
    schedule = "schedule={type: PiecewiseSchedule, milestones: [3 epochs], warmup_iterations: 0}"
    return [*small_shapes(tmp_path_factory.mktemp("shapes"), train=EIGHT_IMAGES, val=1), *plan, schedule]


def run_with(options: list[str], folder: Path, *more: str, resume: str | None = None) -> None:
    train(load_config(QUICKSTART, [*options, "train.preview_images=0", *more]), folder, resume=resume)


@pytest.mark.parametrize(
    "twice",
    [
        pytest.param(["data.loader.batch_size=4"], id="batch", marks=pytest.mark.slow),
        pytest.param(["data.loader.batch_size=2", "train.accumulate=2"], id="batches"),
    ],
)
def test_four_epochs_are_four_epochs_of_images(options: list[str], tmp_path: Path, twice: list[str]) -> None:
    """Two epochs of 4 steps of 2 images, then two epochs of 2 steps of 4 images."""
    run_with(options, tmp_path, "data.loader.batch_size=2", "train.length=2 epochs")
    run_with(options, tmp_path, *twice, "train.length=4 epochs", resume="auto")
    rows = read_metrics(tmp_path / "metrics.jsonl")
    steps = [row for row in rows if "lr" in row]
    assert [row["iteration"] for row in steps] == list(range(1, 13))
    assert [row["epoch"] for row in steps] == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 2
    full = steps[8]["lr"]
    assert [row["lr"] / full for row in steps[8:]] == pytest.approx([1, 1, 0.1, 0.1])  # the milestone is at 3 epochs
    assert full == pytest.approx(2 * steps[0]["lr"])
    assert [row["iteration"] for row in rows if "val_loss" in row] == [4, 8, 10, 12]
    log = (tmp_path / "train.log").read_text()
    assert log.count("2.00 epochs are done, which are 4 iterations of this run") == 1
    meta = checkpoint_meta(tmp_path / "checkpoints/iter_00000012")
    assert (meta["offset"], meta["devices"]) == (4, 1)
    run_with(options, tmp_path, *twice, "train.length=5 epochs", resume="auto")  # the same steps: nothing to convert
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "lr" in row]
    assert [(row["iteration"], row["epoch"]) for row in rows[12:]] == [(13, 4), (14, 4)]
    assert (tmp_path / "train.log").read_text().count("epochs are done") == 1


def test_progress_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    configure().propagate = True
    caplog.set_level(logging.INFO, "ppdet_lite")
    one, same, four = StepSize(4, 2, 1), StepSize(8, 1, 1), StepSize(8, 4, 1)
    state = RunState(iteration=30, best={"AP": 0.5, "iteration": 25}, evaluated=25)
    assert convert_progress(state, one, same, 100) == state  # 12 steps an epoch
    assert "8 images (4 x 2 devices x 1 batches), those of this run 8 images (8 x 1 devices x 1 batches)" in caplog.text
    converted = convert_progress(state, one, four, 100)  # 2.5 epochs of 3 steps: 7.5
    assert converted == state._replace(offset=22)
    assert "2.50 epochs are done, which are 8 iterations" in caplog.text
    back = convert_progress(converted, four, one, 100)  # 8 of 3 a step: 2.67 epochs
    assert back == state._replace(offset=-2)
    assert StepSize(4, 1, 3).per_epoch(10) == 1 and StepSize(64, 1, 1).per_epoch(10) == 1
