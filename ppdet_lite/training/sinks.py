"""The measurements of a run, and the base class of the sinks, which write or display them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class StepRecord(NamedTuple):
    """The measurements of one training iteration."""

    iteration: int  # counted from 1
    epoch: int
    lr: float
    losses: Mapping[str, float]
    metrics: Mapping[str, float]
    seconds: float  # duration of the whole iteration
    data_seconds: float  # time of waiting for the loader
    memory_mb: Sequence[float]  # peak memory so far in MiB, by rank

    def scalars(self) -> dict[str, float]:
        """Return all numbers by name, with the highest memory among the ranks."""
        costs = {"seconds": self.seconds, "data_seconds": self.data_seconds, "memory_mb": max(self.memory_mb)}
        return {"epoch": self.epoch, "lr": self.lr, **self.losses, **self.metrics, **costs}


class Sink:
    """Receives the measurements of a run. A subclass overrides the methods that it needs; the others do nothing."""

    def step(self, record: StepRecord) -> None:
        """Receive the record of an iteration. Called for every iteration."""

    def scalars(self, group: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Receive named numbers of the group "train", "val" or "offsets"."""

    def image(self, name: str, iteration: int, pixels: np.ndarray) -> None:
        """Receive an image, RGB uint8 [H, W, 3]."""

    def draw(self) -> None:
        """Redraw the plots of all measurements so far."""

    def close(self) -> None:
        """Flush and close."""
