"""Checks and conversions of arguments, shared by the operators."""

from collections.abc import Sequence

import paddle
from paddle import Tensor

Pair = int | Sequence[int]  # an option for both axes: one int, or (y, x)


def as_pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """Return an option given as one int or a pair as two ints (y, x). Raise ValueError unless both are >= least."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f"{name} must be an int >= {least} or a pair (y, x) of them, not {value!r}")
    return pair


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_shape(name: str, tensor: Tensor | None, expected: Sequence[int | None]) -> None:
    """Raise ValueError unless the tensor is None or has this shape.

    A size of -1, which denotes an unknown size in a traced graph, matches every expected size. An expected size of None
    or -1 matches every size.
    """
    if tensor is None:
        return
    shape = list(tensor.shape)
    matches = (size in (-1, want) or want in (-1, None) for size, want in zip(shape, expected, strict=False))
    require(len(shape) == len(expected) and all(matches), f"{name} has shape {shape}, expected {list(expected)}")


def full_precision(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return the tensors in float32, or float64 if the first is: 16 bits are too coarse for positions and sums."""
    dtype = paddle.float64 if tensors[0].dtype == paddle.float64 else paddle.float32
    return [t if t is None or t.dtype == dtype else t.astype(dtype) for t in tensors]
