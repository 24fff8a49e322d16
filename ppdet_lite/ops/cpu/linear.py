"""Fully connected layer on a CPU whose products are computed in bfloat16 by oneDNN."""

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from ppdet_lite.ops.cpu import onednn, onednn_library
from ppdet_lite.ops.cpu.backward_once import backward_once


def bfloat16_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `F.linear` of float32 tensors x [R, I], weight [I, O] and bias [O], multiplying in bfloat16.

    If oneDNN fails, the products are computed by Paddle's operator in float32, with one warning per process.
    """
    out = backward_once(_Product.apply(x, weight))
    return out if bias is None else out + bias


class _Product(PyLayer):
    """Product of x [R, I] and weight [I, O]."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.needs_grad = not x.stop_gradient, not weight.stop_gradient
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), grad = ctx.saved_tensor(), grad.contiguous()
        needs_x, needs_weight = ctx.needs_grad
        x_grad = _multiply(grad, weight, transposed=(False, True)) if needs_x else None
        return x_grad, _multiply(x, grad, transposed=(True, False)) if needs_weight else None


def _multiply(a: Tensor, b: Tensor, transposed: tuple[bool, bool] = (False, False)) -> Tensor:
    """Return the product of two contiguous matrices, which may be given transposed."""
    rows, inner = reversed(a.shape) if transposed[0] else a.shape
    columns = b.shape[0] if transposed[1] else b.shape[1]
    product = onednn.MatrixProduct(rows, inner, columns, transposed, bfloat16=True)
    out = onednn.empty([rows, columns])
    try:
        onednn.matrix_product(product)(a, b, out)
    except onednn_library.OneDnnError as error:
        onednn_library.warn_once(error)
        return paddle.matmul(a, b, *transposed)
    return out
