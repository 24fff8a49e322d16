"""Errors that nobody foresaw, in the middle of a run of one process: what was done is saved, and the log has them."""

from collections import Counter
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.errors import InterruptedUpdate, RunFailed
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.storage.checkpoint import load_checkpoint
from ppdet_lite.training.curves import CurvesPlot
from ppdet_lite.training.ema import WeightAverage
from ppdet_lite.training.loop import train
from ppdet_lite.training.step import Step
from tests.operators import count_operators
from tests.tiny_run import QUICKSTART, small_shapes


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    shapes = small_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=1)
    more = ["train={length: 3 iterations, checkpoint_every: null, evaluate_every: null}", "data.loader.threads=0"]
    return [*shapes, *more]


@pytest.fixture(scope="module")
def config(options: list[str]) -> Config:
    return load_config(QUICKSTART, options)


@pytest.fixture(scope="module")
def straight(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The weights at the end of a run without a failure."""
    run = tmp_path_factory.mktemp("straight")
    train(config, run)
    return load_checkpoint(run / "checkpoints/iter_00000003").groups["model"]


def fail_after_the_third_forward(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Once, behind the forward pass, which has moved the running statistics of norms."""
    real, calls = FasterRCNN.forward, []

    def forward(self: FasterRCNN, *args: object, **options: object) -> object:
        output = real(self, *args, **options)
        calls.append(1)
        if len(calls) == 3:
            raise error
        return output

    monkeypatch.setattr(FasterRCNN, "forward", forward)


@pytest.mark.parametrize("error", [RuntimeError("(External) cuDNN says 9"), MemoryError(), ZeroDivisionError("odd")])
def test_what_was_done_is_saved_and_goes_on_to_the_same_weights(
    config: Config,
    straight: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    fail_after_the_third_forward(monkeypatch, error)
    told = RunFailed if isinstance(error, MemoryError) else type(error)
    with pytest.raises(told, match="out of memory in training" if told is RunFailed else str(error)[-4:]):
        train(config, tmp_path)
    log = (tmp_path / "train.log").read_text()
    assert "WARNING the run fails; its finished iterations are saved as iter_00000002" in log
    assert ("out of memory in training" if told is RunFailed else f"{told.__name__}: {error}") in log
    assert ("Traceback" in log) == (told is not RunFailed)
    train(config, tmp_path, resume="auto")
    again = load_checkpoint(tmp_path / "checkpoints/iter_00000003").groups["model"]
    assert all((value == again[name]).all() for name, value in straight.items())


@pytest.mark.parametrize("norm, copies", [("bn", 1), ("frozen_bn", 0), ("gn", 0)])
def test_a_step_copies_only_running_statistics_by_one_operator(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: str, copies: int
) -> None:
    """The operators of three more steps, in which nothing is computed."""
    monkeypatch.setattr("ppdet_lite.training.run.train_step", lambda *_, **__: Step({"loss": 1.0}, {}))
    monkeypatch.setattr(CurvesPlot, "draw", lambda _: None)

    def operators(length: int) -> Counter[str]:
        more = [f"model.backbone.norm={norm}", f"train.length={length} iterations"]
        return count_operators(lambda: train(load_config(QUICKSTART, [*options, *more]), tmp_path / str(length)))

    assert operators(4) - operators(1) == Counter(concat=3 * copies)


@pytest.mark.parametrize(
    "what, owner, name",
    [("the weights", paddle.optimizer.AdamW, "step"), ("the average of weights", WeightAverage, "update")],
)
def test_half_updated_weights_are_not_saved(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, owner: type, name: str
) -> None:
    def update(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(owner, name, update)
    averaged = load_config(QUICKSTART, [*options, "train.ema={decay: 0.9}"])
    with pytest.raises(
        InterruptedUpdate, match=rf"out of memory in the update of {what}: .* resume from the last checkpoint"
    ):
        train(averaged, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert f"the update of {what} failed" in (tmp_path / "train.log").read_text()


def test_memory_that_is_out_for_the_rescue_too_hides_no_error(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object) -> None:
        raise MemoryError("for a checkpoint")

    fail_after_the_third_forward(monkeypatch, RuntimeError("the reason"))
    monkeypatch.setattr("ppdet_lite.training.run.save_state", save)
    with pytest.raises(RuntimeError, match="the reason"):
        train(config, tmp_path)
    assert "WARNING the finished iterations cannot be saved: for a checkpoint" in (tmp_path / "train.log").read_text()
