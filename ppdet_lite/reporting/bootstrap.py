"""How sure a difference of AP is: a paired bootstrap over images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppdet_lite.reporting.averages import class_aps, mean_aps
from ppdet_lite.reporting.matching import Found, Matches, Truth

CHUNK = 1 << 21  # weights of a class's detections held at a time


class Interval(NamedTuple):
    """A range that holds a value, with the confidence asked for; None where there is nothing to measure."""

    low: float | None
    high: float | None


class Difference(NamedTuple):
    """The AP of two runs and how much more the second has; None where there are no objects."""

    first: float | None
    second: float | None
    difference: float | None
    interval: Interval  # of the difference


def draw_selections(image_count: int, count: int, seed: int = 0) -> np.ndarray:
    """Draw as many images as there are, with repetition, `count` times; [count, images] int64, how often each."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(image_count, np.full(image_count, 1 / image_count), size=count)


def resampled_aps(found: Found, truth: Truth, matches: Matches, selections: np.ndarray, class_count: int) -> np.ndarray:
    """The AP, mean over the IoU thresholds, of each class in each selection of images; [B, K], NaN without objects.

    An image drawn twice counts twice, as a copy of it under another id would. Matches within an image do not change,
    so that no selection is matched anew.
    """
    step = max(1, CHUNK // max(1, *np.bincount(found.classes, minlength=1).tolist()))
    parts = [
        class_aps(found, truth, matches, selections[start : start + step], class_count, truth.is_crowd).mean(axis=1)
        for start in range(0, len(selections), step)
    ]
    return np.concatenate(parts)


def compare(
    truth: Truth,
    runs: Sequence[tuple[Found, Matches]],
    selections: np.ndarray,
    class_count: int,
    confidence: float = 0.95,
) -> tuple[Difference, list[Difference]]:
    """Compare two runs on the same images: their AP over all classes, and that of each class.

    The interval is that of the percentiles of the difference over the selections, the same ones for both runs.
    """
    everything = np.ones((1, selections.shape[1]), np.int64)
    own = [resampled_aps(*_with(run, truth), everything, class_count)[0] for run in runs]
    drawn = [resampled_aps(*_with(run, truth), selections, class_count) for run in runs]
    overall = _difference([mean_aps(aps) for aps in own], [mean_aps(aps) for aps in drawn], confidence)
    classes = [
        _difference([aps[k] for aps in own], [aps[:, k] for aps in drawn], confidence) for k in range(class_count)
    ]
    return overall, classes


def _with(run: tuple[Found, Matches], truth: Truth) -> tuple[Found, Truth, Matches]:
    return run[0], truth, run[1]


def _difference(own: Sequence[np.ndarray], drawn: Sequence[np.ndarray], confidence: float) -> Difference:
    if not np.isfinite(own[0]):
        return Difference(None, None, None, Interval(None, None))
    first, second = (float(value) for value in own)
    differences = drawn[1] - drawn[0]
    differences = differences[np.isfinite(differences)]  # a rare class is not in every selection
    if not len(differences):
        return Difference(first, second, second - first, Interval(None, None))
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail]).tolist()
    return Difference(first, second, second - first, Interval(low, high))
