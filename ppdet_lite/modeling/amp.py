"""Mixed precision in training: the layers that compute in 16 bits, and the loss scale for float16.

On a GPU, Paddle's auto_cast runs convolutions and matrix products in bfloat16 or float16; weights and all other
operators stay float32. On a CPU, Paddle 3.3 has no bfloat16 kernels. There the inputs, weights and outputs of the same
layers are rounded to bfloat16, and the layers compute in float32, similar to the matrix units of a GPU. This shows the
effect of bfloat16 on training and saves no time.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import paddle
from paddle import Tensor, nn

from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling.components import RoIPool
from ppdet_lite.modeling.deform import DeformConv2D

AmpDtype = Literal["bfloat16", "float16"]
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


@contextlib.contextmanager
def autocast_forward(dtype: AmpDtype | None) -> Iterator[None]:
    """Run the forward pass inside in mixed precision on a GPU. Leave the context before the backward pass."""
    if dtype is None or _on_cpu():
        yield
    else:
        with paddle.amp.auto_cast(level="O1", dtype=dtype):
            yield


@contextlib.contextmanager
def rounded_layers(network: nn.Layer, dtype: AmpDtype | None) -> Iterator[None]:
    """Round convolutions and linear layers to bfloat16 on a CPU; enclose both forward and backward pass.

    Layers that predict offsets are not rounded, since they compute in float32 on a GPU too.
    """
    if dtype is None or not _on_cpu():
        yield
        return
    offset_layers = [layer for layer in network.sublayers() if isinstance(layer, DeformConv2D | RoIPool)]
    unrounded = {id(part) for layer in offset_layers for part in layer.sublayers()}
    layers = [layer for layer in network.sublayers() if isinstance(layer, nn.Conv2D | nn.Linear)]
    layers = [layer for layer in layers if id(layer) not in unrounded]
    weights = {id(layer): layer.weight for layer in layers}

    def before(layer: nn.Layer, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        layer._parameters["weight"] = _round_to_bfloat16(layer.weight)
        return tuple(_round_to_bfloat16(value) for value in inputs)

    def after(layer: nn.Layer, _: tuple[Any, ...], output: Tensor) -> Tensor:
        layer._parameters["weight"] = weights[id(layer)]
        return _round_to_bfloat16(output)

    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    hooks += [layer.register_forward_post_hook(after) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer._parameters["weight"] = weights[id(layer)]


def _round_to_bfloat16(value: Tensor) -> Tensor:
    """Round to the nearest bfloat16; the gradient is rounded too."""
    return value.astype("bfloat16").astype("float32")


def _on_cpu() -> bool:
    return paddle.device.get_device() == "cpu"
