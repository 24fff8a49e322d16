"""An exponential moving average of a model's weights, which often detects better than the latest weights."""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite.optimization.optimizer import Average


class WeightAverage:
    """The average over all steps, in float32. Running statistics of norms are averaged too.

    At step t, counted from 1, the previous average has the weight min(decay, (1 + t) / (10 + t)), so that early weights
    are forgotten quickly.
    """

    def __init__(self, model: nn.Layer, settings: Average, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Start from the model's weights, or from the average in a checkpoint."""
        self._decay = settings.decay
        start = {name: value.astype("float32").clone() for name, value in _state(model).items()}
        for name, array in (arrays or {}).items():
            start[name] = paddle.to_tensor(array)
        self._average = start

    @paddle.no_grad()
    def update(self, model: nn.Layer, steps: int) -> None:
        """Add the weights after step number `steps`."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        for name, value in _state(model).items():
            self._average[name] = paddle.lerp(self._average[name], value.astype("float32"), 1 - decay)

    @contextlib.contextmanager
    def applied(self, model: nn.Layer) -> Iterator[None]:
        """Use the average as the model's weights inside this block."""
        own = {name: value.clone() for name, value in _state(model).items()}
        model.set_state_dict(self._average)
        try:
            yield
        finally:
            model.set_state_dict(own)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the average as arrays, for a checkpoint."""
        return {name: value.numpy() for name, value in self._average.items()}


def _state(model: nn.Layer) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
