"""Selects the implementation of each operator: Paddle's own, a faster one for a CPU, or one for exported graphs.

There are three cases: eager on a CPU, eager on a GPU, and traced (a graph for export, which serves inference only and
usually runs with oneDNN on a CPU). `cpu.*` are modules of `ops/cpu/`. Paddle's own operator replaces those of a CPU for
arguments that they do not support; each operator or module states its conditions.

| operator                | eager, CPU                 | eager, GPU       | traced                  | tested by test_* |
|-------------------------|----------------------------|------------------|-------------------------|------------------|
| `layers.conv2d`         | `cpu.convolution` (oneDNN) | `F.conv2d`       | `F.conv2d`              | convolution,     |
|                         |                            |                  |                         | onednn           |
| `layers.linear`         | `F.linear`; in bfloat16    | `F.linear`       | `F.linear`              | bfloat16         |
|                         | `cpu.linear` (oneDNN)      |                  |                         |                  |
| `layers.group_norm`     | `cpu.group_norm`           | `F.group_norm`   | `F.group_norm`          | group_norm       |
| `layers.frozen_norm`    | `cpu.frozen_norm`          | the same         | `F.batch_norm`          | frozen_norm      |
| `layers.*relu`          | in place                   | `F.relu`         | `F.relu`                | relu             |
| `layers.max_pool`       | keeps indices in training  | `F.max_pool2d`   | `F.max_pool2d`          | resnet           |
| `layers.upsample_twice` | a matrix product           | stacked copies   | transposed convolution  | fpn              |
| `deform_conv2d`         | `cpu.deform_conv`          | Paddle's         | `cpu.deform_conv_graph` | deform_conv*     |
| `pyramid_roi_align`     | `deform_roi_pool`          | Paddle's         | `cpu.roi_windows`       | roi_align,       |
|                         |                            |                  |                         | roi_windows      |
| `deform_roi_pool`       | `bilinear.sum_rows`, in    | `padded_bins`    | aligned: Paddle's       | deform_roi_pool* |
|                         | groups of equal samples    |                  | RoIAlign; else as a CPU |                  |
| `bilinear.sum_rows`     | `cpu.row_sums` (MKL's      | products, sums   | gathers                 | bilinear,        |
|                         | `cpu.sparse_product`)      |                  |                         | sparse_product   |
| `bilinear.dense_taps`   | a matrix product           | sums by pixel    | unused                  | bilinear         |
| NMS in the RPN          | a call per image and level | a call per image | `grouped_nms` per level | rpn, reads       |
| `grouped_nms`           | calls of 512 boxes         | of 4096 boxes    | a loop of such calls    | nms, reads       |
| `squared_norms`         | `cpu.mkl`                  | squares, sums    | unused                  | sparse_product   |

`PPDET_LITE_RUNTIME`, if set without `onednn` or `mkl`, disables the operators that use that library (see
`core.runtime`).
"""

import paddle
from paddle import Tensor

from ppdet_lite.ops.cpu import mkl, onednn_library


def on_cpu(tensor: Tensor) -> bool:
    """Return whether a tensor is in CPU memory. Tests replace this function to run the GPU implementations on a CPU."""
    return tensor.place.is_cpu_place()


@paddle.jit.not_to_static
def eager_on_cpu(tensor: Tensor) -> bool:
    """Return whether operators on this tensor run eagerly on a CPU; False while a graph is traced."""
    return paddle.in_dynamic_mode() and on_cpu(tensor)


@paddle.jit.not_to_static
def eager_on_gpu(tensor: Tensor) -> bool:
    """Return whether operators on this tensor run eagerly on a GPU; False while a graph is traced."""
    return paddle.in_dynamic_mode() and not on_cpu(tensor)


def uses_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether oneDNN is in use and can compute this convolution: 4-D float32 tensors on a CPU, a bias of [O]."""
    if onednn_library.load_library() is None:
        return False
    tensors = [x, weight] if bias is None else [x, weight, bias]
    valid_shapes = x.ndim == weight.ndim == 4 and (bias is None or list(bias.shape) == weight.shape[:1])
    return valid_shapes and all(tensor.dtype == paddle.float32 and on_cpu(tensor) for tensor in tensors)


def multiplies_bfloat16() -> bool:
    """Return whether a CPU multiplies in bfloat16 in eager convolutions and linear layers that ask for it."""
    return onednn_library.multiplies_bfloat16()


def describe_libraries() -> tuple[str, ...]:
    """Return log lines: which libraries compute the slowest operators on a CPU and, if they are Paddle's own, why."""
    return onednn_library.description(), mkl.description()
