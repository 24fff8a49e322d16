"""Where a tensor lies: what is quick on a CPU is not what is quick on a GPU."""

import paddle
from paddle import Tensor


def on_cpu(tensor: Tensor) -> bool:
    """Whether an operator runs on a CPU, which then has ways of its own; tests replace it to run a GPU's there."""
    return tensor.place.is_cpu_place()


def cheap_to_read(tensor: Tensor) -> bool:
    """Whether it costs nothing that Python, or an operator with results of unknown size, reads a value.

    It makes a GPU wait. A graph being exported reads nothing.
    """
    return not paddle.in_dynamic_mode() or on_cpu(tensor)
