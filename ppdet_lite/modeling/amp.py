"""Mixed precision in training: the layers that compute in 16 bits, and the loss scale for float16.

On a GPU, Paddle's auto_cast runs convolutions and matrix products in bfloat16 or float16; weights and all other
operators stay float32. On a CPU, Paddle 3.3 has no bfloat16 kernels. There `Conv2D` and `Linear` multiply in bfloat16
and add in float32, if the processor can. Otherwise they round their inputs, weights and outputs to bfloat16 and compute
in float32, similar to the matrix units of a GPU, which shows the effect of bfloat16 on training and saves no time.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import paddle
from paddle import nn

from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling.components import RoIPool
from ppdet_lite.modeling.deform import DeformConv2D
from ppdet_lite.modeling.layers import Conv2D, Linear
from ppdet_lite.ops import dispatch

AmpDtype = Literal["bfloat16", "float16"]
Precision = Literal["float32", "bfloat16"]  # of detection with a trained model
GROWTH_INTERVAL = 2000  # steps without an overflow before the loss scale doubles, as in Paddle and PyTorch


class LossScale(NamedTuple):
    """Factor of the loss in the backward pass, which keeps small gradients from underflowing in float16."""

    value: float = 2.0**16
    steps: int = 0  # number of steps without an overflow since the value changed

    def after(self, overflowed: bool) -> "LossScale":
        """Return the scale of the next step: halved after an overflow, doubled after many steps without one."""
        if overflowed:
            return LossScale(max(self.value / 2, 1.0))
        if self.steps + 1 == GROWTH_INTERVAL:
            return LossScale(self.value * 2)
        return LossScale(self.value, self.steps + 1)


def require_amp_support(dtype: AmpDtype | None, location: str) -> None:
    """Raise UserError if the current device cannot compute in this dtype. location: file:line of `train.amp`."""
    if dtype is None or (dtype == "bfloat16" and _on_cpu()):
        return
    if _on_cpu():
        raise UserError(f"{location}: train.amp: float16 needs a GPU; on a CPU choose bfloat16, or null")
    supported = paddle.amp.is_float16_supported if dtype == "float16" else paddle.amp.is_bfloat16_supported
    if not supported():
        other = "float16" if dtype == "bfloat16" else "null"
        raise UserError(f"{location}: train.amp: {paddle.device.get_device()} has no {dtype}; choose {other}")


def require_precision_support(precision: Precision, location: str) -> None:
    """Raise UserError if detection cannot be faster in this precision. location: of the setting, for the message."""
    if precision == "bfloat16" and not (_on_cpu() and dispatch.multiplies_bfloat16()):
        reason = "bfloat16 needs a CPU with AMX, and oneDNN, see ppdet-lite env-check; use float32"
        raise UserError(f"{location}: runtime.precision: {reason}")


def describe_amp(dtype: AmpDtype | None) -> str | None:
    """Return a log line about `train.amp` on a CPU."""
    if dtype is None or not _on_cpu():
        return None
    if dispatch.multiplies_bfloat16():
        return "train.amp: convolutions and linear layers multiply in bfloat16 (AMX)"
    return "train.amp: this processor cannot multiply in bfloat16 (AMX); layers are rounded, which saves no time"


@contextlib.contextmanager
def autocast_forward(dtype: AmpDtype | None) -> Iterator[None]:
    """Run the forward pass inside in mixed precision on a GPU. Leave the context before the backward pass."""
    if dtype is None or _on_cpu():
        yield
    else:
        with paddle.amp.auto_cast(level="O1", dtype=dtype):
            yield


@contextlib.contextmanager
def bfloat16_layers(network: nn.Layer, dtype: AmpDtype | Precision | None) -> Iterator[None]:
    """If dtype is bfloat16, compute convolutions and linear layers in it on a CPU.

    Enclose both forward and backward pass, since gradient checkpointing runs layers in the backward pass. Layers that
    predict offsets are left out, since they compute in float32 on a GPU too.
    """
    if dtype != "bfloat16" or not _on_cpu():
        yield
        return
    offset_layers = [layer for layer in network.sublayers() if isinstance(layer, DeformConv2D | RoIPool)]
    exact = {id(part) for layer in offset_layers for part in layer.sublayers()}
    products = [layer for layer in network.sublayers(include_self=True) if isinstance(layer, Conv2D | Linear)]
    layers = [layer for layer in products if id(layer) not in exact]
    try:
        for layer in layers:
            layer.bfloat16 = True
        yield
    finally:
        for layer in layers:
            layer.bfloat16 = False


def _on_cpu() -> bool:
    return paddle.device.get_device() == "cpu"
