"""Convolution by oneDNN, with its gradients."""

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from ppdet_lite.ops.cpu import onednn
from ppdet_lite.ops.cpu.backward_once import backward_once


def onednn_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
) -> Tensor | None:
    """`F.conv2d` of float32 tensors by oneDNN; None where Paddle's operator serves as well or has to refuse.

    That is a 1x1 convolution without bias, which is a plain matrix product, and shapes that do not fit together.
    """
    shapes = tuple(x.shape), tuple(weight.shape)
    convolution = onednn.Convolution(*shapes, stride, padding, dilation, groups, bias is not None)
    if not convolution.fits or (bias is None and convolution.is_product):
        return None
    return backward_once(_Convolution.apply(x, weight, bias, convolution))


class _Convolution(PyLayer):
    """conv2d by oneDNN's primitives."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: onednn.Convolution) -> Tensor:
        ctx.wanted = [tensor is not None and not tensor.stop_gradient for tensor in (x, weight, bias)]
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
        if ctx.wanted[0]:
            x_grad = paddle.empty_like(x)
            onednn.input_gradient(convolution)(grad, weight, x_grad)
        if ctx.wanted[1] or ctx.wanted[2]:
            weight_grad = paddle.empty_like(weight)
            bias_grad = paddle.empty(weight.shape[:1], x.dtype) if convolution.biased else None
            onednn.weight_gradient(convolution)(x, grad, weight_grad, *([bias_grad] if convolution.biased else []))
        grads = [gradient if wanted else None for gradient, wanted in zip((x_grad, weight_grad, bias_grad), ctx.wanted)]
        return tuple(grads if convolution.biased else grads[:2])
