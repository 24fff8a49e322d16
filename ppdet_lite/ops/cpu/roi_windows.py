"""RoIAlign as gathers and matrix products, for exported graphs that run on a CPU.

The samples of a RoI lie in a window, a rectangle of cells of its feature map. Each bin is a weighted sum over the
window's cells, and each weight is the product of a row weight and a column weight. The cells of the window are gathered
with all channels, then multiplied by the matrix of column weights and by that of row weights.

Positions are float64, because float32 is too coarse in large maps. Constants are tensors, because oneDNN fuses sums and
products with Python numbers into operators that are wrong for dtypes other than float32.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import paddle
from paddle import Tensor

MAX_CELLS = 1600  # of a window; RoIs with larger windows are pooled by the fallback
# RoIs are pooled in chunks of these relative sizes, sorted from the widest to the tallest. All windows of a chunk are
# padded to its largest width and height, so the chunks with the largest RoIs are small.
CHUNK_SIZES = (1, 1, 2, 4, 4, 4, 4, 4, 4, 2, 1, 1)


class _Axis(NamedTuple):
    """Geometry of R RoIs along one axis, in cells of each RoI's feature map; all fields [R, 1] float64."""

    start: Tensor  # start of the first bin
    bin_size: Tensor
    samples: Tensor  # number of samples per bin
    last: Tensor  # index of the last cell of the map
    first: Tensor  # index of the window's first cell
    cells: Tensor  # number of cells in the window

    def shrink(self, large: Tensor) -> "_Axis":
        """Return the axis with one cell and one sample for the RoIs in the mask `large`, whose result is not used."""
        one = paddle.ones_like(self.cells)
        return self._replace(samples=paddle.where(large, one, self.samples), cells=paddle.where(large, one, self.cells))


class _Constants(NamedTuple):
    """Constants shared by all chunks, so that the graph contains each only once; float64 [1] except `bins`."""

    minus_one: Tensor
    zero: Tensor
    half: Tensor
    one: Tensor
    bins: Tensor  # [P, 1]: 0, 1, ...


def window_roi_align(
    features: Sequence[Tensor],
    scales: Sequence[float],
    boxes: Tensor,
    image: Tensor,
    level: Tensor,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    fallback: Callable[[Tensor], Tensor],
) -> Tensor:
    """Apply RoIAlign to boxes [R, 4], R > 0: [R, C, P, P]; see `ops.roi_align.pyramid_roi_align`.

    image, level [R] int64: the image and pyramid level of each box. fallback: a function from indices [F] of boxes to
    their pooled features [F, C, P, P], for boxes whose windows have more than MAX_CELLS cells.
    """
    channels = features[0].shape[1]
    table = paddle.concat([feature.transpose([0, 2, 3, 1]).flatten(0, 2) for feature in features])  # one row per pixel
    sizes = paddle.stack([paddle.shape(feature)[2:] for feature in features]).astype("float64")
    areas = sizes.prod(axis=1)
    starts = (areas.cumsum() - areas) * paddle.shape(features[0])[0].astype("float64")
    origin = paddle.gather(starts, level) + image.astype("float64") * paddle.gather(areas, level)
    last = paddle.gather(sizes, level) - _constant(1)
    scale = paddle.gather(paddle.to_tensor(list(scales), dtype="float64"), level).unsqueeze(1)
    corners = boxes.astype("float64") * scale - _constant(0.5 if aligned else 0)
    x = _axis(corners[:, 0:1], corners[:, 2:3], last[:, 1:], output_size, sampling_ratio, aligned)
    y = _axis(corners[:, 1:2], corners[:, 3:4], last[:, :1], output_size, sampling_ratio, aligned)
    large = x.cells * y.cells > MAX_CELLS  # pooled by the fallback
    x, y = x.shrink(large), y.shrink(large)
    extent = paddle.where(y.cells > x.cells, y.cells, -x.cells)
    order = paddle.argsort(extent.flatten())  # widest first, tallest last
    padded = paddle.concat([order[:1].expand([sum(CHUNK_SIZES)]), order])  # repeats a RoI: no chunk is empty
    unit = paddle.shape(padded)[0] // sum(CHUNK_SIZES)
    final = paddle.shape(padded)[0] - unit * sum(CHUNK_SIZES[:-1])  # size of the last chunk, with the remainder
    chunks = paddle.split(padded, [*(unit * size for size in CHUNK_SIZES[:-1]), final])
    rois = paddle.concat([origin.unsqueeze(1), *y, *x], axis=1).unsqueeze(2)  # [R, 13, 1]
    bins = paddle.arange(output_size, dtype="float64").reshape([-1, 1])
    constants = _Constants(*map(_constant, (-1, 0, 0.5, 1)), bins)
    pooled = [_pool(table, paddle.gather(rois, chunk), constants) for chunk in chunks]
    # The large RoIs follow in `pooled`. Box 0 precedes them, because the fallback needs at least one box.
    large = large.flatten()
    large_pooled = fallback(paddle.concat([paddle.zeros([1], dtype="int64"), paddle.nonzero(large).flatten()]))
    pooled = paddle.concat([*pooled, large_pooled.transpose([0, 2, 3, 1]).flatten(2)]).flatten(1)
    large_row = paddle.cumsum(large.astype("int64")) + paddle.shape(padded)[0]
    row = paddle.where(large, large_row, paddle.argsort(order) + paddle.to_tensor([sum(CHUNK_SIZES)]))
    return paddle.gather(pooled, row).reshape([-1, output_size, output_size, channels]).transpose([0, 3, 1, 2])


def _constant(value: float) -> Tensor:
    return paddle.to_tensor([value], dtype="float64")


def _axis(start: Tensor, end: Tensor, last: Tensor, output_size: int, sampling_ratio: int, aligned: bool) -> _Axis:
    size = end - start if aligned else paddle.maximum(end - start, _constant(1))
    bin_size = size / _constant(output_size)
    if sampling_ratio:
        samples = paddle.full_like(bin_size, sampling_ratio)
    else:
        whole = bin_size.floor()
        samples = whole + (bin_size > whole).astype("float64")  # the ceiling; 0 in an empty box
    margin = bin_size / (paddle.maximum(samples, _constant(1)) * _constant(2))  # from the edge to a sample
    first, end = (
        paddle.minimum(paddle.maximum(position, _constant(0)), last).floor()
        for position in (start + margin, start + size - margin)
    )
    return _Axis(start, bin_size, samples, last, first, end - first + _constant(1))


def _pool(table: Tensor, rois: Tensor, constants: _Constants) -> Tensor:
    """Pool the r RoIs of a chunk: [r, P, P*C], one row of bins after the other.

    rois [r, 13, 1]: the table row at which the RoI's map starts, then the fields of the y axis and of the x axis.
    """
    channels, output_size = table.shape[1], constants.bins.shape[0]
    origin, *axes = rois.split(rois.shape[1], axis=1)
    y, x = (_Axis(*axes[i : i + len(_Axis._fields)]) for i in (0, len(_Axis._fields)))
    rows, row_weights = _cell_weights(y, constants)
    columns, column_weights = _cell_weights(x, constants)
    index = (origin + (rows * (x.last + constants.one)).transpose([0, 2, 1]) + columns).astype("int64")  # [r, h, w]
    height = paddle.shape(index)[1]
    # F.embedding requires a known number of rows, so the underlying operator is called; gather takes twice the time
    window = paddle._C_ops.embedding(index.flatten(0, 1), table, -1, False)  # [r*h, w, C]
    column_weights = column_weights.unsqueeze(1).expand([-1, height, -1, -1]).flatten(0, 1)  # [r*h, P, w]
    means = paddle.bmm(column_weights, window).reshape([-1, height, output_size * channels])
    return paddle.bmm(row_weights, means)


def _cell_weights(axis: _Axis, constants: _Constants) -> tuple[Tensor, Tensor]:
    """Return the n cells of each RoI's window along an axis [r, 1, n], and their weights in its bins [r, P, n]."""
    zero, one = constants.zero, constants.one
    start, bin_size, samples, last, first, cells = axis  # [r, 1, 1]
    divisor = paddle.maximum(samples, one)
    cell = paddle.arange(zero, cells.max() + one, one, "float64")  # + 1: a sample interpolates with the next cell
    sample = paddle.arange(zero, divisor.max(), one, "float64") + constants.half
    position = start + constants.bins * bin_size + sample * (bin_size / divisor)  # [r, P, S]
    valid = (position >= constants.minus_one) & (position <= last + one) & (sample < samples)
    sample_weight = valid.astype("float64") / divisor
    position = paddle.minimum(paddle.maximum(position, zero), last) - first
    distance = position.unsqueeze(3) - cell
    linear = paddle.maximum(paddle.minimum(one - distance, one + distance), zero)  # interpolation weights [r, P, S, n]
    weights = paddle.matmul(sample_weight.unsqueeze(2), linear).squeeze(2).astype("float32")
    return paddle.minimum(first + cell, last), weights
