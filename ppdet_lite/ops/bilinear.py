"""Bilinear sampling as weighted sums of rows, the primitive under deformable convolution and RoI pooling.

A map [N, C, H, W] laid out channels last is a table of rows [N*H*W, C], one row a pixel. A sample at a fractional
place is the weighted sum of four rows (its "taps"), the mean of S samples is one of 4*S rows: gathering whole rows and
multiplying is what a CPU does well, unlike sampling one channel at a time.
"""

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppdet_lite.ops.cpu.row_sums import chunked_row_sums

Taps = tuple[Tensor, Tensor]  # index int64 [..., K] and weight [..., K] of the K pixels that a sum reads


def linear_taps(position: Tensor, size: int | Tensor) -> Taps:
    """The two pixels around each position on one axis of a zero-padded map, with their weights.

    position [...] in pixels, whose centres are at whole numbers; size is the number of pixels, an int or broadcasting.
    Returns index and weight [..., 2]. An index is always inside the map; a neighbour beyond the border has weight 0.
    Positions <= -1 or >= size have neither weight nor gradient; in between the derivative is the one to the right.
    """
    inside = (position > -1) & (position < size)
    position = paddle.where(inside, position, paddle.full_like(position, -1))  # also keeps NaN out of the indices
    low = position.detach().floor()
    high = low + 1
    low_weight = (high - position) * (low >= 0).astype(position.dtype)
    high_weight = (position - low) * (high < size).astype(position.dtype)
    index = paddle.stack([low.clip(min=0), paddle.where(high < size, high, low)], axis=-1)
    return index.astype("int64"), paddle.stack([low_weight, high_weight], axis=-1)


def run_taps(position: Tensor, weight: Tensor, size: int | Tensor, length: Tensor | None = None) -> Taps:
    """Taps [..., S+1] of a weighted sum over runs [..., S] of positions, ascending by at most a pixel, within the map.

    Neighbours in a run share pixels: S + 1 in a row are all they touch, of the 2*S that linear_taps gives.
    length [..., 1]: of each run, where they differ; the weight of what follows is 0, and so is that of the taps after
    length + 1.
    """
    count = position.shape[-1]
    first = position[..., :1].detach().floor()
    longest = paddle.full_like(first, count) if length is None else length
    low = paddle.minimum((position.detach() - first).floor(), longest - 1)  # more could only be a rounding error
    high_weight = (position - first - low) * weight

    def shares(weight: Tensor, pixel: Tensor) -> Tensor:
        pixel = F.one_hot(pixel.astype("int64"), count + 1).astype(weight.dtype)
        return paddle.matmul(weight.unsqueeze(-2), pixel).squeeze(-2)

    index = first + paddle.arange(count + 1, dtype=position.dtype)
    index = index - (index - (size - 1)).clip(min=0)  # the last may lie beyond the border, with weight 0
    return index.astype("int64"), shares(weight - high_weight, low) + shares(high_weight, low + 1)


def cross_taps(y: Taps, x: Taps, width: int | Tensor | None = None) -> Taps:
    """Taps [..., Ky*Kx] from those of the two axes, [..., Ky] and [..., Kx].

    width: of the maps, int or [..., 1, 1]; None where the index of y is already that of a line's first pixel.
    """
    line = y[0].unsqueeze(-1) if width is None else y[0].unsqueeze(-1) * width
    index = line + x[0].unsqueeze(-2)
    weight = y[1].unsqueeze(-1) * x[1].unsqueeze(-2)
    return index.flatten(-2), weight.flatten(-2)


def sum_rows(rows: Tensor, *taps: Taps) -> Tensor:
    """Weighted sums of table rows: out[b] = sum over k of weight[b, k] * rows[index[b, k]].

    rows [M, C]; taps: index int64 [B, K] and weight [B, K], or several pairs with different B and K, whose sums follow
    each other in the result, [sum of B, C]. Differentiable (once) in rows and weights.
    The [B, K, C] of gathered rows never exists as a whole: it is made in chunks, and again for the gradient.
    """
    if paddle.in_dynamic_mode():
        return chunked_row_sums(rows, *[tensor for pair in taps for tensor in pair])

    # In a graph being exported B is unknown, so the chunks run along K; F.embedding wants to know M.
    def chunk(index: Tensor, weight: Tensor) -> Tensor:
        taken = paddle.gather(rows, index.flatten()).reshape([-1, index.shape[1], rows.shape[1]])
        return paddle.bmm(weight.unsqueeze(1), taken).squeeze(1)

    return paddle.concat(
        [sum(chunk(i[:, k : k + 4], w[:, k : k + 4]) for k in range(0, i.shape[1], 4)) for i, w in taps]
    )
