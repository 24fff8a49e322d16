"""Convolution by oneDNN, with gradients."""

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from ppdet_lite.ops.cpu import onednn
from ppdet_lite.ops.cpu.backward_once import backward_once


def onednn_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
) -> Tensor | None:
    """Compute `F.conv2d` of float32 tensors by oneDNN, or return None if Paddle's operator should be called instead.

    That is the case for a 1x1 convolution without bias, a plain matrix product, in which Paddle's operator is as fast,
    and for invalid shapes, which Paddle's operator reports.
    """
    convolution = onednn.Convolution(
        tuple(x.shape), tuple(weight.shape), stride, padding, dilation, groups, has_bias=bias is not None
    )
    if not convolution.has_valid_shapes or (bias is None and convolution.is_matrix_product):
        return None
    return backward_once(_Convolution.apply(x, weight, bias, convolution))


class _Convolution(PyLayer):
    """conv2d computed by oneDNN's primitives."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: onednn.Convolution) -> Tensor:
        ctx.needs_grad = [tensor is not None and not tensor.stop_gradient for tensor in (x, weight, bias)]
        ctx.convolution = convolution
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        out = paddle.empty(convolution.out, x.dtype)
        onednn.forward(convolution)(x, weight, *([] if bias is None else [bias]), out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensor()
        convolution, grad = ctx.convolution, grad.contiguous()
        x_grad = weight_grad = bias_grad = None
        if ctx.needs_grad[0]:
            x_grad = paddle.empty_like(x)
            onednn.input_gradient(convolution)(grad, weight, x_grad)
        if ctx.needs_grad[1] or ctx.needs_grad[2]:
            weight_grad = paddle.empty_like(weight)
            bias_grad = paddle.empty(weight.shape[:1], x.dtype) if convolution.has_bias else None
            onednn.weight_gradient(convolution)(x, grad, weight_grad, *([bias_grad] if convolution.has_bias else []))
        grads = [g if needed else None for g, needed in zip((x_grad, weight_grad, bias_grad), ctx.needs_grad)]
        return tuple(grads if convolution.has_bias else grads[:2])  # one for each tensor that `forward` received
