"""Deformable convolution, version 1 (offsets) and version 2 (offsets and a mask)."""

from collections.abc import Callable

import paddle
import paddle.vision.ops as native_ops
from paddle import Tensor

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.checks import Pair, as_pair, full_precision, require, require_shape
from ppdet_lite.ops.cpu.deform_conv import gather_deform_conv2d
from ppdet_lite.ops.cpu.deform_conv_graph import traced_deform_conv2d


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
    """Convolve with every sample moved by an offset and, in version 2, scaled by a mask.

    y(p) = bias + sum over kernel positions k of weight_k * x(p*stride - padding + k*dilation + offset_k) * mask_k

    x [N, C, H, W]; weight [O, C/groups, kh, kw]; bias [O]; returns [N, O, OH, OW], the size of a plain convolution.
    offset [N, deformable_groups*kh*kw*2, OH, OW] in pixels of x, ordered by deformable group of input channels, kernel
    position (row-major) and (dy, dx). mask [N, deformable_groups*kh*kw, OH, OW]; None in version 1.
    x is sampled bilinearly with zero padding: samples outside -1 < y < H, -1 < x < W are 0.

    implementation: "native" is Paddle's operator; "gather" uses gathers and a matrix product, which is several times
    faster on a CPU; "auto" selects gather on a CPU and native on a GPU, and in traced graphs an implementation for
    oneDNN, or native if groups > 1. Results agree up to rounding. All compute in float32, or in float64 if x is.

    Raises ValueError, with the shapes, if they are inconsistent.
    Sources: Deformable Convolutional Networks (Dai et al. 2017), section 2.1; Deformable ConvNets v2 (Zhu et al. 2019),
    section 3.2.
    """
    stride, dilation = as_pair("stride", stride, 1), as_pair("dilation", dilation, 1)
    padding = as_pair("padding", padding, 0)
    _check(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups, groups)
    convolve = _select_implementation(implementation, x, groups)
    with paddle.amp.auto_cast(enable=False):
        x, offset, weight, mask, bias = full_precision(x, offset, weight, mask, bias)
        return convolve(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups, groups)


def _native(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups, groups) -> Tensor:
    out = weight.shape[0]
    require(out % deformable_groups == 0, f"native needs deformable_groups to divide the {out} output channels")
    if mask is not None and mask.stop_gradient and paddle.in_dynamic_mode():
        mask = mask.detach()  # Paddle 3.3's backward pass crashes the process if the mask does not require a gradient
        mask.stop_gradient = False
    return native_ops.deform_conv2d(
        x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask=mask
    )


@paddle.jit.not_to_static
def _select_implementation(implementation: str, x: Tensor, groups: int) -> Callable[..., Tensor]:
    names = ("auto", "native", "gather")
    require(implementation in names, f"implementation must be one of {', '.join(names)}, not {implementation!r}")
    if implementation == "auto" and not paddle.in_dynamic_mode():
        return _native if groups > 1 else traced_deform_conv2d
    if implementation == "auto":
        return gather_deform_conv2d if dispatch.on_cpu(x) else _native
    return _native if implementation == "native" else gather_deform_conv2d


@paddle.jit.not_to_static  # while a graph is traced, sizes are Python ints here, -1 if unknown
def _check(x, offset, weight, mask, bias, stride, padding, dilation, deformable_groups, groups) -> None:
    require(x.ndim == 4 and weight.ndim == 4, f"x {list(x.shape)} and weight {list(weight.shape)} must be 4-D")
    n, c, *size = x.shape
    o, c_per_group, *kernel = weight.shape
    require(
        groups > 0 and o % groups == 0 and c == c_per_group * groups,
        f"weight {list(weight.shape)} must be [O, C/groups, kh, kw] for x {list(x.shape)} and groups={groups}",
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
    samples = deformable_groups * kernel[0] * kernel[1]
    require_shape("offset", offset, [n, 2 * samples, *out])
    require_shape("mask", mask, [n, samples, *out])
    require_shape("bias", bias, [o])
