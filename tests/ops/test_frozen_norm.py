"""The norm with fixed statistics: equal to its formula, and bit-identical to Paddle's batch norm."""

import gc
import weakref

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from ppdet_lite.ops.layers import frozen_norm

RNG = np.random.default_rng(0)
X, GRAD = RNG.normal(2.0, 3.0, (2, 2, 6, 5, 7)).astype(np.float32)
MEAN, WEIGHT, BIAS = RNG.normal(size=(3, 6)).astype(np.float32)
VARIANCE = RNG.uniform(0.5, 2.0, 6).astype(np.float32)
EPSILON = 1e-5


def statistics(trained: bool = False) -> list[paddle.Tensor]:
    """Mean, variance, weight and bias."""
    tensors = [paddle.to_tensor(array) for array in (MEAN, VARIANCE, WEIGHT, BIAS)]
    for tensor in tensors[2:]:
        tensor.stop_gradient = not trained
    return tensors


def test_formula_and_gradient() -> None:
    x = paddle.to_tensor(X, stop_gradient=False)
    out = frozen_norm(x, *statistics(), EPSILON)
    out.backward(paddle.to_tensor(GRAD))
    mean, variance, weight, bias = (a.astype(np.float64).reshape(-1, 1, 1) for a in (MEAN, VARIANCE, WEIGHT, BIAS))
    scale = weight / np.sqrt(variance + EPSILON)
    np.testing.assert_allclose(out.numpy(), (X - mean) * scale + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), GRAD * scale, rtol=1e-6)


@pytest.mark.parametrize("trained", [True, False])
def test_equals_paddles_batch_norm(trained: bool) -> None:
    found = []
    for paddles in (True, False):
        x, (mean, variance, weight, bias) = paddle.to_tensor(X, stop_gradient=False), statistics(trained)
        if paddles:
            out = F.batch_norm(x, mean, variance, weight, bias, epsilon=EPSILON, use_global_stats=True)
        else:
            out = frozen_norm(x, mean, variance, weight, bias, EPSILON)
        out.backward(paddle.to_tensor(GRAD))
        found.append([out, *(t.grad for t in (x, weight, bias) if t.grad is not None)])
    assert len(found[1]) == (4 if trained else 2)
    for theirs, ours in zip(*found, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_the_input_is_not_kept() -> None:
    leaf = paddle.to_tensor(X, stop_gradient=False)
    before = leaf * 1.0
    out = frozen_norm(before, *statistics(), EPSILON)
    gone = weakref.ref(before)
    del before
    gc.collect()
    assert gone() is None
    out.sum().backward()
    assert leaf.grad is not None


def test_constant_input() -> None:
    assert frozen_norm(paddle.to_tensor(X), *statistics(), EPSILON).stop_gradient
