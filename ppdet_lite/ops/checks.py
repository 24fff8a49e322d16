"""Checks and conversions of arguments that the operators share."""

from collections.abc import Sequence

import paddle
from paddle import Tensor

Pair = int | Sequence[int]


def as_pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """The two ints (y, x) of an option given as one int or as a pair; ValueError unless both are >= least."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f"{name} is an int >= {least} or a pair (y, x) of them, not {value!r}")
    return pair


def require(fits: bool, message: str) -> None:
    """ValueError with the message unless it fits."""
    if not fits:
        raise ValueError(message)


def require_shape(name: str, tensor: Tensor | None, expected: Sequence[int | None]) -> None:
    """ValueError unless the tensor is absent or of this shape.

    In a graph being exported a size may be unknown, which Paddle writes as -1 and which agrees with anything; pass None
    for an expected size that follows from an unknown one.
    """
    if tensor is None:
        return
    shape = list(tensor.shape)
    agree = (have in (-1, want) or want in (-1, None) for have, want in zip(shape, expected, strict=False))
    require(len(shape) == len(expected) and all(agree), f"{name} has shape {shape}, expected {list(expected)}")


def full_precision(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in float32, or in float64 when the first is: half precision is too coarse for places and sums."""
    dtype = paddle.float64 if tensors[0].dtype == paddle.float64 else paddle.float32
    return [t if t is None or t.dtype == dtype else t.astype(dtype) for t in tensors]
