"""The confusion matrix of a detector, background included."""

import numpy as np

from ppdet_lite.reporting.matching import AT_HALF, IOU_THRESHOLDS, Found, Matches, Pairs, Truth, greedy


def confusion_matrix(
    found: Found, truth: Truth, pairs: Pairs, matches: Matches, score: float, class_count: int
) -> np.ndarray:
    """Count [K + 1, K + 1] objects (rows) by what they were taken for (columns) by detections from a score on.

    First come the matches within classes, at IoU 0.5; then what is left takes, best first, the object of another class
    that it overlaps most, from the same IoU on. The last row has detections of nothing, the last column missed
    objects. So the diagonal has the true positives, the sum of a row (but the last) is the objects of a class, the sum
    of a column (but the last) its detections. Crowds, and what found them, are left out.
    """
    counts = np.zeros((class_count + 1, class_count + 1), np.int64)
    good = (found.scores >= score) & ~matches.ignored[AT_HALF]
    right = good & (matches.truth[AT_HALF] >= 0)
    open_objects = ~truth.is_crowd
    open_objects[matches.truth[AT_HALF][right]] = False
    wrong = good & ~right
    usable = wrong[pairs.found] & open_objects[pairs.truth]
    left = Pairs(*(part[usable] for part in pairs))
    none = np.zeros(len(open_objects), bool)
    taken = greedy(left, found.images, IOU_THRESHOLDS[:1], none, none)[0]
    confused = taken >= 0
    np.add.at(counts, (found.classes[right], found.classes[right]), 1)
    np.add.at(counts, (truth.classes[taken[confused]], found.classes[confused]), 1)
    np.add.at(counts, (class_count, found.classes[wrong & ~confused]), 1)
    open_objects[taken[confused]] = False
    np.add.at(counts, (truth.classes[open_objects], class_count), 1)
    return counts
