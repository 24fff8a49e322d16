"""RoIAlign as gathers and matrix products, for graphs that run on a CPU.

A RoI reads a window of its map; each of its bins is a weighted mean of that window, and the weights are products of one
for the row and one for the column. The window's pixels are gathered whole, all channels at a time, and multiplied by
the columns' weights, then by the rows'.

Numbers are float64 and constants are tensors: what oneDNN fuses sums and products with plain numbers into is wrong for
anything but float32, and a position in a large map deserves more.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import paddle
from paddle import Tensor

LARGEST = 1600  # cells of a window; a larger one is left out
# RoIs are pooled in chunks of these shares, the widest first, the tallest last. The windows of a chunk are as wide and
# as high as its widest and its highest, and exist at the same time: few RoIs are with the extreme ones.
SHARES = (1, 1, 2, 4, 4, 4, 4, 4, 4, 2, 1, 1)


class _Axis(NamedTuple):
    """Where RoIs lie along one axis, in cells of the maps that they read; a column of R float64 each."""

    start: Tensor  # of the first bin
    bin_size: Tensor
    samples: Tensor  # in a bin
    last: Tensor  # cell of the map
    first: Tensor  # cell that a sample reads
    cells: Tensor  # that samples read, the first one included

    def but(self, large: Tensor) -> "_Axis":
        """The same, as if RoIs that are too large read one cell, for one sample."""
        one = paddle.ones_like(self.cells)
        return self._replace(samples=paddle.where(large, one, self.samples), cells=paddle.where(large, one, self.cells))


class _Numbers(NamedTuple):
    """Constants of all chunks; a graph would have them anew wherever a number is written. Float64 [1], but `bins`."""

    minus_one: Tensor
    zero: Tensor
    half: Tensor
    one: Tensor
    bins: Tensor  # [P, 1], counted from 0


def window_roi_align(
    features: Sequence[Tensor],
    scales: Sequence[float],
    boxes: Tensor,
    image: Tensor,
    level: Tensor,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    otherwise: Callable[[Tensor], Tensor],
) -> Tensor:
    """RoIAlign of boxes [R, 4], R > 0, each of an image and a level [R]: [R, C, P, P].

    See `ops.roi_align.pyramid_roi_align`. otherwise: pools the boxes with the indices it is given, whose windows would
    have more than LARGEST cells.
    """
    channels = features[0].shape[1]
    table = paddle.concat([feature.transpose([0, 2, 3, 1]).flatten(0, 2) for feature in features])  # a row a pixel
    sizes = paddle.stack([paddle.shape(feature)[2:] for feature in features]).astype("float64")
    areas = sizes.prod(axis=1)
    starts = (areas.cumsum() - areas) * paddle.shape(features[0])[0].astype("float64")
    origin = paddle.gather(starts, level) + image.astype("float64") * paddle.gather(areas, level)
    last = paddle.gather(sizes, level) - _number(1)
    scale = paddle.gather(paddle.to_tensor(list(scales), dtype="float64"), level).unsqueeze(1)
    corners = boxes.astype("float64") * scale - _number(0.5 if aligned else 0)
    x = _axis(corners[:, 0:1], corners[:, 2:3], last[:, 1:], output_size, sampling_ratio, aligned)
    y = _axis(corners[:, 1:2], corners[:, 3:4], last[:, :1], output_size, sampling_ratio, aligned)
    large = x.cells * y.cells > LARGEST
    x, y = x.but(large), y.but(large)
    side = paddle.where(y.cells > x.cells, y.cells, -x.cells)
    order = paddle.argsort(side.flatten())
    padded = paddle.concat([order[:1].expand([sum(SHARES)]), order])  # so that no chunk is empty
    share = paddle.shape(padded)[0] // sum(SHARES)
    tallest = paddle.shape(padded)[0] - share * sum(SHARES[:-1])  # the last share, and what is left over
    parts = paddle.split(padded, [*(share * each for each in SHARES[:-1]), tallest])
    rois = paddle.concat([origin.unsqueeze(1), *y, *x], axis=1).unsqueeze(2)  # [R, 13, 1]
    bins = paddle.arange(output_size, dtype="float64").reshape([-1, 1])
    numbers = _Numbers(*map(_number, (-1, 0, 0.5, 1)), bins)
    pooled = [_pool(table, paddle.gather(rois, part), numbers) for part in parts]
    # last come those too large for a window, behind the first of all boxes, since there might be none
    large = large.flatten()
    rest = otherwise(paddle.concat([paddle.zeros([1], dtype="int64"), paddle.nonzero(large).flatten()]))
    pooled = paddle.concat([*pooled, rest.transpose([0, 2, 3, 1]).flatten(2)]).flatten(1)
    place_in_rest = paddle.cumsum(large.astype("int64")) + paddle.shape(padded)[0]
    place = paddle.where(large, place_in_rest, paddle.argsort(order) + paddle.to_tensor([sum(SHARES)]))
    return paddle.gather(pooled, place).reshape([-1, output_size, output_size, channels]).transpose([0, 3, 1, 2])


def _number(value: float) -> Tensor:
    """See the module; [1]."""
    return paddle.to_tensor([value], dtype="float64")


def _axis(start: Tensor, end: Tensor, last: Tensor, output_size: int, sampling_ratio: int, aligned: bool) -> _Axis:
    size = end - start if aligned else paddle.maximum(end - start, _number(1))
    bin_size = size / _number(output_size)
    if sampling_ratio:
        samples = paddle.full_like(bin_size, sampling_ratio)
    else:
        whole = bin_size.floor()
        samples = whole + (bin_size > whole).astype("float64")  # none in a box without extent
    margin = bin_size / (paddle.maximum(samples, _number(1)) * _number(2))
    first, end = (
        paddle.minimum(paddle.maximum(place, _number(0)), last).floor()
        for place in (start + margin, start + size - margin)
    )
    return _Axis(start, bin_size, samples, last, first, end - first + _number(1))


def _pool(table: Tensor, rois: Tensor, numbers: _Numbers) -> Tensor:
    """RoIs' bins [r, P, P*C], one row of bins after the other.

    rois [r, 13, 1]: where in the table their map begins, then the fields of both axes.
    """
    channels, output_size = table.shape[1], numbers.bins.shape[0]
    origin, *axes = rois.split(rois.shape[1], axis=1)
    y, x = (_Axis(*axes[i : i + len(_Axis._fields)]) for i in (0, len(_Axis._fields)))
    rows, row_weights = _reads(y, numbers)
    columns, column_weights = _reads(x, numbers)
    index = (origin + (rows * (x.last + numbers.one)).transpose([0, 2, 1]) + columns).astype("int64")  # [r, h, w]
    height = paddle.shape(index)[1]
    # F.embedding itself wants to know how many rows there are; gather takes twice the time
    window = paddle._C_ops.embedding(index.flatten(0, 1), table, -1, False)  # [r*h, w, C]
    column_weights = column_weights.unsqueeze(1).expand([-1, height, -1, -1]).flatten(0, 1)  # [r*h, P, w]
    means = paddle.bmm(column_weights, window).reshape([-1, height, output_size * channels])
    return paddle.bmm(row_weights, means)


def _reads(axis: _Axis, numbers: _Numbers) -> tuple[Tensor, Tensor]:
    """The n cells of its map that each RoI reads along an axis [r, 1, n], and their weights in its bins [r, P, n]."""
    zero, one = numbers.zero, numbers.one
    start, bin_size, samples, last, first, cells = axis  # [r, 1, 1]
    divisor = paddle.maximum(samples, one)
    cell = paddle.arange(zero, cells.max() + one, one, "float64")  # a sample reads the cell behind it, too
    sample = paddle.arange(zero, divisor.max(), one, "float64") + numbers.half
    place = start + numbers.bins * bin_size + sample * (bin_size / divisor)  # [r, P, S]
    counted = (place >= numbers.minus_one) & (place <= last + one) & (sample < samples)
    share = counted.astype("float64") / divisor
    place = paddle.minimum(paddle.maximum(place, zero), last) - first
    away = place.unsqueeze(3) - cell
    nearness = paddle.maximum(paddle.minimum(one - away, one + away), zero)
    weights = paddle.matmul(share.unsqueeze(2), nearness).squeeze(2).astype("float32")
    return paddle.minimum(first + cell, last), weights
