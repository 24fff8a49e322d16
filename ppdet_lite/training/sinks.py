"""What a run measures, and the interface of the places where it is written or shown."""

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
    seconds: float  # in all
    data_seconds: float  # waiting for the loader
    memory_mb: Sequence[float]  # peak memory so far in MiB, by rank

    def scalars(self) -> dict[str, float]:
        """All numbers by name, with the highest memory among the ranks."""
        costs = {"seconds": self.seconds, "data_seconds": self.data_seconds, "memory_mb": max(self.memory_mb)}
        return {"epoch": self.epoch, "lr": self.lr, **self.losses, **self.metrics, **costs}


class Sink:
    """Receives the measurements of a run. A subclass overrides the methods that concern it; the others do nothing."""

    def step(self, record: StepRecord) -> None:
        """Receive an iteration. Called for every one."""

    def scalars(self, group: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Receive named numbers of the group "train", "val" or "offsets"."""

    def image(self, name: str, iteration: int, pixels: np.ndarray) -> None:
        """Receive an image, RGB uint8 [H, W, 3]."""

    def draw(self) -> None:
        """Redraw what is drawn from all measurements so far."""

    def close(self) -> None:
        """Flush and close."""
