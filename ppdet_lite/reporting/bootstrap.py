"""Confidence intervals of AP differences, by a paired bootstrap over images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppdet_lite.reporting.averages import class_aps, mean_aps
from ppdet_lite.reporting.matching import Detections, GroundTruth, Matches

CHUNK = 1 << 21  # weights held in memory at once for the detections of a class


class Difference(NamedTuple):
    """The AP of two runs and its difference; None if there are no objects."""

    first: float | None = None
    second: float | None = None
    difference: float | None = None  # second - first
    low: float | None = None  # confidence interval of the difference
    high: float | None = None


def draw_selections(image_count: int, count: int, seed: int = 0) -> np.ndarray:
    """Draw `count` bootstrap samples of the images; return how often each occurs, [count, images] int64."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(image_count, np.full(image_count, 1 / image_count), size=count)


def resampled_aps(
    detections: Detections, truth: GroundTruth, matches: Matches, selections: np.ndarray, class_count: int
) -> np.ndarray:
    """Return the AP [B, K], averaged over IoU thresholds, of each class in each selection; NaN for no objects.

    An image that occurs twice in a selection counts as two images. Matches within an image do not depend on the
    selection, so they are computed once.
    """
    step = max(1, CHUNK // max(1, *np.bincount(detections.classes, minlength=1).tolist()))
    chunks = [
        class_aps(detections, truth, matches, selections[i : i + step], class_count, truth.is_crowd).mean(axis=1)
        for i in range(0, len(selections), step)
    ]
    return np.concatenate(chunks)


def paired_bootstrap(
    truth: GroundTruth,
    runs: Sequence[tuple[Detections, Matches]],
    selections: np.ndarray,
    class_count: int,
    confidence: float = 0.95,
) -> tuple[Difference, list[Difference]]:
    """Compare two runs on the same images: their AP over all classes, and the AP of each class.

    The interval consists of percentiles of the difference over the selections, which are the same for both runs.
    """
    all_images = np.ones((1, selections.shape[1]), np.int64)
    actual = [resampled_aps(run, truth, matches, all_images, class_count)[0] for run, matches in runs]
    resampled = [resampled_aps(run, truth, matches, selections, class_count) for run, matches in runs]
    overall = _difference([mean_aps(aps) for aps in actual], [mean_aps(aps) for aps in resampled], confidence)
    classes = [
        _difference([aps[k] for aps in actual], [aps[:, k] for aps in resampled], confidence)
        for k in range(class_count)
    ]
    return overall, classes


def _difference(actual: Sequence[np.ndarray], resampled: Sequence[np.ndarray], confidence: float) -> Difference:
    """Return the difference of the AP of two runs; resampled: their AP [B] in each selection."""
    if not np.isfinite(actual[0]):
        return Difference()
    first, second = (float(value) for value in actual)
    differences = resampled[1] - resampled[0]
    differences = differences[np.isfinite(differences)]  # some selections have no object of a rare class
    if not len(differences):
        return Difference(first, second, second - first)
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail]).tolist()
    return Difference(first, second, second - first, low, high)
