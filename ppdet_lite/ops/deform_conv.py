"""Deformable convolution, versions 1 and 2."""

from collections.abc import Callable

import paddle
import paddle.vision.ops as native_ops
from paddle import Tensor

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.checks import Pair, as_pair, full_precision, require, require_shape
from ppdet_lite.ops.cpu.deform_conv import gather_deform_conv2d
from ppdet_lite.ops.cpu.deform_conv_graph import gather_in_graph


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


@paddle.jit.not_to_static
def _choose(implementation: str, x: Tensor, groups: int) -> Callable[..., Tensor]:
    require(
        implementation in ("auto", "native", "gather"), f"implementation {implementation!r}: auto, native or gather"
    )
    if implementation == "auto" and not paddle.in_dynamic_mode():
        return _native if groups > 1 else gather_in_graph
    if implementation == "auto":
        return gather_deform_conv2d if dispatch.on_cpu(x) else _native
    return _native if implementation == "native" else gather_deform_conv2d


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
