"""Chooses the implementation of an operator: Paddle's own, one that is faster on a CPU, or one for exported graphs.

Three situations are told apart: eager on a CPU, eager on a GPU, and traced (a graph being exported, which runs under
oneDNN on a CPU). `cpu.*` are modules of `ops/cpu/`.

| operator                | eager, CPU                 | eager, GPU       | traced                  | proven by test_* |
|-------------------------|----------------------------|------------------|-------------------------|------------------|
| `layers.conv2d`         | `cpu.convolution` (oneDNN) | `F.conv2d`       | `F.conv2d`              | convolution      |
| `layers.group_norm`     | `cpu.group_norm`           | `F.group_norm`   | `F.group_norm`          | group_norm       |
| `layers.frozen_norm`    | `cpu.frozen_norm`          | the same         | `F.batch_norm`          | frozen_norm      |
| `layers.relu`           | in place                   | `F.relu`         | `F.relu`                | relu             |
| `layers.upsample_twice` | a matrix product           | stacked copies   | transposed convolution  | fpn              |
| `deform_conv2d`         | `cpu.deform_conv`          | Paddle's         | `cpu.deform_conv_graph` | deform_conv      |
| `pyramid_roi_align`     | Paddle's, or in training   | Paddle's         | `cpu.roi_windows`       | roi_align,       |
|                         | `deform_roi_pool`          |                  |                         | roi_windows      |
| `deform_roi_pool`       | `bilinear.sum_rows`        | the same         | Paddle's RoIAlign       | deform_roi_pool  |
| `bilinear.sum_rows`     | `cpu.row_sums`             | the same         | gathers, no gradient    | bilinear         |
| NMS in the RPN          | a call per image and level | a call per image | a call per level        | rpn, reads       |

The modules and functions say why. `PPDET_LITE_RUNTIME` without `onednn` switches oneDNN off (see `core.runtime`).
"""

import paddle
from paddle import Tensor

from ppdet_lite.ops.cpu import onednn


def on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is in a CPU's memory. Tests replace this function to run a GPU's implementations on a CPU."""
    return tensor.place.is_cpu_place()


@paddle.jit.not_to_static
def eager_on_cpu(tensor: Tensor) -> bool:
    """Whether an operator on this tensor runs now, on a CPU; False while a graph is traced."""
    return paddle.in_dynamic_mode() and on_cpu(tensor)


def uses_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN can compute this convolution on a CPU: the library is there, and all is float32."""
    if onednn.loaded() is None:
        return False
    tensors = [x, weight] if bias is None else [x, weight, bias]
    fits = x.ndim == weight.ndim == 4 and (bias is None or list(bias.shape) == weight.shape[:1])
    return fits and all(tensor.dtype == paddle.float32 for tensor in tensors)


def describe_convolution() -> str:
    """What computes convolutions on a CPU and, where that is not oneDNN, why; for logs."""
    return onednn.description()
