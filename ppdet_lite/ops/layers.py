"""Convolution, linear layers, norms, ReLU, pooling and upsampling, by Paddle's operators or faster ones for a CPU.

`ops.dispatch` selects between them; `ops/cpu/` contains those for a CPU. Results and gradients agree up to rounding.
"""

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.cpu.convolution import onednn_conv2d, paddle_conv2d
from ppdet_lite.ops.cpu.frozen_norm import constant_frozen_norm
from ppdet_lite.ops.cpu.group_norm import group_norm_as_batch_norms
from ppdet_lite.ops.cpu.linear import bfloat16_linear


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    bfloat16: bool = False,
) -> Tensor:
    """Compute `F.conv2d`: x [N, C, H, W], weight [O, C/groups, kh, kw], bias [O] -> [N, O, H', W'].

    bfloat16: eager on a CPU, multiply in bfloat16 and add in float32, forward and backward. If the processor cannot,
    x, weight, the result and their gradients are rounded to bfloat16, and the products are computed in float32.
    """
    if not dispatch.eager_on_cpu(x):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if bfloat16 and not dispatch.multiplies_bfloat16():
        x, weight = _round_to_bfloat16(x), _round_to_bfloat16(weight)
        return _round_to_bfloat16(conv2d(x, weight, bias, stride, padding, dilation, groups))
    if dispatch.uses_onednn(x, weight, bias):
        out = onednn_conv2d(x, weight, bias, stride, padding, dilation, groups, bfloat16)
        if out is not None:
            return out
    return paddle_conv2d(x, weight, bias, stride, padding, dilation, groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, bfloat16: bool = False) -> Tensor:
    """Compute `F.linear`: x [R, I], weight [I, O], bias [O] -> [R, O]. bfloat16: see `conv2d`."""
    if not bfloat16 or not dispatch.eager_on_cpu(x):
        return F.linear(x, weight, bias)
    if dispatch.multiplies_bfloat16() and x.size > 0:
        return bfloat16_linear(x, weight, bias)
    return _round_to_bfloat16(F.linear(_round_to_bfloat16(x), _round_to_bfloat16(weight), bias))


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Normalize each group of channels of each image to mean 0 and variance 1, then scale and shift each channel.

    x [N, C, H, W] with C a multiple of groups; weight, bias [C]. Returns the shape of x.
    Source: Group Normalization (Wu & He 2018).
    """
    if dispatch.eager_on_cpu(x) and x.size > 0:
        return group_norm_as_batch_norms(x, groups, weight, bias, epsilon)
    return F.group_norm(x, groups, epsilon, weight, bias)


def frozen_norm(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Compute (x - mean) / sqrt(variance + epsilon) * weight + bias per channel: x [N, C, H, W], the others [C]."""
    only_x_needs_gradient = weight.stop_gradient and bias.stop_gradient and not x.stop_gradient
    if only_x_needs_gradient and paddle.in_dynamic_mode() and x.dtype == paddle.float32:
        return constant_frozen_norm(x, mean, variance, weight, bias, epsilon)
    return F.batch_norm(x, mean, variance, weight, bias, training=False, epsilon=epsilon, use_global_stats=True)


def relu(x: Tensor) -> Tensor:
    """Compute `F.relu`. Eager on a CPU, it overwrites x, so nothing else may use x."""
    return F.relu_(x) if dispatch.eager_on_cpu(x) else F.relu(x)


def add_relu(x: Tensor, y: Tensor) -> Tensor:
    """Compute relu(x + y) of two tensors of the same shape. Eager on a CPU, it overwrites x; nothing else may use x."""
    return F.relu_(x.add_(y)) if dispatch.eager_on_cpu(x) else F.relu(x + y)


def max_pool(x: Tensor) -> Tensor:
    """Compute the ResNet stem's 3x3 max pooling with stride 2: [N, C, H, W] -> [N, C, ceil(H/2), ceil(W/2)].

    On a CPU, keeping the indices of the maxima reduces the time of the backward pass to a quarter.
    """
    with_indices = dispatch.eager_on_cpu(x) and not x.stop_gradient
    pooled = F.max_pool2d(x, kernel_size=3, stride=2, padding=1, return_mask=with_indices)
    return pooled[0] if with_indices else pooled


def upsample_twice(x: Tensor) -> Tensor:
    """Upsample by 2 with nearest-neighbor interpolation: [N, C, H, W] -> [N, C, 2H, 2W].

    In an exported graph oneDNN does not support `F.interpolate`; a transposed convolution with ones keeps oneDNN's
    memory layout. Eager on a CPU, a product with a matrix of ones and zeros is exact, and five times as fast as either.
    """
    if not paddle.in_dynamic_mode():
        channels = x.shape[1]
        return F.conv2d_transpose(x, paddle.ones([channels, 1, 2, 2], x.dtype), stride=2, groups=channels)
    if dispatch.on_cpu(x):
        n, c, h, w = x.shape
        repeat_columns = paddle.eye(w, dtype=x.dtype).unsqueeze(-1).expand([w, w, 2]).flatten(1)  # [W, 2W]
        return paddle.matmul(x.reshape([n * c * h, w]), repeat_columns.tile([1, 2])).reshape([n, c, 2 * h, 2 * w])
    x = paddle.stack([x, x], axis=3).flatten(2, 3)
    return paddle.stack([x, x], axis=4).flatten(3, 4)


def _round_to_bfloat16(value: Tensor) -> Tensor:
    """Round to the nearest bfloat16; the gradient is rounded too."""
    return value.astype("bfloat16").astype("float32")
