"""Batch norm with constant statistics, weight and bias, which does not keep its input for the backward pass."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from ppdet_lite.ops.cpu.backward_once import backward_once


def constant_frozen_norm(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> Tensor:
    """Compute `ops.layers.frozen_norm`, without gradients for weight and bias.

    Paddle's batch norm keeps x to compute the gradient of the weight. Not keeping it reduces the peak memory of R50-FPN
    at 800x1333 from 3.3 GB to 2.6 GB.
    """
    return backward_once(_FrozenNorm.apply(x, mean, variance, weight, bias, epsilon))


def _normalize(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, training=False, epsilon=epsilon, use_global_stats=True)


class _FrozenNorm(PyLayer):
    """frozen_norm; its backward pass multiplies the gradient by the same scale, without the shift."""

    @staticmethod
    def forward(ctx, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(variance, weight)
        ctx.epsilon = epsilon
        return _normalize(x, mean, variance, weight, bias, epsilon)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        variance, weight = ctx.saved_tensor()
        zeros = paddle.zeros_like(weight)
        return _normalize(grad, zeros, variance, weight, zeros, ctx.epsilon), None, None, None, None
