"""One of two processes that compare the steps of `train_step` with gradients averaged after the backward pass.

Rank 0 has images with objects, rank 1 has none. Prints a line of JSON: per case, the number of buckets, how many of
them started before the end of the last backward pass, and the sizes of all reductions in their order.
"""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ppdet_lite  # noqa: F401  first of all: it sets threads and malloc

import numpy as np  # isort: skip
import paddle  # isort: skip

from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.core.errors import NotFinite, RunFailed
from ppdet_lite.modeling.amp import autocast_forward, bfloat16_layers
from ppdet_lite.modeling.faster_rcnn import FasterRCNN, TrainingOutput
from ppdet_lite.modeling.norm import running_statistics
from ppdet_lite.training import gradient_average
from ppdet_lite.training.step import train_step
from tests import tiny

MIMIC = {"rois_per_image": 3, "include_ground_truth": True, "crop_size": 32}
CASES: dict[str, dict[str, Any]] = {
    "accumulated": {"norm": "bn", "recompute": True, "batches": 2},
    "partial": {"mimic": MIMIC, "amp": "bfloat16", "loss_scale": 8.0, "unused": True, "batches": 2},
}
starts: list[float] = []  # of buckets
sizes: list[int] = []  # elements of reductions
backward_ends: list[float] = []


class Collected:
    """In place of an optimizer: keeps the gradients of the last step."""

    def __init__(self, model: FasterRCNN) -> None:
        self.model, self.gradients = model, {}

    def step(self) -> None:
        named = self.model.named_parameters()
        self.gradients = {name: p.grad.numpy() for name, p in named if p.grad is not None}

    def clear_grad(self, set_to_zero: bool) -> None:
        self.model.clear_gradients(set_to_zero)


class PartlyUsed(paddle.nn.Layer):
    """A detector and two layers of which rank 0 uses one in every other batch, and no rank the other."""

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.some, self.none, self.passes = paddle.nn.Linear(3, 3), paddle.nn.Linear(2, 2), itertools.count()
        self.model = model

    def forward(self, *inputs: Any, iteration: int | None = None) -> TrainingOutput:
        output = self.model(*inputs, iteration=iteration)
        if next(self.passes) % 2 == 0 and ranks.rank() == 0:
            output.losses["loss_some"] = self.some(paddle.ones([1, 3])).square().mean()
        return output


def record() -> None:
    """Record the starts of buckets, the sizes of reductions in their order, and the ends of backward passes."""
    start_average, all_reduce, backward = (
        gradient_average.start_average,
        gradient_average.dist.all_reduce,
        paddle.Tensor.backward,
    )

    def started(tensors: list[paddle.Tensor]) -> Any:
        starts.append(time.perf_counter())
        return start_average(tensors)

    def reduced(tensor: paddle.Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(tensor.size)
        return all_reduce(tensor, *args, **options)

    def ended(*args: Any, **options: Any) -> None:
        backward(*args, **options)
        backward_ends.append(time.perf_counter())

    gradient_average.start_average, gradient_average.dist.all_reduce, paddle.Tensor.backward = started, reduced, ended


def network_of(norm: str = "gn", recompute: bool = False, unused: bool = False, **options: Any) -> paddle.nn.Layer:
    paddle.seed(0)
    model = tiny.detector(norm=norm, **options)
    model.backbone.recompute = recompute
    return PartlyUsed(model) if unused else model


def averaged_afterwards(
    model: paddle.nn.Layer, batches: list[dict[str, Any]], amp: str | None, scale: float
) -> dict[str, np.ndarray]:
    """The gradients of a step: mean over ranks after all backward passes; a missing gradient is 0 on that rank."""
    for number, batch in enumerate(batches):
        paddle.seed(number)
        with bfloat16_layers(model, amp):
            with autocast_forward(amp):
                losses = model(*training_arguments(batch), iteration=0).losses
            (sum(losses.values()) / len(batches) * scale).backward()
    named = dict(model.named_parameters())
    missing = ranks.on_all_ranks(lambda: {name for name, parameter in named.items() if parameter.grad is None})
    for name, parameter in named.items():
        if parameter.grad is None and name not in set.intersection(*missing):
            parameter.grad = paddle.zeros_like(parameter)
    gradients = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
    gradient_average.average_tensors([*gradients.values(), *running_statistics(model)])
    return {name: (gradient / scale).numpy() for name, gradient in gradients.items()}


def compare(
    case: str, batches: int = 1, amp: str | None = None, loss_scale: float = 1.0, **options: Any
) -> dict[str, Any]:
    """Compare the gradients and statistics of both ways. Returns the line of the report."""
    images = [{key: value[ranks.rank() :][:1] for key, value in tiny.batch(seed).items()} for seed in range(batches)]
    model = network_of(**options)
    before = [statistic.clone() for statistic in running_statistics(model)]
    expected = averaged_afterwards(model, images, amp, loss_scale)
    statistics = [statistic.numpy() for statistic in running_statistics(model)]
    for statistic, value in zip(running_statistics(model), before, strict=True):
        paddle.assign(value, statistic)
    model.clear_gradients(set_to_zero=False)
    for recorded in (starts, sizes, backward_ends):
        recorded.clear()
    optimizer = Collected(model)
    train_step(model, optimizer, images, None, 0, range(batches), amp, loss_scale)
    assert optimizer.gradients.keys() == expected.keys(), case
    for name, gradient in expected.items():
        np.testing.assert_array_equal(optimizer.gradients[name], gradient, err_msg=f"{case}: {name}")
    for found, statistic in zip(running_statistics(model), statistics, strict=True):
        np.testing.assert_array_equal(found.numpy(), statistic, err_msg=case)
    assert "none.weight" not in expected and ("some.weight" in expected) is ("unused" in options)
    assert all(start > end for start in starts for end in backward_ends[:-1])  # only in the last backward pass
    buckets = len(starts) - bool(statistics)  # running statistics are averaged last
    return {"buckets": buckets, "early": sum(start < backward_ends[-1] for start in starts), "sizes": list(sizes)}


class Broken(paddle.autograd.PyLayer):
    """The identity, whose backward pass fails."""

    @staticmethod
    def forward(_: Any, x: paddle.Tensor) -> paddle.Tensor:
        return x * 1

    @staticmethod
    def backward(_: Any, __: paddle.Tensor) -> paddle.Tensor:
        raise ValueError("the backward pass fails")


class Failing(paddle.nn.Layer):
    """A detector that fails, as `how` says: in its forward pass, in the backward pass, or with a loss of NaN."""

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model, self.how = model, ""
        block, forward = model.backbone.res3[0], model.backbone.res3[0].forward
        block.forward = lambda x: Broken.apply(forward(x)) if self.how == "backward" else forward(x)

    def forward(self, *inputs: Any, iteration: int | None = None) -> TrainingOutput:
        if self.how == "forward":
            raise ValueError("the forward pass fails")
        output = self.model(*inputs, iteration=iteration)
        if self.how == "nan":
            output.losses["loss_nan"] = self.model.predictor.classify.bias.sum() * float("nan")
        return output


def check_failures() -> None:
    """An error of rank 1 is raised on both ranks, after which they go on together."""
    start_average, calls = gradient_average.start_average, itertools.count()
    model, batch = Failing(network_of()), {key: value[:1] for key, value in tiny.batch().items()}

    def out_of_memory(tensors: list[paddle.Tensor]) -> Any:
        if next(calls) == 1:  # the second bucket, at its first attempt
            raise MemoryError("no memory for a bucket")
        return start_average(tensors)

    for how, kind, text in [
        ("forward", RunFailed, "rank 1: ValueError: the forward pass fails"),
        ("backward", RunFailed, "the backward pass fails"),
        ("bucket", RunFailed, "out of memory in training"),
        ("nan", NotFinite, "a loss is not finite"),
    ]:
        failed = None
        if ranks.rank() == 1:
            model.how = how
            gradient_average.start_average = out_of_memory if how == "bucket" else start_average
        try:
            train_step(model, Collected(model), batch)
        except Exception as error:
            assert ranks.rank() == 1 or (type(error) is kind and text in str(error)), f"{how}: {error!r}"
            failed = error
        assert failed is not None, how
        model.clear_gradients(set_to_zero=False)
        tensor = paddle.full([3], float(ranks.rank()))
        gradient_average.average_tensors([tensor])
        assert tensor.tolist() == [0.5, 0.5, 0.5], how


def main() -> None:
    ranks.start()
    gradient_average.BUCKET = 1 << 20
    record()
    report = {case: compare(case, **options) for case, options in CASES.items()}
    check_failures()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
