"""An exponential moving average of a model's weights, which often detects better than the latest weights."""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite.modeling.norm import running_statistics
from ppdet_lite.optimization.optimizer import Average


class WeightAverage:
    """The average over all steps of the weights of a model that change: trained parameters and running statistics.

    Frozen weights are not averaged, copied or stored: their average is the model's own weights.

    At step t, counted from 1, the previous average has the weight min(decay, (1 + t) / (10 + t)), so that early weights
    are forgotten quickly.
    """

    def __init__(self, model: nn.Layer, settings: Average, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Start from the model's weights, or from the average in a checkpoint. Freeze parameters before.

        arrays: a result of `arrays`.
        """
        self._decay, self._model = settings.decay, model
        self._own = _changing_weights(model)
        start = _copies(self._own) if arrays is None else {name: paddle.to_tensor(arrays[name]) for name in self._own}
        self._average = start

    @paddle.no_grad()
    def update(self, step: int) -> None:
        """Add the model's weights after step number `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        fraction = paddle.full([], 1 - decay, "float32")
        for name, value in self._own.items():
            self._average[name].lerp_(value, fraction)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Use the average as the model's weights inside this block."""
        before = _copies(self._own)
        try:
            _assign(self._average, self._own)
            yield
        finally:
            _assign(before, self._own)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the average, with the frozen weights, as arrays for a checkpoint."""
        return {name: self._average.get(name, value).numpy() for name, value in self._model.state_dict().items()}


def _changing_weights(model: nn.Layer) -> dict[str, Tensor]:
    """Return the parameters that are trained and the running statistics that are updated, by name."""
    statistics = {id(value) for value in running_statistics(model)}
    state = model.state_dict().items()
    return {name: value for name, value in state if not value.stop_gradient or id(value) in statistics}


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}


def _assign(values: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Overwrite the weights with the values of the same names."""
    for name, weight in weights.items():
        weight.set_value(values[name])
