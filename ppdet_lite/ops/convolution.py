"""Convolution that is quick on a CPU."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from ppdet_lite.ops import onednn, places
from ppdet_lite.ops.once import once


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d`, by oneDNN where that is quicker: on a CPU, in float32.

    x [N, C, H, W]; weight [O, C/groups, kh, kw]; bias [O]; returns [N, O, H', W']. Exported graphs have the plain
    operator. So does a 1x1 without bias, which is a matrix product and nothing else.
    """
    steps = stride, padding, dilation, groups
    if paddle.in_dynamic_mode() and places.on_cpu(x):
        return _on_cpu(x, weight, bias, steps)  # apart, so that tracing a graph does not look into it
    return F.conv2d(x, weight, bias, *steps)


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, steps: tuple[int, int, int, int]) -> Tensor:
    if _by_onednn(x, weight, bias):
        convolution = onednn.Convolution(tuple(x.shape), tuple(weight.shape), *steps, bias is not None)
        if convolution.fits and not (bias is None and convolution.is_product):
            return once(_Convolution.apply(x, weight, bias, convolution))
    if bias is None:
        return F.conv2d(x, weight, None, *steps)
    # the same numbers: Paddle adds [1, C, 1, 1] twenty times slower
    return F.conv2d(x, weight, None, *steps) + bias.reshape([-1, 1, 1])


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if onednn.loaded() is None:
        return False
    tensors = [x, weight] if bias is None else [x, weight, bias]
    fits = x.ndim == weight.ndim == 4 and (bias is None or list(bias.shape) == weight.shape[:1])
    return fits and all(tensor.dtype == paddle.float32 for tensor in tensors)


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
