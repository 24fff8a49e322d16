"""Half precision in training: which layers compute in it, and the loss scale that float16 needs.

On a GPU Paddle's auto_cast gives convolutions and matrix products bfloat16 or float16; weights, and whatever is no such
layer, stay float32. For a CPU Paddle 3.3 has no bfloat16 kernels: there inputs, weights and results of the same layers
are rounded to bfloat16 and computed in float32, much as a GPU's matrix units do. It shows what a training comes to and
saves no time.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import paddle
from paddle import Tensor, nn

from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling.components import RoIPool
from ppdet_lite.modeling.deform import DeformConv2D

HalfName = Literal["bfloat16", "float16"]
GROWS_AFTER = 2000  # steps without an overflow, as in Paddle and PyTorch


class LossScale(NamedTuple):
    """What the loss is multiplied by before its backward pass, so that small gradients do not vanish in float16."""

    value: float = 2.0**16
    steps: int = 0  # without an overflow, since it changed

    def after(self, overflowed: bool) -> "LossScale":
        """The scale of the next step: half after an overflow, twice after many steps without one."""
        if overflowed:
            return LossScale(max(self.value / 2, 1.0))
        if self.steps + 1 == GROWS_AFTER:
            return LossScale(self.value * 2)
        return LossScale(self.value, self.steps + 1)


def require_half(name: HalfName | None, place: str) -> None:
    """Raise UserError, with the config's place, where the current device cannot compute in it."""
    if name is None or (name == "bfloat16" and _on_cpu()):
        return
    if _on_cpu():
        raise UserError(f"{place}: train.amp: float16 needs a GPU; on a CPU choose bfloat16, or null")
    supported = paddle.amp.is_float16_supported if name == "float16" else paddle.amp.is_bfloat16_supported
    if not supported():
        other = "float16" if name == "bfloat16" else "null"
        raise UserError(f"{place}: train.amp: {paddle.device.get_device()} has no {name}; choose {other}")


@contextlib.contextmanager
def half_forward(name: HalfName | None) -> Iterator[None]:
    """A forward pass in half precision on a GPU; for its backward pass leave the block before."""
    if name is None or _on_cpu():
        yield
    else:
        with paddle.amp.auto_cast(level="O1", dtype=name):
            yield


@contextlib.contextmanager
def half_layers(network: nn.Layer, name: HalfName | None) -> Iterator[None]:
    """Around forward and backward: on a CPU convolutions and matrix products round to bfloat16.

    Not those that make offsets: on a GPU they are float32 as well.
    """
    if name is None or not _on_cpu():
        yield
        return
    exact = {
        id(part)
        for layer in network.sublayers()
        if isinstance(layer, DeformConv2D | RoIPool)
        for part in layer.sublayers()
    }
    layers = [
        layer for layer in network.sublayers() if isinstance(layer, nn.Conv2D | nn.Linear) and id(layer) not in exact
    ]
    weights = {id(layer): layer.weight for layer in layers}

    def before(layer: nn.Layer, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        layer._parameters["weight"] = _rounded(layer.weight)
        return tuple(_rounded(value) for value in inputs)

    def after(layer: nn.Layer, _: tuple[Any, ...], output: Tensor) -> Tensor:
        layer._parameters["weight"] = weights[id(layer)]
        return _rounded(output)

    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    hooks += [layer.register_forward_post_hook(after) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer._parameters["weight"] = weights[id(layer)]


def _rounded(value: Tensor) -> Tensor:
    """The nearest bfloat16, and so for the gradient."""
    return value.astype("bfloat16").astype("float32")


def _on_cpu() -> bool:
    return paddle.device.get_device() == "cpu"
