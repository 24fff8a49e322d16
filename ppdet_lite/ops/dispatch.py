"""Selects the implementation of each operator: Paddle's own, a faster one for a CPU, or one for exported graphs.

There are three cases: eager on a CPU, eager on a GPU, and traced (a graph being exported, which usually runs with
oneDNN on a CPU). `cpu.*` are modules of `ops/cpu/`. Each implementation is documented there or in its operator.

| operator                | eager, CPU                 | eager, GPU       | traced                  | tested by test_* |
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

`PPDET_LITE_RUNTIME` without `onednn` disables oneDNN for eager convolutions (see `core.runtime`).
"""

import paddle
from paddle import Tensor

from ppdet_lite.ops.cpu import onednn


def on_cpu(tensor: Tensor) -> bool:
    """Return whether a tensor is in CPU memory. Tests replace this function to run the GPU implementations on a CPU."""
    return tensor.place.is_cpu_place()


@paddle.jit.not_to_static
def eager_on_cpu(tensor: Tensor) -> bool:
    """Return whether operators on this tensor run eagerly on a CPU; False while a graph is traced."""
    return paddle.in_dynamic_mode() and on_cpu(tensor)


def uses_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether oneDNN can compute this convolution: the library is loaded and all tensors are float32."""
    if onednn.library() is None:
        return False
    tensors = [x, weight] if bias is None else [x, weight, bias]
    valid = x.ndim == weight.ndim == 4 and (bias is None or list(bias.shape) == weight.shape[:1])
    return valid and all(tensor.dtype == paddle.float32 for tensor in tensors)


def describe_convolution() -> str:
    """Return a log line: which library computes convolutions on a CPU and, if it is not oneDNN, why not."""
    return onednn.description()
