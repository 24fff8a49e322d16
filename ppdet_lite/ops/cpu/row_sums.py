"""Weighted sums of table rows with gradients, computed in chunks that fit in a CPU's cache."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from ppdet_lite.ops.cpu.backward_once import backward_once

# Values gathered per chunk (8 MB in float32): bounds the memory, and keeps the values in the cache for the product.
CHUNK_VALUES = 1 << 21


def chunked_row_sums(rows: Tensor, *taps: Tensor) -> Tensor:
    """Compute `ops.bilinear.sum_rows`; taps are index, weight, index, weight, ... instead of pairs."""
    return backward_once(_SumRows.apply(rows, *taps))


def _weighted_sum(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return paddle.bmm(weight.unsqueeze(1), F.embedding(index, rows)).squeeze(1)


class _SumRows(PyLayer):
    """The operator of `chunked_row_sums`, [sum of B, C]; it keeps rows and taps, not the gathered rows."""

    @staticmethod
    def forward(ctx, rows: Tensor, *taps: Tensor) -> Tensor:
        ctx.needs_grad = not rows.stop_gradient, not taps[1].stop_gradient
        rows, *taps = (t.contiguous() for t in (rows, *taps))  # a view would be copied again for every chunk
        ctx.save_for_backward(rows, *taps)
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
        rows_grad = paddle.zeros_like(rows) if rows_need_grad else None
        taps_grad = []
        grad = grad.contiguous().unsqueeze(1)
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
