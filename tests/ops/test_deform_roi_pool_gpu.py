"""Deformable RoI pooling as a GPU computes it: equal to a CPU's way, in few operators, bounded memory, without TF32."""

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor

from ppdet_lite.ops import deform_conv2d, deform_roi_pool, dispatch, sample_groups
from tests import tf32
from tests.operators import count_operators

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
ON_CPU = dispatch.on_cpu


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: False)


def leaf(array: np.ndarray, dtype: str = "float32") -> Tensor:
    return paddle.to_tensor(array, dtype=dtype, stop_gradient=False)


def mixed_rois(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """RoIs in a range of 1333x800 pixels, small, long and large, and their levels."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.uniform(np.log(16), np.log(700), (count, 2)))
    corner = rng.random((count, 2)) * np.maximum([1333, 800] - size, 1)
    level = np.clip(np.floor(2 + np.log2(np.sqrt(size.prod(axis=1)) / 224)), 0, 3)
    return np.concatenate([corner, corner + size], axis=1), level.astype("int64")


def pyramid(channels: int, dtype: str = "float32") -> list[Tensor]:
    rng = np.random.default_rng(1)
    return [leaf(rng.normal(size=(2, channels, 400 // s, 672 // s)), dtype) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize("options", [{}, {"sampling_ratio": 2}, {"semantics": "legacy"}], ids=str)
def test_number_of_operators(options: dict[str, Any]) -> None:
    """At most 300, forward and backward: 1024 RoIs have more than 70 different numbers of samples."""
    boxes, level = mixed_rois(1024)
    rng = np.random.default_rng(2)
    maps, offset, mask = pyramid(1), leaf(rng.normal(size=(1024, 2, 7, 7))), leaf(rng.random((1024, 1, 7, 7)))
    fixed = [paddle.to_tensor(boxes, dtype="float32"), paddle.to_tensor([600, 424], dtype="int32")]
    place = paddle.to_tensor(level)

    def forward_and_backward() -> None:
        out = deform_roi_pool(maps, *fixed, 7, SCALES, offset=offset, mask=mask, level=place, **options)
        paddle.grad(out.sum(), [*maps, offset, mask])

    operators = count_operators(forward_and_backward)
    assert operators["embedding"] > 2  # several groups, each gathered twice
    assert sum(operators.values()) <= 300, operators


CASES: dict[str, dict[str, Any]] = {
    "plain": {"offset": None, "mask": None},
    "adaptive": {},
    "not square": {"output_size": (2, 3)},
    "three samples": {"sampling_ratio": 3},
    "legacy": {"semantics": "legacy", "sample_per_part": 2},
    "legacy parts": {"semantics": "legacy", "part_size": (2, 3), "group_size": 2, "classes": 3},
}


@pytest.mark.parametrize("taps", [1, 1 << 17])
@pytest.mark.parametrize("name", CASES)
def test_equals_a_cpus_way(name: str, taps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results and all gradients, in as many groups as possible and in one."""
    monkeypatch.setattr(sample_groups, "GPU_GROUP_TAPS", taps)
    options = dict(CASES[name])
    size, classes = options.pop("output_size", (4, 4)), options.pop("classes", 1)
    boxes, level = mixed_rois(40)
    boxes[3], boxes[5], boxes[7] = [10, 20, 10, 60], [-90, -50, 300, 1200], [3000, 0, 3200, 90]  # empty, large, outside
    rng = np.random.default_rng(3)
    options = {
        "offset": rng.normal(0, 2, (40, 2 * classes, *options.get("part_size", size))),
        "mask": rng.random((40, 1, *size)),
        **options,
    }

    def run() -> list[np.ndarray]:
        maps = pyramid(12, "float64")
        leaves = {key: leaf(value, "float64") for key, value in options.items() if isinstance(value, np.ndarray)}
        rois = paddle.to_tensor(boxes), paddle.to_tensor([25, 15], dtype="int32")
        out = deform_roi_pool(maps, *rois, size, SCALES, level=paddle.to_tensor(level), **{**options, **leaves})
        upstream = paddle.to_tensor(np.random.default_rng(4).normal(size=out.shape))
        return [out.numpy(), *(grad.numpy() for grad in paddle.grad(out, [*maps, *leaves.values()], upstream))]

    found = run()
    monkeypatch.setattr(dispatch, "on_cpu", ON_CPU)
    for ours, expected in zip(found, run(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-11)


def test_no_rois() -> None:
    maps, offset = pyramid(4), leaf(np.zeros((0, 2, 3, 3)))
    none = paddle.zeros([0, 4]), paddle.to_tensor([0, 0], dtype="int32")
    out = deform_roi_pool(maps, *none, 3, SCALES, offset=offset, level=paddle.zeros([0], "int64"))
    assert out.shape == [0, 4, 3, 3]
    out.sum().backward()
    assert not maps[0].grad.numpy().any() and offset.grad.shape == [0, 2, 3, 3]


@pytest.mark.parametrize("shape", ["mixed", "equal", "one large", "tall and wide", "random"])
def test_memory_is_bounded(shape: str) -> None:
    """By 2^17 taps in a group, or a quarter of all, counted as if each RoI had the largest numbers of samples."""
    rng = np.random.default_rng(5)
    boxes, level = mixed_rois(1024)
    if shape == "equal":
        boxes[:] = [0, 0, 800, 800]
    elif shape == "one large":
        boxes[1:, 2:] = boxes[1:, :2] + 20
    elif shape == "tall and wide":
        boxes[:512, 2:], boxes[512:, 2:] = boxes[:512, :2] + [8, 800], boxes[512:, :2] + [1300, 8]
    elif shape == "random":
        boxes[:, 2:] = boxes[:, :2] + np.exp(rng.uniform(0, 7, (1024, 2)))
    tensors = paddle.to_tensor(boxes, dtype="float32"), paddle.to_tensor(level)
    groups = sample_groups.sample_groups(*tensors, 7, SCALES)
    taps = [len(group.rois) * np.prod(np.array(group.samples) + 1) * 49 for group in groups.groups]
    assert sorted(np.concatenate([group.rois for group in groups.groups])) == list(range(1024))
    assert len(taps) <= sample_groups.GPU_GROUPS
    assert max(taps) <= max(1 << 17, 1024 * np.prod(np.array(groups.largest) + 1) * 49 / 4), taps
    counts = np.ones((2, 1024)) if groups.counts is None else groups.counts.numpy()
    for group in groups.groups if groups.counts is not None else []:
        assert tuple(counts[:, group.rois].max(axis=1)) == group.samples


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))


def errors_of_pooling(compute: Callable[..., Any] = deform_roi_pool) -> dict[str, float]:
    """Errors of results and gradients in float32, relative to float64, of a smooth map as features are."""
    rng = np.random.default_rng(6)
    coarse = np.kron(rng.random((1, 8, 7, 9)), np.ones((4, 4)))
    smooth = sum(np.roll(coarse, (i, j), (2, 3)) for i in range(4) for j in range(4)) / 16
    corner = rng.uniform(0, 100, (30, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(30, 150, (30, 2))], axis=1).astype("float32")
    offset, upstream = rng.normal(0, 0.3, (30, 2, 3, 3)).astype("float32"), rng.normal(size=(30, 8, 3, 3))
    results = []
    for dtype in ("float64", "float32"):
        leaves = [leaf(smooth.astype("float32"), dtype), leaf(offset, dtype)]
        rois = paddle.to_tensor(boxes, dtype=dtype), paddle.to_tensor([30], dtype="int32")
        with pytest.MonkeyPatch.context() as patch, tf32.simulated(patch) if dtype == "float32" else patch.context():
            out = compute(leaves[0], *rois, 3, 1 / 8, offset=leaves[1])
            grads = paddle.grad(out, leaves, paddle.to_tensor(upstream, dtype=dtype))
        results.append([tensor.numpy().astype("float64") for tensor in (out, *grads)])
    return {
        name: relative_error(found, exact)
        for name, exact, found in zip(("result", "maps", "offsets"), *results, strict=True)
    }


def test_tf32_does_not_affect_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix products of a CPU would be rounded: by 3e-4, and by 7e-4 in the gradient of offsets."""
    assert max(errors_of_pooling().values()) < 5e-6, errors_of_pooling()
    monkeypatch.setattr(dispatch, "on_cpu", ON_CPU)
    rounded = errors_of_pooling()
    assert rounded["result"] > 1e-4 and rounded["offsets"] > 4e-4, rounded


def test_deformable_convolution_by_gathers_interpolates_without_matrix_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(7)
    x, offset = leaf(rng.normal(size=(1, 4, 6, 7))), leaf(rng.normal(size=(1, 18, 6, 7)))
    weight = leaf(rng.normal(size=(3, 4, 3, 3)))

    def convolve(implementation: str) -> list[np.ndarray]:
        out = deform_conv2d(x, offset, weight, padding=1, implementation=implementation)
        return [tensor.numpy() for tensor in (out, *paddle.grad(out.sum(), [x, offset, weight]))]

    monkeypatch.setattr(paddle, "bmm", None)
    for found, expected in zip(convolve("gather"), convolve("native"), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
