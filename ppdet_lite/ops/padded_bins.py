"""Weighted sums over the bins of RoIs in few operators, for a GPU: all RoIs of a group have the same number of taps.

Taps are explained in `ops.bilinear`, groups in `ops.sample_groups`. As there, nothing is a matrix product, which TF32
may round.
"""

from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from ppdet_lite.ops.bilinear import Taps
from ppdet_lite.ops.cpu.backward_once import backward_once
from ppdet_lite.ops.sample_groups import SampleGroups


def sum_padded_bins(table: Tensor, y_taps: Taps, x_taps: Taps, groups: SampleGroups) -> Tensor:
    """Sum table rows [M, C] over the pixels of each bin: [R, bins, C], with the RoIs in `groups.order`.

    y_taps, x_taps [R, Ph or 1, Pw or 1, classes, K]: a pixel's row is the sum of its two indices, its weight the
    product of its two weights. bins = Ph * Pw * classes. Differentiable once, in the table and in the weights.

    A group gathers the rows of all its taps at once, and again in the backward pass; both need one tensor of that size
    at a time, which `ops.sample_groups` bounds.
    """
    shape = [max(sizes) for sizes in zip(y_taps[0].shape, x_taps[0].shape, strict=True)]
    flat = []  # index and weight along y, then along x: [R*K, bins]
    for tensor in (*y_taps, *x_taps):
        tensor = tensor if tensor.shape == shape else tensor.expand(shape)
        flat.append(tensor.transpose([0, 4, 1, 2, 3]).reshape([shape[0] * shape[4], -1]))
    sizes, rows, columns = _list_taps(groups, shape[0], shape[4])
    rows, columns = paddle.to_tensor(np.stack([rows, columns])).unbind()
    return backward_once(_PaddedSums.apply(table, *flat, rows, columns, sizes))


class _Size(NamedTuple):
    """Size of a group."""

    rois: int
    taps: int  # of a bin


def _list_taps(groups: SampleGroups, roi_count: int, taps: int) -> tuple[list[_Size], np.ndarray, np.ndarray]:
    """Return the sizes of the groups, and for each tap of each RoI the index of its taps along y and x, 0 to R*K-1.

    taps: the number K of taps along an axis that every RoI has.
    """
    extra = taps - max(groups.largest)  # taps along an axis in addition to the samples
    sizes, rows, columns = [], [], []
    for group in groups.groups:
        row, column = np.indices([count + extra for count in group.samples]).reshape([2, -1])
        first = (np.arange(roi_count) if group.rois is None else group.rois).reshape([-1, 1]) * taps
        rows.append((first + row).ravel())
        columns.append((first + column).ravel())
        sizes.append(_Size(len(first), len(row)))
    return sizes, np.concatenate(rows), np.concatenate(columns)


class _PaddedSums(PyLayer):
    """The operator of `sum_padded_bins`.

    y, x and their weights are [R*K, bins]. rows, columns [T] select from them the two factors of all taps, group after
    group, of the sizes given.
    """

    @staticmethod
    def forward(
        ctx,
        table: Tensor,
        y: Tensor,
        y_weight: Tensor,
        x: Tensor,
        x_weight: Tensor,
        rows: Tensor,
        columns: Tensor,
        sizes: list[_Size],
    ) -> Tensor:
        index = (paddle.gather(y, rows) + paddle.gather(x, columns)).flatten()
        factors = paddle.gather(y_weight, rows), paddle.gather(x_weight, columns)
        weight = (factors[0] * factors[1]).reshape([-1, 1])
        bins, channels = y.shape[1], table.shape[1]
        lengths = [size.rois * size.taps * bins for size in sizes]
        parts = index.split(lengths), weight.split(lengths)
        ctx.sizes = sizes
        ctx.axes = y.shape[0], x.shape[0]
        ctx.needs_grad = not table.stop_gradient, not (y_weight.stop_gradient and x_weight.stop_gradient)
        ctx.save_for_backward(table, rows, columns, *factors, *parts[0], *parts[1])
        pooled = []
        for size, part_index, part_weight in zip(sizes, *parts, strict=True):
            products = F.embedding(part_index, table).multiply_(part_weight)
            pooled.append(products.reshape([size.rois, size.taps, bins, channels]).sum(1))
        return paddle.concat(pooled)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, rows, columns, y_factor, x_factor, *parts = ctx.saved_tensor()
        table_needs_grad, weights_need_grad = ctx.needs_grad
        table_grad = paddle.zeros_like(table) if table_needs_grad else None
        weight_grad = []
        grads = grad.unsqueeze(1).split([size.rois for size in ctx.sizes])  # [rois, 1, bins, C]
        indices, weights = parts[: len(grads)], parts[len(grads) :]
        for size, index, weight, group_grad in zip(ctx.sizes, indices, weights, grads, strict=True):
            shape = [size.rois, size.taps, *group_grad.shape[2:]]
            if weights_need_grad:
                products = F.embedding(index, table).reshape(shape).multiply_(group_grad)
                weight_grad.append(products.sum(-1).flatten())
                del products  # frees its memory before the next one
            if table_needs_grad:
                products = (weight.reshape([*shape[:3], 1]) * group_grad).reshape([-1, shape[3]])
                paddle.index_add_(table_grad, index, 0, products)
                del products
        if not weights_need_grad:
            return table_grad, None, None, None, None, None, None
        weight_grad = paddle.concat(weight_grad).reshape(y_factor.shape)
        y_grad, x_grad = (paddle.zeros([length, y_factor.shape[1]], dtype=grad.dtype) for length in ctx.axes)
        y_grad = paddle.index_add(y_grad, rows, 0, weight_grad * x_factor)
        x_grad = paddle.index_add(x_grad, columns, 0, weight_grad * y_factor)
        return table_grad, None, y_grad, None, x_grad, None, None
