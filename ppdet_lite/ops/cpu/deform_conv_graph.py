"""Deformable convolution as gathers and matrix products, for exported graphs that run on a CPU.

As in `ops.cpu.roi_windows`, positions are float64 and constants are tensors: oneDNN fuses sums and products in float32,
or with Python numbers, into operators with wrong results.
"""

import numpy as np
import paddle
from paddle import Tensor


def traced_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    deformable_groups: int,
    groups: int = 1,
) -> Tensor:
    """Compute `ops.deform_conv.deform_conv2d` for groups = 1, one kernel row at a time to bound the memory."""
    n, h, w = paddle.shape(x)[0], paddle.shape(x)[2], paddle.shape(x)[3]
    oh, ow = paddle.shape(offset)[2], paddle.shape(offset)[3]
    o, c, kh, kw = weight.shape
    group_channels = c // deformable_groups  # channels with the same offsets; D = deformable_groups in shapes
    k_y, k_x = (np.tile(axis.ravel(), deformable_groups) for axis in np.indices((kh, kw)))  # [D*K], K = kh * kw
    y_at = _add_kernel_positions(offset[:, 0::2], k_y * dilation[0] - padding[0])  # [N, OH, OW, D*K]
    x_at = _add_kernel_positions(offset[:, 1::2], k_x * dilation[1] - padding[1])
    y_at = y_at + (paddle.arange(oh, dtype="float64") * _constant(stride[0])).reshape([1, -1, 1, 1])
    x_at = x_at + (paddle.arange(ow, dtype="float64") * _constant(stride[1])).reshape([1, 1, -1, 1])
    y_low, y_high, y_low_weight, y_high_weight = _neighbors(y_at, h.astype("float64"))
    x_low, x_high, x_low_weight, x_high_weight = _neighbors(x_at, w.astype("float64"))
    if mask is not None:
        scale = mask.transpose([0, 2, 3, 1]).astype("float64")
        y_low_weight, y_high_weight = y_low_weight * scale, y_high_weight * scale
    image = paddle.arange(n, dtype="float64").reshape([-1, 1, 1, 1]) * h.astype("float64")
    upper, lower = (image + y_low) * w.astype("float64"), (image + y_high) * w.astype("float64")
    index = paddle.stack([upper + x_low, upper + x_high, lower + x_low, lower + x_high], axis=-1)
    weights = paddle.stack(
        [
            y_low_weight * x_low_weight,
            y_low_weight * x_high_weight,
            y_high_weight * x_low_weight,
            y_high_weight * x_high_weight,
        ],
        axis=-1,
    )
    if deformable_groups > 1:  # a row of the table contains the channels of one group at one pixel
        group = np.repeat(np.arange(deformable_groups), kh * kw).reshape(-1, 1)
        index = index * _constant(deformable_groups) + paddle.to_tensor(group, dtype="float64")
    index = index.reshape([-1, kh, kw, 4]).astype("int64")  # [N*OH*OW*D, kh, kw, 4]
    weights = weights.reshape([-1, kh, kw, 4]).astype("float32")
    table = x.transpose([0, 2, 3, 1]).flatten(0, 2)
    table = table if deformable_groups == 1 else table.reshape([-1, group_channels])
    kernel = weight.reshape([o, deformable_groups, group_channels, kh, kw])
    kernel = kernel.transpose([3, 1, 4, 2, 0])  # [kh, D, kw, group_channels, O]
    out = None
    for i in range(kh):
        part = _sum_rows(table, index[:, i].flatten(0, 1), weights[:, i].flatten(0, 1))
        part = paddle.matmul(part.reshape([-1, c * kw]), kernel[i].flatten(0, 2))
        out = part if out is None else out + part
    out = out if bias is None else out + bias
    return out.reshape([n, oh, ow, o]).transpose([0, 3, 1, 2])


def _constant(value: float) -> Tensor:
    return paddle.to_tensor([value], dtype="float64")


def _add_kernel_positions(offset: Tensor, positions: np.ndarray) -> Tensor:
    """Add positions in the kernel [D*K], on one axis, to their offsets [N, D*K, OH, OW]: [N, OH, OW, D*K]."""
    return offset.transpose([0, 2, 3, 1]).astype("float64") + paddle.to_tensor(positions, dtype="float64")


def _neighbors(position: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two pixels around each position on an axis and their weights, as `ops.bilinear.linear_taps` does."""
    position = paddle.where((position > -1) & (position < size), position, paddle.full_like(position, -1))  # NaN: -1
    low = position.floor()
    high = low + _constant(1)
    low_weight = (high - position) * (low >= 0).astype("float64")
    high_weight = (position - low) * (high < size).astype("float64")
    return paddle.maximum(low, _constant(0)), paddle.minimum(high, size - _constant(1)), low_weight, high_weight


def _sum_rows(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Compute weighted sums of four table rows each: index, weights [B, 4] -> [B, 1, C]."""
    # F.embedding requires a known number of rows, so the underlying operator is called; gather takes twice the time
    return paddle.bmm(weights.unsqueeze(1), paddle._C_ops.embedding(index, table, -1, False))
