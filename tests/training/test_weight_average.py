"""The moving average of weights: its formula, what it costs, and the checkpoints of a run that has one."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.core.errors import Stopped
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.modeling.norm import NormName
from ppdet_lite.modeling.resnet import ResNet
from ppdet_lite.optimization.optimizer import Average
from ppdet_lite.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ppdet_lite.storage.weights import read_weights
from ppdet_lite.training.curves import CurvesPlot
from ppdet_lite.training.ema import WeightAverage
from ppdet_lite.training.loop import train
from ppdet_lite.training.recorder import Recorder
from tests.operators import count_operators
from tests.tiny_run import QUICKSTART, small_shapes

BIAS = "predictor.classify.bias"
AP = (0.9, 0.1)  # of the evaluations after iterations 2 and 4


def test_the_average_is_the_formula() -> None:
    model = paddle.nn.Linear(2, 1)
    weights = [np.full((2, 1), value, np.float32) for value in (1.0, 3.0, 5.0)]
    model.weight.set_value(weights[0])
    average = WeightAverage(model, Average(decay=0.2))
    expected = 1.0
    for weight, kept in zip(weights[1:], (2 / 11, 0.2), strict=True):
        model.weight.set_value(weight)
        average.update(1 if kept < 0.2 else 2)
        expected = kept * expected + (1 - kept) * weight[0, 0]
    np.testing.assert_allclose(average.arrays()["weight"], np.full((2, 1), expected), rtol=1e-6)
    with average.applied():
        np.testing.assert_allclose(model.weight.numpy(), np.full((2, 1), expected), rtol=1e-6)
    np.testing.assert_array_equal(model.weight.numpy(), weights[2])


@pytest.mark.parametrize(
    "depth, norm, count",
    [
        (50, "frozen_bn", 42),  # of 53 convolutions, all but the stem and the 10 of stage 2
        (50, "bn", 5 * 42),  # with weight, bias, mean and variance of each norm
        (18, "frozen_stats_bn", 3 * 15),  # of 20 convolutions, all but the stem and the 4 of stage 2
        (18, "gn", 3 * 15),
    ],
)
def test_only_weights_that_change_are_averaged(depth: int, norm: NormName, count: int) -> None:
    """A ResNet with a frozen stem and stage 2: an operator per weight that changes, and one for the fraction."""
    model = ResNet(depth, norm=norm, frozen_stages=2)
    average = WeightAverage(model, Average())
    assert count_operators(lambda: average.update(1)) == {"lerp": count, "full": 1}
    with average.applied():
        assert average.arrays().keys() == model.state_dict().keys()


def test_frozen_weights_have_no_average_of_their_own() -> None:
    model = ResNet(18, norm="frozen_bn", frozen_stages=2)
    average = WeightAverage(model, Average(decay=0.5))
    for value in model.state_dict().values():
        value.set_value(value + 1)
    average.update(1)
    averaged = average.arrays()
    for name, value in model.state_dict().items():
        is_frozen = ".norm." in name or name.startswith(("stem.", "res2."))
        assert np.array_equal(averaged[name], value.numpy()) == is_frozen, name


def score(monkeypatch: pytest.MonkeyPatch, *results: float) -> list[np.ndarray]:
    """Have evaluations return these APs; the list receives the bias of the classifier that each finds in the model."""
    seen: list[np.ndarray] = []
    scores = iter(results)

    def evaluate(detector: Detector, *_: object) -> dict[str, Any]:
        seen.append(detector.network.model.predictor.classify.bias.numpy())
        return {"AP": next(scores), "per_class": {}}

    monkeypatch.setattr("ppdet_lite.training.run.evaluate", evaluate)
    return seen


@pytest.fixture(scope="module", autouse=True)
def no_curves() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CurvesPlot, "draw", lambda _: None)
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        *small_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=1),
        "data.loader.threads=0",
        "schedule.warmup_iterations=0",
        "train={length: 4 iterations, checkpoint_every: 1 iterations, evaluate_every: 2 iterations}",
        "train.keep_last=9",
        "train.preview_images=0",
        "train.ema={decay: 0.3}",
    ]


@pytest.fixture(scope="module")
def straight(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption, whose best evaluation is that after iteration 2."""
    run = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        seen = score(patch, *AP)
        train(load_config(QUICKSTART, options), run)
    np.save(run / "seen.npy", seen)
    return run


def checkpoint(run: Path, name: int | str) -> Checkpoint:
    return load_checkpoint(run / "checkpoints" / (name if isinstance(name, str) else f"iter_{name:08d}"))


def assert_equal(one: Checkpoint, other: Checkpoint) -> None:
    """All groups bit for bit, and the state of the run."""
    assert one.groups.keys() == other.groups.keys() == {"model", "optimizer", "ema"}
    for group, arrays in one.groups.items():
        assert arrays.keys() == other.groups[group].keys()
        for name, value in arrays.items():
            np.testing.assert_array_equal(value, other.groups[group][name], err_msg=f"{group} {name}")
    assert one.meta == other.meta


def test_the_average_of_a_run_counts_its_steps_from_one(straight: Path, options: list[str]) -> None:
    average = {n: value.numpy() for n, value in build_model(load_config(QUICKSTART, options)).state_dict().items()}
    for step, kept in enumerate((2 / 11, 3 / 12, 0.3, 0.3), start=1):
        groups = checkpoint(straight, step).groups
        for name, own in groups["model"].items():
            average[name] = kept * average[name] + (1 - kept) * own
            np.testing.assert_allclose(groups["ema"][name], average[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_evaluation_uses_the_average(straight: Path) -> None:
    """That of the run, and whatever reads a checkpoint's weights afterwards."""
    second, fourth = np.load(straight / "seen.npy")
    for step, seen in ((2, second), (4, fourth)):
        groups = checkpoint(straight, step).groups
        np.testing.assert_array_equal(groups["ema"][BIAS], seen)
        assert (groups["model"][BIAS] != seen).any()
    np.testing.assert_array_equal(read_weights(straight).arrays[BIAS], second)
    np.testing.assert_array_equal(read_weights(straight / "checkpoints/iter_00000004").arrays[BIAS], fourth)


def test_the_best_checkpoint_has_what_an_ordinary_one_has(straight: Path) -> None:
    assert_equal(checkpoint(straight, "best"), checkpoint(straight, 2))
    assert checkpoint(straight, "best").meta["best"] == {"AP": 0.9, "iteration": 2}


@pytest.mark.parametrize("name", ["best", "iter_00000002"])
def test_a_run_resumes_alike_from_both(
    straight: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capsys: Any
) -> None:
    score(monkeypatch, AP[1])
    train(load_config(QUICKSTART, options), tmp_path, resume=str(straight / "checkpoints" / name))
    assert_equal(checkpoint(tmp_path, 4), checkpoint(straight, 4))
    assert "averaged" not in capsys.readouterr().out


def test_resuming_from_an_older_best_checkpoint_is_warned_about(
    straight: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    groups, meta = checkpoint(straight, "best")
    old = tmp_path / "old/best"
    save_checkpoint(old, {**groups, "model": groups["ema"]}, meta)
    train(load_config(QUICKSTART, [*options, "train.length=2 iterations"]), tmp_path / "run", resume=str(old))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "average" in line]
    assert re.search(r"WARNING .*old/best: its own weights are the average, .*: training continues from the", line)


@pytest.mark.parametrize("exchange", ["to the average", "back"])
def test_a_stop_request_leaves_no_weights_half_exchanged(
    straight: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: str
) -> None:
    """A request while the model receives the average for an evaluation, and while it receives its own weights back."""
    set_value, update, calls = paddle.Tensor.set_value, WeightAverage.update, []

    def receive_request(self: paddle.Tensor, value: paddle.Tensor) -> None:
        set_value(self, value)
        if calls:
            calls.append(1)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    def updated(self: WeightAverage, *arguments: Any) -> None:
        update(self, *arguments)
        if arguments[-1] == 2 and exchange == "to the average":
            calls.append(1)

    def evaluate(*_: object) -> dict[str, Any]:
        calls.append(1)
        return {"AP": 0.9, "per_class": {}}

    monkeypatch.setattr(paddle.Tensor, "set_value", receive_request)
    monkeypatch.setattr(WeightAverage, "update", updated)
    monkeypatch.setattr("ppdet_lite.training.run.evaluate", evaluate)
    with pytest.raises(Stopped):
        train(load_config(QUICKSTART, options), tmp_path, resume=str(straight / "checkpoints/iter_00000001"))
    stopped, expected = checkpoint(tmp_path, 2).groups, checkpoint(straight, 2).groups
    for group in ("model", "ema"):
        for name, value in expected[group].items():
            np.testing.assert_array_equal(stopped[group][name], value, err_msg=f"{group} {name}")


def test_an_evaluation_that_is_stopped_after_its_scores_is_repeated(
    straight: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the best model would be known, but never saved."""

    def preview(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)  # the signal ends it

    config = load_config(QUICKSTART, options)
    score(monkeypatch, AP[0], *AP)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Recorder, "preview", preview)
        train(config, tmp_path, resume=str(straight / "checkpoints/iter_00000001"))
    assert not (tmp_path / "checkpoints/best").exists()
    train(config, tmp_path, resume="auto")
    for name in ("best", 4):
        assert_equal(checkpoint(tmp_path, name), checkpoint(straight, name))
