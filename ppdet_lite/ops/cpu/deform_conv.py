"""Deformable convolution on a CPU, by gathers and a matrix product."""

import numpy as np
import paddle
from paddle import Tensor

from ppdet_lite.ops.bilinear import cross_taps, linear_taps, sum_rows


def gather_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    deformable_groups: int,
    groups: int,
) -> Tensor:
    """Compute `ops.deform_conv.deform_conv2d`, several times as fast as Paddle's operator on a CPU."""
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    oh, ow = offset.shape[2:]
    k = kh * kw  # positions in the kernel; in shapes below, D are the deformable groups
    # Sampling positions without offsets: [1, OH, 1, K, 1] and [1, 1, OW, K, 1], of the same rank as the offsets below,
    # since oneDNN does not broadcast reliably between tensors of different rank in an exported graph.
    k_y, k_x = (paddle.to_tensor(i.reshape(1, 1, 1, k, 1), dtype=x.dtype) for i in np.indices((kh, kw)))
    grid_y = paddle.arange(oh, dtype=x.dtype).reshape([1, -1, 1, 1, 1]) * stride[0] - padding[0] + k_y * dilation[0]
    grid_x = paddle.arange(ow, dtype=x.dtype).reshape([1, 1, -1, 1, 1]) * stride[1] - padding[1] + k_x * dilation[1]
    offset = offset.reshape([n, deformable_groups, k, 2, oh, ow]).transpose([3, 0, 4, 5, 2, 1])
    offset_y, offset_x = offset.unbind()  # [N, OH, OW, K, D], in the order of the samples below
    y_taps, x_taps = linear_taps((grid_y + offset_y).flatten(), h), linear_taps((grid_x + offset_x).flatten(), w)
    index, tap_weight = cross_taps(y_taps, x_taps, w)
    if mask is not None:
        mask = mask.reshape([n, deformable_groups, k, oh, ow]).transpose([0, 3, 4, 2, 1])
        tap_weight = tap_weight * mask.reshape([-1, 1])

    # a row of the table (see `ops.bilinear`) contains the channels of one deformable group at one pixel
    rows = x.transpose([0, 2, 3, 1]).flatten(0, 2).reshape([-1, c // deformable_groups])
    pixel = index.reshape([n, -1, deformable_groups, 4]) + paddle.arange(n).reshape([-1, 1, 1, 1]) * (h * w)
    group_count = paddle.to_tensor([deformable_groups])  # a tensor: oneDNN miscomputes sums fused with products by ints
    index = pixel * group_count + paddle.arange(deformable_groups).reshape([-1, 1])
    columns = sum_rows(rows, (index.reshape([-1, 4]), tap_weight))
    out = _multiply(columns.reshape([n, oh * ow, k, c]), weight, groups).reshape([n, o, oh, ow])
    return out if bias is None else out + bias.reshape([o, 1, 1])


def _multiply(columns: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Multiply the samples [N, P, K, C] of P output pixels by the kernel [O, C/groups, kh, kw]: [N, O, P]."""
    n, p, k, c = columns.shape
    o = weight.shape[0]
    kernel = weight.reshape([groups, o // groups, c // groups, k]).transpose([0, 1, 3, 2]).flatten(2)
    if groups == 1:
        return paddle.matmul(kernel.squeeze(0), columns.reshape([n, p, k * c]), transpose_y=True)
    columns = columns.reshape([n * p, k, groups, c // groups]).transpose([2, 0, 1, 3]).flatten(2)
    return paddle.matmul(kernel, columns, transpose_y=True).reshape([o, n, p]).transpose([1, 0, 2])
