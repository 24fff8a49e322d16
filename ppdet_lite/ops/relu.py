"""ReLU that takes no memory of its own on a CPU."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppdet_lite.ops import places


def relu(x: Tensor) -> Tensor:
    """`F.relu` of a result that nothing else reads, of any shape: a CPU writes it over x."""
    return F.relu_(x) if _in_place(x) else F.relu(x)


def add_relu(x: Tensor, y: Tensor) -> Tensor:
    """relu(x + y) of two of one shape; nothing else reads x, over which a CPU writes."""
    return F.relu_(x.add_(y)) if _in_place(x) else F.relu(x + y)


def _in_place(x: Tensor) -> bool:
    return paddle.in_dynamic_mode() and places.on_cpu(x)
