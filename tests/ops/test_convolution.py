"""Convolution by oneDNN against Paddle's own operator in double precision."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.cpu import onednn_library
from ppdet_lite.ops.layers import conv2d

needs_onednn = pytest.mark.skipif(onednn_library.load_library() is None, reason="Paddle without oneDNN 3")
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


def paddles_own() -> tuple[list[np.ndarray], np.ndarray]:
    arrays, _ = case(16, 3, True, padding=1)
    return conv2d(*tensors(arrays, "float32"), padding=1).numpy(), F.conv2d(
        *tensors(arrays, "float32"), padding=1
    ).numpy()


def test_paddles_operator_on_a_gpu_and_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "on_cpu", lambda _: False)
        np.testing.assert_array_equal(*paddles_own())
    monkeypatch.setattr(onednn_library, "load_library", lambda: None)
    np.testing.assert_array_equal(*paddles_own())


def test_no_images_and_double_precision() -> None:
    x, weight, bias = tensors([np.ones([0, 4, 5, 6]), np.ones([8, 4, 3, 3]), np.ones(8)], "float32")
    out = conv2d(x, weight, bias, padding=1)
    grads = paddle.grad(out.sum(), [x, weight, bias])
    assert out.shape == [0, 8, 5, 6] and [g.shape for g in grads] == [[0, 4, 5, 6], [8, 4, 3, 3], [8]]
    assert all(float(g.abs().sum()) == 0 for g in grads)
    double = conv2d(paddle.ones([1, 4, 5, 6], "float64"), weight.astype("float64"))
    assert double.dtype == paddle.float64 and (double.numpy() == 36).all()


@needs_onednn
@pytest.mark.parametrize(("weight", "bias"), [((8, 5, 1, 1), 8), ((8, 4, 1, 1), 7)])
def test_paddle_reports_inconsistent_shapes(weight: tuple[int, ...], bias: int) -> None:
    arrays = [np.ones((1, 4, 2, 2)), np.ones(weight), np.ones(bias)]
    with pytest.raises(ValueError):
        conv2d(*tensors(arrays, "float32"))


@pytest.mark.parametrize("option", [{"stride": 0}, {"padding": -1}, {"dilation": 0}, {"groups": 0}])
def test_paddle_reports_options_out_of_range(option: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        conv2d(paddle.ones([1, 4, 5, 5]), paddle.ones([8, 4, 3, 3]), **option)


def test_paddle_reports_a_convolution_without_outputs() -> None:
    with pytest.raises(ValueError):
        conv2d(paddle.ones([1, 4, 5, 5]), paddle.zeros([0, 4, 3, 3]))
