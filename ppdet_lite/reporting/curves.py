"""Precision and recall over scores: average precision, F1, calibration."""

from typing import NamedTuple

import numpy as np

RECALLS = np.linspace(0, 1, 101)  # where COCO reads precision


class Ranked(NamedTuple):
    """The detections of one class that count, best first, at one IoU threshold."""

    is_true: np.ndarray  # [n] bool: it found an object
    images: np.ndarray  # [n] int64
    scores: np.ndarray  # [n] float64


class Operating(NamedTuple):
    """A class seen at one score: what reaches it is taken."""

    score: float
    true_positives: int
    false_positives: int
    missed: int

    @property
    def precision(self) -> float | None:
        """The share of detections that are right; None without detections."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """The share of objects that are found; None without objects."""
        return _share(self.true_positives, self.true_positives + self.missed)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of both; None where there is neither an object nor a detection."""
        return _share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.missed)


class Curve(NamedTuple):
    """Precision and recall of a class after each distinct score, best first."""

    scores: np.ndarray  # [n] float64, descending
    precision: np.ndarray  # [n]
    recall: np.ndarray  # [n]
    f1: np.ndarray  # [n]


def average_precision(true: np.ndarray, taken: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """COCO's average precision of a class: the precision at 101 recalls, each the best from there on.

    It is computed for B selections of images at once, from what has come up to each of the m true positives, in the
    order of scores: true [B, m], how many true positives; taken [B, m], how many detections; both with the one itself.
    positives: [B], objects in each selection. Returns [B] float64, NaN where there is no object.

    No other detection matters: only at true ones does recall grow and precision peak.
    """
    positives = np.asarray(positives, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = true / np.maximum(taken, 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, true / positives[:, None], side="right")
    reached[true == 0] = 0  # it is not in this selection
    steps = np.diff(reached, axis=1, prepend=0)
    return np.where(positives > 0, (best * steps).sum(axis=1) / len(RECALLS), np.nan)


def plain_ap(is_true: np.ndarray, positives: int) -> float:
    """The average precision of a class over all images, from [n] bool in the order of scores; NaN without objects."""
    ranks = np.flatnonzero(is_true)[None]
    return float(average_precision(np.arange(1, ranks.size + 1)[None], ranks + 1, np.array([positives]))[0])


def at_recalls(ranked: Ranked, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """The precision [101] of a class with objects at COCO's recalls, the best from there on, and the score there.

    Where a recall is not reached the precision is 0 and the score NaN.
    """
    ranks = np.flatnonzero(ranked.is_true)
    true = np.arange(1, len(ranks) + 1)
    best = np.maximum.accumulate((true / (ranks + 1))[::-1])[::-1]
    place = np.searchsorted(true / positives, RECALLS)
    return np.append(best, 0.0)[place], np.append(ranked.scores[ranks], np.nan)[place]


def curve(ranked: Ranked, positives: int) -> Curve:
    """Precision, recall and F1 of a class with objects, after each distinct score."""
    last = np.flatnonzero(np.diff(ranked.scores, append=-np.inf))  # equal scores are taken together
    true = np.cumsum(ranked.is_true)[last]
    return Curve(ranked.scores[last], true / (last + 1), true / positives, 2 * true / (last + 1 + positives))


def at_score(ranked: Ranked, positives: int, score: float) -> Operating:
    """What a class comes to if detections from a score on are taken."""
    taken = int(np.sum(ranked.scores >= score))
    true = int(ranked.is_true[:taken].sum())
    return Operating(score, true, taken - true, positives - true)


def at_best_f1(ranked: Ranked, positives: int) -> Operating | None:
    """The same at the score of the best F1, the highest of equals; None where nothing is found or there to be found."""
    if not positives or not ranked.is_true.any():
        return None
    points = curve(ranked, positives)
    return at_score(ranked, positives, float(points.scores[np.argmax(points.f1)]))


def calibration(ranked: Ranked, bins: int = 10) -> list[dict[str, float]]:
    """How often detections of about a score are right, beside their mean score, for each bin in 0..1 that has any."""
    place = np.clip((ranked.scores * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    right = np.bincount(place, ranked.is_true, minlength=bins)
    total = np.bincount(place, ranked.scores, minlength=bins)
    return [
        {
            "from": k / bins,
            "to": (k + 1) / bins,
            "detections": int(count[k]),
            "score": float(total[k] / count[k]),
            "precision": float(right[k] / count[k]),
        }
        for k in np.flatnonzero(count).tolist()
    ]


def calibration_error(bins: list[dict[str, float]]) -> float | None:
    """The expected calibration error: |precision - score|, weighted by detections; None without any."""
    total = sum(item["detections"] for item in bins)
    weighted = sum(item["detections"] * abs(item["precision"] - item["score"]) for item in bins)
    return weighted / total if total else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
