"""A training step: the seeds of its sampling, and what it computes in mixed precision."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paddle
import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.modeling import amp
from ppdet_lite.optimization.optimizer import SGD
from ppdet_lite.training.loop import train
from ppdet_lite.training.step import Step, batch_seed, train_step
from tests import tiny
from tests.tiny_run import QUICKSTART, small_shapes


def test_every_batch_of_every_run_samples_by_a_seed_of_its_own() -> None:
    seeds = {(run, batch): batch_seed(run, batch) for run in range(20) for batch in range(50)}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**32 and batch_seed(*key) == seed for key, seed in seeds.items())


def test_a_run_trains_in_training_mode_and_samples_by_its_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two accumulated batches a step: the run's batches 0 and 1, then 2 and 3. An evaluation changes the mode."""
    seen: list[Any] = []

    def step(network: paddle.nn.Layer, *arguments: Any, **_: Any) -> Step:
        seen.extend([network.training and network.neck.training, *arguments[4]])
        return Step({"loss": 1.0}, {})

    def evaluate(detector: Detector, *_: Any) -> dict[str, Any]:
        detector.network.model.eval()
        return {"AP": 0.5, "per_class": {}}

    monkeypatch.setattr("ppdet_lite.training.run.train_step", step)
    monkeypatch.setattr("ppdet_lite.training.run.evaluate", evaluate)
    options = small_shapes(tmp_path / "shapes", train=4, val=1)
    options += ["train={length: 2 iterations, checkpoint_every: null, evaluate_every: 1 iterations, accumulate: 2}"]
    options += ["train.preview_images=0", "data.loader.threads=0", "runtime.seed=5"]
    train(load_config(QUICKSTART, options), tmp_path / "run")
    assert seen == [True, batch_seed(5, 0), batch_seed(5, 1), True, batch_seed(5, 2), batch_seed(5, 3)]


def test_each_accumulated_batch_samples_by_its_own_seed() -> None:
    """The same batch twice in a step has the mean of the losses that it has alone with either seed."""

    def losses(*seeds: int) -> dict[str, float]:
        model = tiny.detector()
        model.train()
        optimizer = SGD().build(model)
        optimizer.set_lr(0.01)
        return train_step(model, optimizer, [tiny.batch()] * len(seeds), seeds=seeds).losses

    first, second, both = losses(3), losses(4), losses(3, 4)
    assert first["loss_cls"] != pytest.approx(second["loss_cls"], rel=1e-4)
    assert both == pytest.approx({name: (value + second[name]) / 2 for name, value in first.items()}, rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_on_a_gpu_the_forward_pass_computes_in_the_configured_type(
    dtype: amp.AmpDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paddle's auto_cast without a type would compute in float16. The backward pass runs outside of it."""
    events: list[Any] = []

    @contextlib.contextmanager
    def auto_cast(enable: bool = True, **options: Any) -> Iterator[None]:
        if enable:
            events.append(options)
        yield
        if enable:
            events.append("end")

    model = tiny.detector()
    model.train()
    model.box_head.fc1.register_forward_post_hook(lambda *_: events.append("forward"))
    model.box_head.fc1.weight.register_hook(lambda _: events.append("backward"))
    optimizer = SGD().build(model)
    optimizer.set_lr(0.01)
    monkeypatch.setattr(amp, "_on_cpu", lambda: False)
    monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)
    train_step(model, optimizer, tiny.batch(), amp=dtype)
    assert events == [{"level": "O1", "dtype": dtype}, "forward", "end", "backward"]
    events.clear()
    train_step(model, optimizer, tiny.batch())
    assert events == ["forward", "backward"]
