"""Deformable convolution, versions 1 and 2."""

from collections.abc import Callable

import numpy as np
import paddle
import paddle.vision.ops as native_ops
from paddle import Tensor

from ppdet_lite.ops import places
from ppdet_lite.ops.bilinear import cross_taps, linear_taps, sum_rows
from ppdet_lite.ops.checks import Pair, as_pair, full_precision, require, require_shape
from ppdet_lite.ops.deform_conv_graph import gather_in_graph


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    deformable_groups: int = 1,
    groups: int = 1,
    implementation: str = "auto",
) -> Tensor:
    """Convolve with every kernel tap moved by an offset and, in version 2, scaled by a mask.

    y(p) = bias + sum over taps k of weight_k * x(p*stride - padding + k*dilation + offset_k) * mask_k

    x [N, C, H, W]; weight [O, C/groups, kh, kw]; bias [O]; returns [N, O, OH, OW], (OH, OW) as of a plain convolution.
    offset [N, deformable_groups*2*kh*kw, OH, OW] in pixels of x: per deformable group and tap (row by row) dy, then dx.
    mask [N, deformable_groups*kh*kw, OH, OW]; None is version 1. stride, padding, dilation: an int or (y, x).
    x is sampled bilinearly as if padded with zeros: a sample counts while -1 < y < H and -1 < x < W.

    implementation: "native" is Paddle's operator; "gather" is made of gathers and a matrix product, equal to rounding
    and several times faster on a CPU; "auto" takes gather on a CPU, native on a GPU. In a graph being exported it is
    gathers that suit oneDNN, or native where there are groups. All compute in float32, or in float64 when x is.

    Raises ValueError naming the shapes when they do not fit together.
    Sources: Deformable Convolutional Networks (Dai et al. 2017), section 2.1; Deformable ConvNets v2 (Zhu et al. 2019),
    section 3.2.
    """
    stride, dilation = as_pair("stride", stride, 1), as_pair("dilation", dilation, 1)
    padding = as_pair("padding", padding, 0)
    _check(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups, groups)
    convolve = _choose(implementation, x, groups)
    with paddle.amp.auto_cast(enable=False):
        x, offset, weight, mask, bias = full_precision(x, offset, weight, mask, bias)
        return convolve(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups, groups)


def _native(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups, groups) -> Tensor:
    outputs = weight.shape[0]
    require(
        outputs % deformable_groups == 0, f"native needs deformable_groups that divide the {outputs} output channels"
    )
    if mask is not None and mask.stop_gradient and paddle.in_dynamic_mode():
        mask = mask.detach()  # Paddle 3.3's backward crashes the process unless the mask wants a gradient too
        mask.stop_gradient = False
    return native_ops.deform_conv2d(
        x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask=mask
    )


def _gather(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups, groups) -> Tensor:
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    oh, ow = offset.shape[2:]
    taps = kh * kw
    # Where each tap of each output reads if not moved: [1, OH, 1, K, 1] and [1, 1, OW, K, 1].
    # Of one rank with the offsets: oneDNN does not broadcast between ranks reliably in an exported graph.
    tap_y, tap_x = (paddle.to_tensor(i.reshape(1, 1, 1, taps, 1), dtype=x.dtype) for i in np.indices((kh, kw)))
    place_y = paddle.arange(oh, dtype=x.dtype).reshape([1, -1, 1, 1, 1]) * stride[0] - padding[0] + tap_y * dilation[0]
    place_x = paddle.arange(ow, dtype=x.dtype).reshape([1, 1, -1, 1, 1]) * stride[1] - padding[1] + tap_x * dilation[1]
    offset = offset.reshape([n, deformable_groups, taps, 2, oh, ow]).transpose([3, 0, 4, 5, 2, 1])
    offset_y, offset_x = offset.unbind()  # [N, OH, OW, K, D], the order of the samples below
    y_taps, x_taps = linear_taps((place_y + offset_y).flatten(), h), linear_taps((place_x + offset_x).flatten(), w)
    index, tap_weight = cross_taps(y_taps, x_taps, w)
    if mask is not None:
        mask = mask.reshape([n, deformable_groups, taps, oh, ow]).transpose([0, 3, 4, 2, 1])
        tap_weight = tap_weight * mask.reshape([-1, 1])

    # A row of the table is one deformable group's channels of one pixel.
    rows = x.transpose([0, 2, 3, 1]).flatten(0, 2).reshape([-1, c // deformable_groups])
    pixel = index.reshape([n, -1, deformable_groups, 4]) + paddle.arange(n).reshape([-1, 1, 1, 1]) * (h * w)
    group_count = paddle.to_tensor([deformable_groups])  # times an int, oneDNN would fuse a sum with and ruin it
    index = pixel * group_count + paddle.arange(deformable_groups).reshape([-1, 1])
    columns = sum_rows(rows, (index.reshape([-1, 4]), tap_weight))
    out = _multiply(columns.reshape([n, oh * ow, taps, c]), weight, groups).reshape([n, o, oh, ow])
    return out if bias is None else out + bias.reshape([o, 1, 1])


def _multiply(columns: Tensor, weight: Tensor, groups: int) -> Tensor:
    """[N, O, P] from the samples [N, P, K, C] of P places and the kernel [O, C/groups, kh, kw]."""
    n, p, taps, c = columns.shape
    o = weight.shape[0]
    kernel = weight.reshape([groups, o // groups, c // groups, taps]).transpose([0, 1, 3, 2]).flatten(2)
    if groups == 1:
        return paddle.matmul(kernel.squeeze(0), columns.reshape([n, p, taps * c]), transpose_y=True)
    columns = columns.reshape([n * p, taps, groups, c // groups]).transpose([2, 0, 1, 3]).flatten(2)
    return paddle.matmul(kernel, columns, transpose_y=True).reshape([o, n, p]).transpose([1, 0, 2])


@paddle.jit.not_to_static
def _choose(implementation: str, x: Tensor, groups: int) -> Callable[..., Tensor]:
    require(
        implementation in ("auto", "native", "gather"), f"implementation {implementation!r}: auto, native or gather"
    )
    if implementation == "auto" and not paddle.in_dynamic_mode():
        return _native if groups > 1 else _in_graph
    if implementation == "auto":
        return _gather if places.on_cpu(x) else _native
    return _native if implementation == "native" else _gather


def _in_graph(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups, groups) -> Tensor:
    return gather_in_graph(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups)


@paddle.jit.not_to_static  # sizes are plain numbers here, -1 where unknown
def _check(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups, groups) -> None:
    require(x.ndim == 4 and weight.ndim == 4, f"x {list(x.shape)} and weight {list(weight.shape)} must be 4-D")
    n, c, *size = x.shape
    o, c_per_group, *kernel = weight.shape
    require(
        groups > 0 and o % groups == 0 and c == c_per_group * groups,
        f"x {list(x.shape)} and weight {list(weight.shape)}, [O, C/groups, kh, kw], do not fit with groups={groups}",
    )
    require(
        deformable_groups > 0 and c % deformable_groups == 0,
        f"the {c} channels of x {list(x.shape)} cannot be divided into deformable_groups={deformable_groups}",
    )
    out = [
        None if s < 0 else (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    require(all(s is None or s > 0 for s in out), f"x {list(x.shape)} is smaller than the kernel {list(weight.shape)}")
    taps = deformable_groups * kernel[0] * kernel[1]
    require_shape("offset", offset, [n, 2 * taps, *out])
    require_shape("mask", mask, [n, taps, *out])
    require_shape("bias", bias, [o])
