"""TF32 simulated on a CPU: matrix products whose factors have 10 bits of mantissa, as on Ampere and newer GPUs."""

import contextlib
from collections.abc import Iterator

import numpy as np
import paddle
import pytest
from paddle import Tensor
from paddle.autograd import PyLayer

MATRIX_PRODUCTS = ("matmul", "bmm", "mm", "einsum", "dot", "mv", "addmm", "inner")


def rounded(x: Tensor) -> Tensor:
    """Return float32 rounded to the nearest number with 10 bits of mantissa, halves away from zero."""
    bits = x.numpy().view(np.int32) + (1 << 12)
    return paddle.to_tensor((bits & -(1 << 13)).view(np.float32))


class _Product(PyLayer):
    """A batched matrix product of rounded factors; so are those of its gradients."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.needs_grad = not a.stop_gradient, not b.stop_gradient
        return paddle._C_ops.matmul(rounded(a), rounded(b), False, False)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = (rounded(tensor) for tensor in ctx.saved_tensor())
        grad = rounded(grad)
        grads = paddle._C_ops.matmul(grad, b, False, True), paddle._C_ops.matmul(a, grad, True, False)
        return tuple(grad if needed else None for grad, needed in zip(grads, ctx.needs_grad, strict=True))


def product(a: Tensor, b: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    assert not transpose_x
    return _Product.apply(a, b.transpose([0, 2, 1]) if transpose_y else b)


@contextlib.contextmanager
def simulated(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Round the factors of `paddle.matmul` and `paddle.bmm`."""
    with patch.context() as inside:
        for name in ("matmul", "bmm"):
            inside.setattr(paddle, name, product)
        yield


@contextlib.contextmanager
def refused(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail at every matrix product that is not a layer."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a matrix product, which TF32 would round")

    with patch.context() as inside:
        for name in MATRIX_PRODUCTS:
            inside.setattr(paddle, name, refuse)
            if hasattr(Tensor, name):
                inside.setattr(Tensor, name, refuse)
        inside.setattr(Tensor, "__matmul__", refuse)
        yield
