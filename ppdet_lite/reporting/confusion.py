"""The confusion matrix of a detector, with background as an additional class."""

import numpy as np

from ppdet_lite.reporting.matching import IOU_50, IOU_THRESHOLDS, Detections, GroundTruth, Matches, Pairs, match_greedy


def confusion_matrix(
    detections: Detections, truth: GroundTruth, pairs: Pairs, matches: Matches, score: float, class_count: int
) -> np.ndarray:
    """Return the confusion matrix [K + 1, K + 1] at IoU 0.5 of detections with at least the given score.

    Rows are annotated classes, columns predicted classes. First, detections are matched with objects of their class.
    The remaining ones are then matched greedily, by descending score, with the remaining object of highest IoU, if
    that is at least 0.5. The last row counts detections without an object, the last column objects without a detection.

    The diagonal contains the true positives. The sum of a row (except the last) is the number of objects of a class,
    the sum of a column (except the last) the number of its detections. Crowd regions and detections matched to them
    are excluded.
    """
    counts = np.zeros((class_count + 1, class_count + 1), np.int64)
    counted = (detections.scores >= score) & ~matches.ignored[IOU_50]
    correct = counted & (matches.objects[IOU_50] >= 0)
    is_free = ~truth.is_crowd
    is_free[matches.objects[IOU_50][correct]] = False
    wrong = counted & ~correct
    usable = wrong[pairs.detections] & is_free[pairs.objects]
    remaining = Pairs(*(column[usable] for column in pairs))
    none = np.zeros(len(is_free), bool)
    matched = match_greedy(remaining, detections.images, IOU_THRESHOLDS[:1], none, none)[0]
    confused = matched >= 0
    np.add.at(counts, (detections.classes[correct], detections.classes[correct]), 1)
    np.add.at(counts, (truth.classes[matched[confused]], detections.classes[confused]), 1)
    np.add.at(counts, (class_count, detections.classes[wrong & ~confused]), 1)
    is_free[matched[confused]] = False
    np.add.at(counts, (truth.classes[is_free], class_count), 1)
    return counts
