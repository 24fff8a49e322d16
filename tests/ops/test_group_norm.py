"""Group normalization against Paddle's own operator in double precision."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.layers import group_norm

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, (3, 12, 5, 7))
WEIGHT, BIAS = RNG.normal(size=(2, 12))
GRAD = RNG.normal(size=X.shape)


def with_gradients(operator, dtype: str, groups: int, x: np.ndarray = X) -> list[np.ndarray]:
    """Return the output and the gradients of x, weight and bias."""
    inputs = [paddle.to_tensor(values, dtype=dtype, stop_gradient=False) for values in (x, WEIGHT, BIAS)]
    out = operator(inputs[0], groups, inputs[1], inputs[2])
    return [out.numpy(), *(g.numpy() for g in paddle.grad(out, inputs, paddle.to_tensor(GRAD, dtype=dtype)))]


def paddles(x, groups, weight, bias):
    return F.group_norm(x, groups, 1e-5, weight, bias)


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 2e-6)])
def test_numbers_and_gradients(groups: int, dtype: str, error: float) -> None:
    expected = with_gradients(paddles, "float64", groups)
    for ours, theirs in zip(with_gradients(group_norm, dtype, groups), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=error * np.abs(theirs).max())


def test_a_mean_far_from_zero() -> None:
    x = (X + 1000).astype(np.float32)  # what float32 can hold of it is given to both
    expected = with_gradients(paddles, "float64", 3, x)
    for ours, theirs in zip(with_gradients(group_norm, "float32", 3, x), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


def test_the_same_bits_every_time() -> None:
    for first, second in zip(*(with_gradients(group_norm, "float32", 3) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(first, second)


def test_fixed_weights() -> None:
    x = paddle.to_tensor(X, stop_gradient=False)
    out = group_norm(x, 3, paddle.to_tensor(WEIGHT), paddle.to_tensor(BIAS))
    out.backward(paddle.to_tensor(GRAD))
    np.testing.assert_allclose(x.grad.numpy(), with_gradients(paddles, "float64", 3)[1], atol=1e-10)


def test_no_images() -> None:
    x, weight, bias = paddle.zeros([0, 12, 5, 7]), paddle.ones([12]), paddle.zeros([12])
    x.stop_gradient = False
    out = group_norm(x, 3, weight, bias)
    assert out.shape == [0, 12, 5, 7]
    out.sum().backward()
    assert x.grad is None or x.grad.shape == [0, 12, 5, 7]


def test_paddles_operator_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: False)
    for ours, theirs in zip(
        with_gradients(group_norm, "float32", 3), with_gradients(paddles, "float32", 3), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
