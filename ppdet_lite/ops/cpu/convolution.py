"""Convolution on a CPU, with gradients: by oneDNN, or by Paddle's operator where oneDNN fails."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from ppdet_lite.ops.cpu import onednn, onednn_library
from ppdet_lite.ops.cpu.backward_once import backward_once


def onednn_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    bfloat16: bool = False,
) -> Tensor | None:
    """Compute `F.conv2d` of float32 tensors by oneDNN, or return None if Paddle's operator should be called instead.

    That is the case for a 1x1 convolution without bias, a plain matrix product, in which Paddle's operator is as fast
    in float32, and for invalid shapes, which Paddle's operator reports. If oneDNN fails, forward or backward, that pass
    is computed by Paddle's operator, in float32, with one warning per process.
    """
    shapes, options = (tuple(x.shape), tuple(weight.shape)), (stride, padding, dilation, groups)
    convolution = onednn.Convolution(*shapes, *options, has_bias=bias is not None, bfloat16=bfloat16)
    as_fast_in_paddle = bias is None and not bfloat16 and convolution.is_matrix_product
    if not convolution.is_valid or as_fast_in_paddle:
        return None
    return backward_once(_Convolution.apply(x, weight, bias, convolution))


def paddle_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
) -> Tensor:
    """Compute `F.conv2d` by Paddle's operator for a CPU, with a faster addition of the bias."""
    out = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    # F.conv2d would add the bias as [1, C, 1, 1], with the same result but twenty times more slowly
    return out if bias is None else out + bias.reshape([-1, 1, 1])


class _Convolution(PyLayer):
    """conv2d computed by oneDNN's primitives."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, convolution: onednn.Convolution) -> Tensor:
        tensors = [x, weight] if bias is None else [x, weight, bias]
        ctx.needs_grad = [not tensor.stop_gradient for tensor in tensors]
        ctx.convolution = convolution
        x, weight, *biases = (tensor.contiguous() for tensor in tensors)
        ctx.save_for_backward(x, weight, *biases)
        try:
            out = onednn.empty(convolution.out)
            onednn.forward(convolution)(x, weight, *biases, out)
        except onednn_library.OneDnnError as error:
            onednn_library.warn_once(error)
            return paddle_conv2d(x, weight, *(biases or [None]), *convolution.options)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensor()
        try:
            return _onednn_gradients(tensors, grad.contiguous(), ctx.convolution, ctx.needs_grad)
        except onednn_library.OneDnnError as error:
            onednn_library.warn_once(error)
            return _paddle_gradients(tensors, grad, ctx.convolution, ctx.needs_grad)


def _onednn_gradients(
    tensors: list[Tensor], grad: Tensor, convolution: onednn.Convolution, needs_grad: list[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, weight and bias, if there is one; None for those that are not needed."""
    x, weight = tensors[:2]
    grads: list[Tensor | None] = [None] * len(tensors)
    copies: onednn.Copies = {}  # both primitives read the gradient
    if needs_grad[0]:
        grads[0] = onednn.empty(convolution.x)
        onednn.input_gradient(convolution)(grad, weight, grads[0], copies=copies)
    if any(needs_grad[1:]):
        grads[1:] = [onednn.empty(tensor.shape) for tensor in tensors[1:]]
        onednn.weight_gradient(convolution)(x, grad, *grads[1:], copies=copies)
    return tuple(g if needed else None for g, needed in zip(grads, needs_grad))


def _paddle_gradients(
    tensors: list[Tensor], grad: Tensor, convolution: onednn.Convolution, needs_grad: list[bool]
) -> tuple[Tensor | None, ...]:
    """Return the same gradients, computed by Paddle's operator, which runs forward again.

    They are collected in `.grad`, because `paddle.grad` inside of a backward pass by `paddle.grad` ends the process.
    """
    inputs = [tensor.detach() for tensor in tensors]
    for tensor, needed in zip(inputs, needs_grad):
        tensor.stop_gradient = not needed
    with paddle.enable_grad():
        out = paddle_conv2d(*inputs[:2], inputs[2] if convolution.has_bias else None, *convolution.options)
        out.backward(grad)
    return tuple(tensor.grad for tensor in inputs)
