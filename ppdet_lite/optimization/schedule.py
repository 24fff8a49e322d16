"""Learning-rate schedules: pure functions of the iteration, so that resuming needs no state."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeInt

from ppdet_lite.config.registry import register
from ppdet_lite.optimization.duration import Duration, to_iterations

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Schedule(ABC):
    """Linear warm-up, then what the subclass says.

    warmup_iterations: how long the rate climbs to its full height; 0 for none.
    warmup_factor: the share of the rate that it climbs from.
    """

    warmup_iterations: NonNegativeInt = 1000
    warmup_factor: Share = 0.001

    def factor(self, iteration: int, total: int, iterations_per_epoch: int) -> float:
        """By what the full learning rate is multiplied at an iteration, counted from 0."""
        decay = self._decay(iteration, total, iterations_per_epoch)
        if iteration >= self.warmup_iterations:
            return decay
        progress = iteration / self.warmup_iterations
        return decay * (self.warmup_factor * (1 - progress) + progress)

    @abstractmethod
    def _decay(self, iteration: int, total: int, iterations_per_epoch: int) -> float:
        """By what the full rate is multiplied, warm-up or not."""


@register
@dataclass(frozen=True)
class PiecewiseSchedule(Schedule):
    """The rate is multiplied by `gamma` at every milestone."""

    milestones: Sequence[Duration] = ("8 epochs", "11 epochs")
    gamma: Share = 0.1

    def _decay(self, iteration: int, total: int, iterations_per_epoch: int) -> float:
        passed = bisect_right(sorted(to_iterations(m, iterations_per_epoch) for m in self.milestones), iteration)
        return self.gamma**passed


@register
@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """The rate falls along half a cosine to the share `floor` at the end of training."""

    floor: Share = 0.0

    def _decay(self, iteration: int, total: int, iterations_per_epoch: int) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(iteration / total, 1.0)))
