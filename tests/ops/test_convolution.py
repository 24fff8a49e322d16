"""Convolution by oneDNN against Paddle's own operator in double precision."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppdet_lite.core import runtime
from ppdet_lite.ops import dispatch
from ppdet_lite.ops.cpu import onednn
from ppdet_lite.ops.layers import conv2d

needs_onednn = pytest.mark.skipif(onednn.library() is None, reason="Paddle without oneDNN 3")
RNG = np.random.default_rng(0)


def tensors(arrays: list[np.ndarray], dtype: str) -> list[paddle.Tensor]:
    return [paddle.to_tensor(array, dtype=dtype, stop_gradient=False) for array in arrays]


def with_gradients(operator, arrays: list[np.ndarray], grad: np.ndarray, dtype: str, **options) -> list[np.ndarray]:
    """Return the output and the gradients of x, weight and bias, if there is one."""
    inputs = tensors(arrays, dtype)
    out = operator(*inputs, **options)
    return [out.numpy(), *(g.numpy() for g in paddle.grad(out, inputs, paddle.to_tensor(grad, dtype=dtype)))]


def case(channels: int, kernel: int, biased: bool, **options) -> tuple[list[np.ndarray], np.ndarray]:
    """Return random x, weight and bias, and a random gradient of the output."""
    groups = options.get("groups", 1)
    x, weight = RNG.normal(size=(2, channels, 13, 10)), RNG.normal(size=(24, channels // groups, kernel, kernel))
    arrays = [x, weight, RNG.normal(size=24)] if biased else [x, weight]
    return arrays, RNG.normal(size=F.conv2d(*tensors(arrays, "float64"), **options).shape)


CASES = [
    (3, 7, False, {"stride": 2, "padding": 3}),
    (16, 3, False, {"padding": 1}),
    (16, 3, True, {"stride": 2, "padding": 1}),
    (16, 3, False, {"padding": 2, "dilation": 2}),
    (16, 3, True, {"padding": 1, "groups": 8}),
    (12, 3, False, {"padding": 1, "groups": 4}),
    (16, 1, True, {}),
    (16, 1, False, {}),
    (16, 1, False, {"stride": 2}),
]


@needs_onednn
@pytest.mark.parametrize(("channels", "kernel", "biased", "options"), CASES)
def test_numbers_and_gradients(channels: int, kernel: int, biased: bool, options: dict[str, int]) -> None:
    arrays, grad = case(channels, kernel, biased, **options)
    expected = with_gradients(F.conv2d, arrays, grad, "float64", **options)
    for ours, theirs in zip(with_gradients(conv2d, arrays, grad, "float32", **options), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())


@needs_onednn
def test_the_same_bits_every_time() -> None:
    arrays, grad = case(16, 3, True, padding=1)
    runs = [with_gradients(conv2d, arrays, grad, "float32", padding=1) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


@needs_onednn
def test_several_sizes_in_turn() -> None:
    weight = RNG.normal(size=(8, 4, 3, 3))
    for height in (5, 9, 5):
        x = RNG.normal(size=(1, 4, height, 6))
        expected = F.conv2d(*tensors([x, weight], "float64"), padding=1)
        ours = conv2d(*tensors([x, weight], "float32"), padding=1)
        np.testing.assert_allclose(ours.numpy(), expected.numpy(), atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("trained", ["x", "weight", "bias", ""])
def test_gradients_of_some_inputs_only(trained: str) -> None:
    arrays, grad = case(16, 3, True, padding=1)
    expected = dict(zip(("x", "weight", "bias"), with_gradients(F.conv2d, arrays, grad, "float64", padding=1)[1:]))
    inputs = dict(zip(("x", "weight", "bias"), tensors(arrays, "float32")))
    for name, tensor in inputs.items():
        tensor.stop_gradient = name != trained
    out = conv2d(**inputs, padding=1)
    assert out.stop_gradient == (trained == "")
    if trained:
        out.backward(paddle.to_tensor(grad, dtype="float32"))
    for name, tensor in inputs.items():
        if name == trained:
            np.testing.assert_allclose(tensor.grad.numpy(), expected[name], rtol=1e-4, atol=1e-4)
        else:
            assert tensor.grad is None


@needs_onednn
def test_non_contiguous_input() -> None:
    x, weight = tensors([RNG.normal(size=(2, 9, 7, 4)), RNG.normal(size=(8, 4, 3, 3))], "float32")
    view = x.transpose([0, 3, 1, 2])
    np.testing.assert_allclose(conv2d(view, weight).numpy(), F.conv2d(view, weight).numpy(), atol=1e-5)


def paddles_own() -> tuple[list[np.ndarray], np.ndarray]:
    arrays, _ = case(16, 3, True, padding=1)
    return conv2d(*tensors(arrays, "float32"), padding=1).numpy(), F.conv2d(
        *tensors(arrays, "float32"), padding=1
    ).numpy()


def test_paddles_operator_on_a_gpu_and_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "on_cpu", lambda _: False)
        np.testing.assert_array_equal(*paddles_own())
    monkeypatch.setattr(onednn, "library", lambda: None)
    np.testing.assert_array_equal(*paddles_own())


def test_no_images_and_double_precision() -> None:
    weight = paddle.ones([8, 4, 3, 3])
    assert conv2d(paddle.zeros([0, 4, 5, 6]), weight, padding=1).shape == [0, 8, 5, 6]
    x = paddle.ones([1, 4, 5, 6], "float64")
    assert conv2d(x, weight.astype("float64")).dtype == paddle.float64


@needs_onednn
@pytest.mark.parametrize(("weight", "bias"), [((8, 5, 1, 1), 8), ((8, 4, 1, 1), 7)])
def test_paddle_reports_inconsistent_shapes(weight: tuple[int, ...], bias: int) -> None:
    arrays = [np.ones((1, 4, 2, 2)), np.ones(weight), np.ones(bias)]
    with pytest.raises(ValueError):
        conv2d(*tensors(arrays, "float32"))


@needs_onednn
def test_two_threads_at_once() -> None:
    """Forward pass only: two threads in Paddle's autograd crash the process."""
    images = [tensors([RNG.normal(size=(2, 16, 13, 10))], "float32")[0] for _ in range(20)]
    weight = paddle.ones([24, 16, 3, 3])
    expected = [conv2d(image.detach(), weight).numpy() for image in images]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(conv2d, image.detach(), weight) for image in images]
    for run, alone in zip(runs, expected, strict=True):
        np.testing.assert_array_equal(run.result().numpy(), alone)


@needs_onednn
def test_a_primitive_is_used_and_destroyed_by_another_thread() -> None:
    """Four groups of three channels: oneDNN would allocate a scratchpad of the thread that created the primitive."""
    weight = paddle.ones([24, 3, 3, 3])
    sizes = range(41, 46)

    def sums() -> list[float]:
        return [float(conv2d(paddle.ones([1, 12, size, 40]), weight, groups=4, padding=1).sum()) for size in sizes]

    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(sums).result()
    assert sums() == elsewhere == [24 * 3 * (3 * size - 2) * (3 * 40 - 2) for size in sizes]
    onednn.forward.cache_clear()
    assert sums() == elsewhere


@needs_onednn
def test_the_cache_of_primitives_is_limited() -> None:
    weight = paddle.ones([8, 4, 3, 3])
    for height in range(3, onednn.MAX_PRIMITIVES + 10):
        conv2d(paddle.ones([1, 4, height, 3]), weight)
    assert onednn.forward.cache_info().currsize == onednn.MAX_PRIMITIVES


def test_description_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    onednn._load.cache_clear()
    try:
        monkeypatch.setenv(runtime.SWITCH, "threads,malloc")
        assert onednn.library() is None
        assert onednn.description() == "convolutions on a CPU: Paddle's own (PPDET_LITE_RUNTIME is without onednn)"
    finally:
        onednn._load.cache_clear()
