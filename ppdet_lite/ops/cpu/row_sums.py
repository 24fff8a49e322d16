"""Weighted sums of table rows with gradients: by MKL's sparse matrix product, or in chunks that fit in a CPU's cache.

The weights are a sparse matrix. A gradient of the weights has to gather the rows again, in chunks.
"""

from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from ppdet_lite.ops.cpu import sparse_product
from ppdet_lite.ops.cpu.backward_once import backward_once
from ppdet_lite.ops.cpu.sparse_product import SparseMatrix

# Values gathered per chunk (8 MB in float32): bounds the memory, and keeps the values in the cache for the product.
CHUNK_VALUES = 1 << 21


def row_sums(rows: Tensor, *taps: Tensor) -> Tensor:
    """Compute `ops.bilinear.sum_rows`; taps are index, weight, index, weight, ... instead of pairs."""
    return backward_once(_SumRows.apply(rows, *taps))


def _sparse_matrix(rows: Tensor, taps: Sequence[Tensor]) -> SparseMatrix | None:
    """Return the weights as a sparse matrix [sum of B, M], or None if it cannot be multiplied by these rows."""
    indices, weights = taps[::2], taps[1::2]
    lengths = np.repeat([index.shape[1] for index in indices], [index.shape[0] for index in indices])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    if not sparse_product.is_supported(rows, height=len(lengths), entries=int(starts[-1])):
        return None
    columns = paddle.concat([index.flatten() for index in indices]).astype("int32")
    values = paddle.concat([weight.flatten() for weight in weights])
    return SparseMatrix(starts.astype(np.int32), columns.numpy(), values.numpy(), rows.shape[0])


def _weighted_sum(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return paddle.bmm(weight.unsqueeze(1), F.embedding(index, rows)).squeeze(1)


class _SumRows(PyLayer):
    """The operator of `row_sums`, [sum of B, C]; it keeps rows and taps, not the gathered rows."""

    @staticmethod
    def forward(ctx, rows: Tensor, *taps: Tensor) -> Tensor:
        ctx.needs_grad = not rows.stop_gradient, not taps[1].stop_gradient
        rows, *taps = (t.contiguous() for t in (rows, *taps))  # a view would be copied again for every chunk
        ctx.save_for_backward(rows, *taps)
        if matrix := _sparse_matrix(rows, taps):
            return matrix.multiply(rows)
        return paddle.concat(
            [
                _weighted_sum(rows, index[part], weight[part])
                for index, weight in zip(taps[::2], taps[1::2], strict=True)
                for part in _chunks(rows, index)
            ]
        )

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, *taps = ctx.saved_tensor()
        rows_need_grad, weights_need_grad = ctx.needs_grad
        grad = grad.contiguous()
        rows_grad = None
        if rows_need_grad and (matrix := _sparse_matrix(rows, taps)):
            rows_grad, rows_need_grad = matrix.transpose().multiply(grad), False
        elif rows_need_grad:
            rows_grad = paddle.zeros_like(rows)
        taps_grad = []
        grad = grad.unsqueeze(1)
        for index, weight in zip(taps[::2], taps[1::2], strict=True):
            pair_grad, grad = grad[: len(index)], grad[len(index) :]
            weight_grad = []
            for part in _chunks(rows, index):
                if weights_need_grad:
                    gathered = F.embedding(index[part], rows)
                    weight_grad.append(paddle.matmul(pair_grad[part], gathered, transpose_y=True).squeeze(1))
                if rows_need_grad:
                    row_grad = paddle.bmm(weight[part].unsqueeze(-1), pair_grad[part]).flatten(0, 1)
                    paddle.index_add_(rows_grad, index[part].flatten(), 0, row_grad)
            taps_grad += [None, paddle.concat(weight_grad) if weights_need_grad else None]
        return rows_grad, *taps_grad


def _chunks(rows: Tensor, index: Tensor) -> list[slice]:
    """Return slices along B whose sums gather about CHUNK_VALUES values each; at least one slice."""
    length = max(1, CHUNK_VALUES // max(1, index.shape[1] * rows.shape[1]))
    return [slice(start, start + length) for start in range(0, max(1, index.shape[0]), length)]
