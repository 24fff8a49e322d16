"""How often a training step makes a GPU wait: a value that Python asks for, a result whose size only the GPU knows."""

from typing import Any

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling.postprocess import Postprocess
from ppdet_lite.ops import dispatch
from ppdet_lite.ops.cpu import mkl
from ppdet_lite.structures import BoxHeadOutput, Rois
from ppdet_lite.training.step import train_step
from tests import tf32, tiny
from tests.training.reads import counted

MIMIC = {"rois": "both", "rois_per_image": 3, "include_ground_truth": True, "crop_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deformable pooling": {"pool": "modulated"},
    "mimicking": {"mimic": MIMIC},
    "all": {"pool": "modulated", "mimic": {**MIMIC, "crop_from": "network"}},
}


def images(count: int) -> dict[str, Any]:
    """The first images of the tiny batch, the first one again as the third, with a crowd in the first."""
    batch, rows = tiny.batch(), [0, 1, 0][:count]
    batch["targets"][0]["is_crowd"] = np.array([False, True])
    return {key: v[rows] if isinstance(v, np.ndarray) else [v[row] for row in rows] for key, v in batch.items()}


def reads(options: dict[str, Any], batches: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What a step reads, by name."""
    model = tiny.detector(**options)
    model.train()
    optimizer = paddle.optimizer.Momentum(0.001, parameters=model.parameters())
    with counted(monkeypatch) as found:
        step = train_step(model, optimizer, batches, clip_norm=1.0)
    assert ("mimic" in options) == (step.patches is not None)
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_as_a_gpu_takes_it(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most six reads and two for each image."""
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: False)
    found = reads(MODELS[name], images(count), monkeypatch)
    assert found["nms"] == count and "nonzero" not in found
    assert sum(found.values()) <= 6 + 2 * count, found


def test_no_matrix_products_beside_layers_as_a_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 would round their factors to 10 bits: boxes, sampling, pooling, patches and losses consist of none."""
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: False)
    with tf32.refused(monkeypatch):
        reads(MODELS["all"], images(2), monkeypatch)


def by_mkl() -> bool:
    return mkl.functions(paddle.ones([1])) is not None


def test_a_step_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There NMS is done by image and level, of which there are five, and RoIAlign reads its sums twice."""
    assert reads({}, images(2), monkeypatch) == {"nms": 10, "tolist": 4, "numpy": 5 if by_mkl() else 1}


@pytest.mark.parametrize(("images", "candidates", "calls"), [(1, 0, 0), (1, 5, 1), (4, 1000, 15)])
def test_the_last_nms(images: int, candidates: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 classes, whose candidates are RoIs of each image. Over 4096 candidates the ends of the calls are one read."""
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: False)
    count = images * max(candidates, 1)
    probability = 1 / 16 if candidates else 0.01
    logits = paddle.full([count, 16], float(np.log(probability)))
    logits[:, 15] = float(np.log(1 - 15 * probability))
    output = BoxHeadOutput(paddle.zeros([count, 1]), logits, paddle.zeros([count, 60]))
    spread = paddle.arange(count, dtype="float32").unsqueeze(1)
    boxes = paddle.concat([spread, spread, spread + 1, spread + 1], axis=1)
    packed = Rois(boxes, paddle.full([images], count // images, "int32"))
    with counted(monkeypatch) as found:
        sizes = paddle.full([images, 2], 5000.0)
        Postprocess()(output, packed, (1.0,) * 4, sizes, sizes, paddle.ones([images, 2]))
    assert {name: number for name, number in found.items() if number} == {
        "nonzero": 2,
        **({"nms": calls} if calls else {}),
        **({"numpy": 1} if calls > 1 else {}),
    }


def test_losses_of_accumulated_batches_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (sum(reads({}, [images(1)] * times, monkeypatch).values()) for times in (1, 2))
    assert two == 2 * one - 1


def test_what_counts_as_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    x = paddle.arange(4)
    with counted(monkeypatch) as found:
        x[1:3], x[x > 1], x[: x[2]], bool(x[0] == 0), int(x[1]), float(x[1]), x.tolist(), paddle.nonzero(x)
        [0, 1, 2][x[1]], x.shape, len(x)
    assert {name: count for name, count in found.items() if count} == {
        "__getitem__": 2,
        "__bool__": 1,
        "__int__": 1,
        "__float__": 1,
        "tolist": 1,
        "nonzero": 1,
        "__index__": 1,
    }


def test_a_gpus_ways_give_what_a_cpus_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients to rounding: NMS by image, native operators in place of gathers."""
    steps = []
    for on_cpu in (True, False):
        monkeypatch.setattr(dispatch, "on_cpu", lambda _, answer=on_cpu: answer)
        model = tiny.detector()
        model.rpn.min_size = 16.0  # Paddle's gradient is wrong for RoIs smaller than a cell (docs/performance.md)
        model.train()
        paddle.seed(5)
        step = train_step(model, paddle.optimizer.SGD(0.1, parameters=model.parameters()), images(2))
        steps.append((step.losses, {name: value.numpy() for name, value in model.named_parameters()}))
    assert steps[0][0] == pytest.approx(steps[1][0], rel=1e-5)
    for name, value in steps[0][1].items():
        np.testing.assert_allclose(steps[1][1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)
