"""Squared norms of tensors, as for gradient clipping."""

from collections.abc import Sequence

import paddle
from paddle import Tensor

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.cpu import mkl


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the squared L2 norm of each tensor, [P], on their device; without gradients.

    On a CPU, MKL reads the values once. Paddle's `dot` adds one by one, which is slow and loses two digits.
    """
    norms = [mkl.norm(tensor) if dispatch.on_cpu(tensor) else None for tensor in tensors]
    if None in norms:
        return paddle.stack([tensor.square().sum() for tensor in tensors])
    return paddle.square(paddle.to_tensor(norms, dtype=tensors[0].dtype))  # infinite if a square is too large
