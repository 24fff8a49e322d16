"""Bilinear sampling as weighted sums of rows: the primitive of deformable convolution and deformable RoI pooling.

A feature map [N, C, H, W] in channels-last layout is a table of rows [N*H*W, C], one row per pixel. A bilinear sample
is a weighted sum of four rows, and the mean of S samples is a weighted sum of 4*S rows. The row indices of a sum and
their weights are called its taps. On a CPU, gathering rows is much faster than sampling one channel at a time.

On a CPU these sums are matrix products: a sparse matrix of all weights times the table. On a GPU they are elementwise
products and sums: a matrix product in float32 may round its factors to TF32's 10 bits there, and the gradients of
positions are small differences of pixels.
"""

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.cpu.backward_once import backward_once
from ppdet_lite.ops.cpu.row_sums import row_sums

Taps = tuple[Tensor, Tensor]  # row index int64 [..., K] and weight [..., K] of the K rows in each sum


def linear_taps(position: Tensor, size: int | Tensor) -> Taps:
    """Return the two pixels around each position on one axis of a zero-padded map, with their weights.

    position [...] is in pixels, with pixel centers at integers; size is the number of pixels, an int or a tensor that
    broadcasts. Returns index and weight [..., 2]. Every index is inside the map; pixels outside it have weight 0.
    Positions <= -1 or >= size have zero weight and no gradient. At a pixel center the gradient is the right-hand one.
    """
    inside = (position > -1) & (position < size)
    position = paddle.where(inside, position, paddle.full_like(position, -1))  # also keeps NaN out of the indices
    low = position.detach().floor()
    high = low + 1
    low_weight = (high - position) * (low >= 0).astype(position.dtype)
    high_weight = (position - low) * (high < size).astype(position.dtype)
    index = paddle.stack([low.clip(min=0), paddle.where(high < size, high, low)], axis=-1)
    return index.astype("int64"), paddle.stack([low_weight, high_weight], axis=-1)


def dense_taps(position: Tensor, weight: Tensor, size: int | Tensor, length: Tensor | None = None) -> Taps:
    """Return the taps [..., S+1] of weighted sums over S positions each, ascending and at most one pixel apart.

    position, weight [..., S], positions within the map; size: see `linear_taps`. Neighboring positions share pixels, so
    S + 1 consecutive pixels suffice instead of the 2*S of `linear_taps`. length [..., 1]: number of positions in each
    sum, if it varies; later positions must have weight 0, and taps after the first length + 1 have weight 0.
    """
    count = position.shape[-1]
    first = position[..., :1].detach().floor()
    longest = paddle.full_like(first, count) if length is None else length
    low = paddle.minimum((position.detach() - first).floor(), longest - 1)  # the limit corrects rounding errors
    high_weight = (position - first - low) * weight

    def sum_by_pixel(weight: Tensor, pixel: Tensor) -> Tensor:
        pixel = pixel.astype("int64")
        if dispatch.eager_on_gpu(weight):
            zeros = paddle.zeros([*pixel.shape[:-1], count + 1], dtype=weight.dtype)
            return paddle.put_along_axis(zeros, pixel, weight, -1, "add")  # broadcast=False would synchronize
        return paddle.matmul(weight.unsqueeze(-2), F.one_hot(pixel, count + 1).astype(weight.dtype)).squeeze(-2)

    index = first + paddle.arange(count + 1, dtype=position.dtype)
    index = index - (index - (size - 1)).clip(min=0)  # the last pixel may be outside the map, with weight 0
    return index.astype("int64"), sum_by_pixel(weight - high_weight, low) + sum_by_pixel(high_weight, low + 1)


def cross_taps(y: Taps, x: Taps, width: int | Tensor | None = None) -> Taps:
    """Combine the taps of the two axes, [..., Ky] and [..., Kx], to taps [..., Ky*Kx] of the flattened map.

    width: of the map, an int or [..., 1, 1]; None if each y index is already the flat index of its row's first pixel.
    """
    row_start = y[0].unsqueeze(-1) if width is None else y[0].unsqueeze(-1) * width
    row_start, column = _expand(row_start, x[0].unsqueeze(-2))
    y_weight, x_weight = _expand(y[1].unsqueeze(-1), x[1].unsqueeze(-2))
    return (row_start + column).flatten(-2), (y_weight * x_weight).flatten(-2)


def _expand(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    """Broadcast two eager tensors without gradient, since an operator that broadcasts both takes four times as long."""
    if paddle.in_dynamic_mode() and a.stop_gradient and b.stop_gradient:
        return paddle.broadcast_tensors([a, b])
    return a, b


def sum_rows(rows: Tensor, *taps: Taps) -> Tensor:
    """Compute weighted sums of table rows: out[b] = sum over k of weight[b, k] * rows[index[b, k]].

    rows [M, C]; taps: one or more pairs of index int64 [B, K] and weight [B, K], where B and K may differ between
    pairs. Returns the sums of all pairs concatenated, [sum of B, C]. Differentiable once, in rows and weights.
    In eager mode the rows [B, K, C] are gathered again in the backward pass instead of being kept. On a GPU those of a
    pair are gathered at once, so that the largest pair bounds the memory: B*K*C values; on a CPU in chunks, or, if only
    the rows need a gradient, not at all.
    """
    if paddle.in_dynamic_mode():
        flat_taps = [tensor for pair in taps for tensor in pair]
        if dispatch.eager_on_gpu(rows):
            return backward_once(_MultiplyAdd.apply(rows, *flat_taps))
        return row_sums(rows, *flat_taps)

    # B is unknown in a traced graph, which runs on a CPU: chunks are taken along K. F.embedding would need a known M.
    def chunk(index: Tensor, weight: Tensor) -> Tensor:
        taken = paddle.gather(rows, index.flatten()).reshape([-1, index.shape[1], rows.shape[1]])
        return paddle.bmm(weight.unsqueeze(1), taken).squeeze(1)

    return paddle.concat(
        [sum(chunk(i[:, k : k + 4], w[:, k : k + 4]) for k in range(0, i.shape[1], 4)) for i, w in taps]
    )


class _MultiplyAdd(PyLayer):
    """`sum_rows` on a GPU; taps are index, weight, index, weight, ... instead of pairs."""

    @staticmethod
    def forward(ctx, rows: Tensor, *taps: Tensor) -> Tensor:
        ctx.needs_grad = not rows.stop_gradient, not taps[1].stop_gradient
        ctx.save_for_backward(rows, *taps)
        pairs = zip(taps[::2], taps[1::2], strict=True)
        return paddle.concat([_gather_times(rows, index, weight.unsqueeze(2)).sum(1) for index, weight in pairs])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, *taps = ctx.saved_tensor()
        rows_need_grad, weights_need_grad = ctx.needs_grad
        rows_grad = paddle.zeros_like(rows) if rows_need_grad else None
        taps_grad: list[Tensor | None] = []
        grad = grad.unsqueeze(1)
        start = 0
        for index, weight in zip(taps[::2], taps[1::2], strict=True):
            pair_grad = grad[start : start + len(index)]
            start += len(index)
            taps_grad += [None, _gather_times(rows, index, pair_grad).sum(2) if weights_need_grad else None]
            if rows_need_grad:
                row_grad = (weight.unsqueeze(2) * pair_grad).flatten(0, 1)
                paddle.index_add_(rows_grad, index.flatten(), 0, row_grad)
        return rows_grad, *taps_grad


def _gather_times(rows: Tensor, index: Tensor, factor: Tensor) -> Tensor:
    """Gather rows [B, K, C] by index [B, K] and multiply them, in place, by a factor that broadcasts."""
    return F.embedding(index, rows).multiply_(factor)
