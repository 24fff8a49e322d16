"""Learning-rate schedules: functions of the iteration only, so that resuming needs no state."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ppdet_lite.config.constrained_types import Fraction, NonNegativeInt
from ppdet_lite.config.registry import register
from ppdet_lite.optimization.duration import Duration, to_iterations


@dataclass(frozen=True)
class Schedule(ABC):
    """Base class of schedules: linear warm-up, multiplied by the decay of the subclass.

    warmup_iterations: length of the warm-up; 0 for none.
    warmup_factor: factor of the learning rate at the start of the warm-up.
    """

    warmup_iterations: NonNegativeInt = 1000
    warmup_factor: Fraction = 0.001

    def factor(self, iteration: int, total: int, iterations_per_epoch: int) -> float:
        """Return the factor of the learning rate at an iteration, counted from 0, of `total`."""
        decay = self._decay(iteration, total, iterations_per_epoch)
        if iteration >= self.warmup_iterations:
            return decay
        progress = iteration / self.warmup_iterations
        return decay * (self.warmup_factor * (1 - progress) + progress)

    @abstractmethod
    def _decay(self, iteration: int, total: int, iterations_per_epoch: int) -> float:
        """Return the factor of the learning rate at an iteration, without warm-up."""


@register
@dataclass(frozen=True)
class PiecewiseSchedule(Schedule):
    """Multiplies the learning rate by `gamma` at every milestone."""

    milestones: Sequence[Duration] = ("8 epochs", "11 epochs")
    gamma: Fraction = 0.1

    def _decay(self, iteration: int, total: int, iterations_per_epoch: int) -> float:
        passed = bisect_right(sorted(to_iterations(m, iterations_per_epoch) for m in self.milestones), iteration)
        return self.gamma**passed


@register
@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Decreases the learning rate along half a cosine, to the fraction `floor` at the end of training."""

    floor: Fraction = 0.0

    def _decay(self, iteration: int, total: int, iterations_per_epoch: int) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(iteration / total, 1.0)))
