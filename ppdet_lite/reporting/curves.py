"""Precision and recall as functions of the score threshold: average precision, F1, calibration."""

from typing import NamedTuple

import numpy as np

RECALLS = np.linspace(0, 1, 101)  # the recalls at which COCO samples the precision
BINS = 10  # of the score range, for the calibration


class RankedDetections(NamedTuple):
    """The detections of one class at one IoU threshold by descending score, without ignored ones."""

    is_correct: np.ndarray  # [n] bool: true positive
    scores: np.ndarray  # [n] float64


class OperatingPoint(NamedTuple):
    """The counts of a class at a score threshold: detections with at least this score are used."""

    score: float
    true_positives: int
    false_positives: int
    missed: int

    @property
    def precision(self) -> float | None:
        """The fraction of detections that are correct; None without detections."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """The fraction of objects that are found; None without objects."""
        return _ratio(self.true_positives, self.true_positives + self.missed)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall; None if there is neither an object nor a detection."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.missed)


class Curve(NamedTuple):
    """Precision, recall and F1 of a class at each distinct score, in descending order."""

    scores: np.ndarray  # [n] float64, descending
    precision: np.ndarray  # [n]
    recall: np.ndarray  # [n]
    f1: np.ndarray  # [n]


def average_precision(true: np.ndarray, taken: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return COCO's average precision [B] float64 of a class: the mean interpolated precision at 101 recalls.

    It is computed for B selections of images at once, from the counts at each of the m true positives by descending
    score. Other detections need no evaluation, because recall only grows, and precision only peaks, at true positives.

    true: [B, m] number of true positives up to and including each one.
    taken: [B, m] number of detections up to and including each one.
    positives: [B] number of objects in each selection; the result is NaN where it is 0.
    """
    positives = np.asarray(positives, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = true / np.maximum(taken, 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, true / positives[:, None], side="right")
    reached[true == 0] = 0  # before the first true positive of this selection
    steps = np.diff(reached, axis=1, prepend=0)
    return np.where(positives > 0, (best * steps).sum(axis=1) / len(RECALLS), np.nan)


def ap_of_all_images(is_correct: np.ndarray, positives: int) -> float:
    """Return the AP of a class over all images from is_correct [n] bool, by descending score; NaN for 0 positives."""
    ranks = np.flatnonzero(is_correct)[None]
    return float(average_precision(np.arange(1, ranks.size + 1)[None], ranks + 1, np.array([positives]))[0])


def precision_at_recalls(ranked: RankedDetections, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the interpolated precision [101] at COCO's recalls and the score thresholds [101] that reach them.

    positives: number of objects, at least 1. Where a recall is not reached, the precision is 0 and the score NaN.
    """
    ranks = np.flatnonzero(ranked.is_correct)
    true = np.arange(1, len(ranks) + 1)
    best = np.maximum.accumulate((true / (ranks + 1))[::-1])[::-1]
    index = np.searchsorted(true / positives, RECALLS)
    return np.append(best, 0.0)[index], np.append(ranked.scores[ranks], np.nan)[index]


def curve(ranked: RankedDetections, positives: int) -> Curve:
    """Return precision, recall and F1 at each distinct score of a class with at least one object."""
    last = np.flatnonzero(np.diff(ranked.scores, append=-np.inf))  # detections with equal scores are added together
    true = np.cumsum(ranked.is_correct)[last]
    return Curve(ranked.scores[last], true / (last + 1), true / positives, 2 * true / (last + 1 + positives))


def point_at_score(ranked: RankedDetections, positives: int, score: float) -> OperatingPoint:
    """Return the counts of a class for detections with at least a score."""
    taken = int(np.sum(ranked.scores >= score))
    true = int(ranked.is_correct[:taken].sum())
    return OperatingPoint(score, true, taken - true, positives - true)


def best_f1_point(ranked: RankedDetections, positives: int) -> OperatingPoint | None:
    """Return the counts at the highest score with the best F1; None without objects or true positives."""
    if not positives or not ranked.is_correct.any():
        return None
    points = curve(ranked, positives)
    return point_at_score(ranked, positives, float(points.scores[np.argmax(points.f1)]))


def calibration(ranked: RankedDetections) -> list[dict[str, float]]:
    """Return count, mean score and precision of the detections in each non-empty bin of the score range 0..1."""
    index = np.clip((ranked.scores * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(index, minlength=BINS)
    right = np.bincount(index, ranked.is_correct, minlength=BINS)
    total = np.bincount(index, ranked.scores, minlength=BINS)
    return [
        {
            "from": k / BINS,
            "to": (k + 1) / BINS,
            "detections": int(count[k]),
            "score": float(total[k] / count[k]),
            "precision": float(right[k] / count[k]),
        }
        for k in np.flatnonzero(count).tolist()
    ]


def calibration_error(bins: list[dict[str, float]]) -> float | None:
    """Return the expected calibration error: the mean |precision - score| over detections; None without detections."""
    total = sum(item["detections"] for item in bins)
    weighted = sum(item["detections"] * abs(item["precision"] - item["score"]) for item in bins)
    return weighted / total if total else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
