"""Deformable convolution as gathers and matrix products, for graphs that run on a CPU.

As in `ops.roi_windows`, numbers are float64 and constants are tensors: oneDNN's fusions ruin anything else.
"""

import numpy as np
import paddle
from paddle import Tensor


def gather_in_graph(
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
    """`ops.deform_conv.deform_conv2d` for groups = 1, one row of the kernel at a time, which bounds the memory."""
    n, h, w = paddle.shape(x)[0], paddle.shape(x)[2], paddle.shape(x)[3]
    oh, ow = paddle.shape(offset)[2], paddle.shape(offset)[3]
    o, c, kh, kw = weight.shape
    share = c // deformable_groups  # channels that are sampled at the same places
    tap_y, tap_x = (np.tile(tap.ravel(), deformable_groups) for tap in np.indices((kh, kw)))
    y = _places(offset[:, 0::2], tap_y * dilation[0] - padding[0])  # [N, OH, OW, D*K]
    x_ = _places(offset[:, 1::2], tap_x * dilation[1] - padding[1])
    y = y + (paddle.arange(oh, dtype="float64") * _number(stride[0])).reshape([1, -1, 1, 1])
    x_ = x_ + (paddle.arange(ow, dtype="float64") * _number(stride[1])).reshape([1, 1, -1, 1])
    y_low, y_high, y_low_weight, y_high_weight = _neighbours(y, h.astype("float64"))
    x_low, x_high, x_low_weight, x_high_weight = _neighbours(x_, w.astype("float64"))
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
    if deformable_groups > 1:  # a row of the table is one group's channels of one pixel
        group = np.repeat(np.arange(deformable_groups), kh * kw).reshape(-1, 1)
        index = index * _number(deformable_groups) + paddle.to_tensor(group, dtype="float64")
    index = index.reshape([-1, kh, kw, 4]).astype("int64")  # [N*OH*OW*D, kh, kw, 4]
    weights = weights.reshape([-1, kh, kw, 4]).astype("float32")
    table = x.transpose([0, 2, 3, 1]).flatten(0, 2)
    table = table if deformable_groups == 1 else table.reshape([-1, share])
    kernel = weight.reshape([o, deformable_groups, share, kh, kw]).transpose([3, 1, 4, 2, 0])  # [kh, D, kw, share, O]
    out = None
    for i in range(kh):
        part = _sampled(table, index[:, i].flatten(0, 1), weights[:, i].flatten(0, 1))
        part = paddle.matmul(part.reshape([-1, c * kw]), kernel[i].flatten(0, 2))
        out = part if out is None else out + part
    out = out if bias is None else out + bias
    return out.reshape([n, oh, ow, o]).transpose([0, 3, 1, 2])


def _number(value: float) -> Tensor:
    return paddle.to_tensor([value], dtype="float64")


def _places(offset: Tensor, taps: np.ndarray) -> Tensor:
    """Where each tap [D*K] of each output samples, but for the output's own place: [N, OH, OW, D*K]."""
    return offset.transpose([0, 2, 3, 1]).astype("float64") + paddle.to_tensor(taps, dtype="float64")


def _neighbours(place: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels around each place on an axis, and their weights: 0 where there is none; see `linear_taps`."""
    place = paddle.where((place > -1) & (place < size), place, paddle.full_like(place, -1))  # NaN too
    low = place.floor()
    high = low + _number(1)
    low_weight = (high - place) * (low >= 0).astype("float64")
    high_weight = (place - low) * (high < size).astype("float64")
    return paddle.maximum(low, _number(0)), paddle.minimum(high, size - _number(1)), low_weight, high_weight


def _sampled(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sums of four rows each: index, weights [B, 4] -> [B, 1, C]."""
    # F.embedding itself wants to know how many rows there are; gather takes twice the time
    return paddle.bmm(weights.unsqueeze(1), paddle._C_ops.embedding(index, table, -1, False))
