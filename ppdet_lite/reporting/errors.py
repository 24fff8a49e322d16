"""The kinds of errors of a detector and the cost of each, as defined by TIDE (Bolya et al., ECCV 2020).

Differences from `tidecv`: a detection matched to a crowd region is no error, and correcting errors does not affect it.
An IoU equal to the threshold suffices for that match. AP is the mean over the classes that have objects, sampled at
exactly COCO's recalls. Detections with equal scores keep their order when errors are corrected.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from ppdet_lite.reporting.averages import rows_by_class
from ppdet_lite.reporting.curves import ap_of_all_images
from ppdet_lite.reporting.matching import IOU_50, MIN_OVERLAP, Detections, GroundTruth, Matches, Pairs, rank_within

FOREGROUND = 0.5  # IoU of a true positive
MAX_PER_IMAGE = 100  # detections per image, over all classes, that TIDE uses


class DetectionKind(IntEnum):
    """A correct detection, or the kind of its error."""

    IGNORED = -1  # matched to a crowd region, or not among the best MAX_PER_IMAGE of its image
    CORRECT = 0
    CLASSIFICATION = 1  # correct location, wrong class
    LOCALISATION = 2  # correct class, poor location
    BOTH = 3
    DUPLICATE = 4  # of an object that a better detection is matched to
    BACKGROUND = 5  # overlaps no object


ERRORS = tuple(kind for kind in DetectionKind if kind >= DetectionKind.CLASSIFICATION)


class Errors(NamedTuple):
    """The kind of each of D detections, and the objects (of G) that are not found."""

    kinds: np.ndarray  # [D] int64 of DetectionKind
    targets: np.ndarray  # [D] int64: the object that a classification or localisation error missed, else -1
    missed: np.ndarray  # [G] bool: unmatched, and not the target of an error
    unmatched: np.ndarray  # [G] bool: no correct detection, including the missed objects


def find_errors(detections: Detections, truth: GroundTruth, pairs: Pairs, matches: Matches) -> Errors:
    """Classify the detections by TIDE's rules, in their order: IoU 0.5 for a match, below 0.1 for background."""
    is_used = rank_within(detections.images) < MAX_PER_IMAGE
    matched, ignored = matches.objects[IOU_50], matches.ignored[IOU_50]
    correct = is_used & ~ignored & (matched >= 0)
    is_found = np.zeros(len(truth.images), bool)
    is_found[matched[correct]] = True

    objects = Pairs(*(column[~truth.is_crowd[pairs.objects]] for column in pairs))
    same = detections.classes[objects.detections] == truth.classes[objects.objects]
    same_iou, same_object = _best(objects, same, len(detections.images))
    other_iou, other_object = _best(objects, ~same, len(detections.images))
    found_iou, _ = _best(objects, same & is_found[objects.objects], len(detections.images))
    rules = {
        DetectionKind.IGNORED: ~is_used | ignored,
        DetectionKind.CORRECT: correct,
        DetectionKind.LOCALISATION: (same_iou >= MIN_OVERLAP) & (same_iou <= FOREGROUND),
        DetectionKind.CLASSIFICATION: other_iou >= FOREGROUND,
        DetectionKind.DUPLICATE: found_iou >= FOREGROUND,
        DetectionKind.BACKGROUND: np.maximum(same_iou, other_iou) <= MIN_OVERLAP,
    }
    kinds = np.select(list(rules.values()), list(rules), DetectionKind.BOTH).astype(np.int64)
    targets = np.select(
        [kinds == DetectionKind.LOCALISATION, kinds == DetectionKind.CLASSIFICATION], [same_object, other_object], -1
    ).astype(np.int64)
    unmatched = ~truth.is_crowd & ~is_found
    missed = unmatched.copy()
    missed[targets[targets >= 0]] = False
    return Errors(kinds, targets, missed, unmatched)


def error_costs(detections: Detections, truth: GroundTruth, errors: Errors, class_count: int) -> dict[str, float]:
    """Return the AP50 of the detections that TIDE uses, and its gain if each kind of error were eliminated.

    One classification or localisation error per unmatched object is corrected; all other errors are removed. Missed
    objects are removed from the ground truth. The additional key `false_positives` is the gain if all false positives
    were removed, `false_negatives` the gain if all unmatched objects were removed.
    """
    kinds, classes = errors.kinds, detections.classes
    is_correct, is_used = kinds == DetectionKind.CORRECT, kinds != DetectionKind.IGNORED
    positives = np.bincount(truth.classes[~truth.is_crowd], minlength=class_count)
    has_objects = positives > 0

    def mean_ap(classes: np.ndarray, is_correct: np.ndarray, is_used: np.ndarray, positives: np.ndarray) -> float:
        values = []
        rows_of = rows_by_class(np.where(is_used, classes, class_count), class_count + 1)
        for k in np.flatnonzero(has_objects).tolist():
            if positives[k]:
                values.append(ap_of_all_images(is_correct[rows_of[k]], int(positives[k])))
            elif len(rows_of[k]):
                values.append(0.0)
        return float(np.mean(values)) if values else 0.0

    base = mean_ap(classes, is_correct, is_used, positives)
    correctable = _correctable(errors)
    costs = {"AP50": base}
    for kind in ERRORS:
        corrected, removed = (kinds == kind) & correctable, (kinds == kind) & ~correctable
        new_classes = classes.copy()
        if kind == DetectionKind.CLASSIFICATION:
            new_classes[corrected] = truth.classes[errors.targets[corrected]]
        costs[kind.name.lower()] = mean_ap(new_classes, is_correct | corrected, is_used & ~removed, positives) - base
    missed = np.bincount(truth.classes[errors.missed], minlength=class_count)
    unmatched = np.bincount(truth.classes[errors.unmatched], minlength=class_count)
    costs["missed"] = mean_ap(classes, is_correct, is_used, positives - missed) - base
    costs["false_positives"] = mean_ap(classes, is_correct, is_correct, positives) - base
    costs["false_negatives"] = mean_ap(classes, is_correct, is_used, positives - unmatched) - base
    return {name: max(value, 0.0) for name, value in costs.items()}


def _best(pairs: Pairs, among: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each detection's highest IoU [count] in a subset of the pairs, or 0, and its first object, or -1."""
    detections, objects, ious = (column[among] for column in pairs)
    order = np.lexsort((-objects, ious, detections))
    last = order[np.flatnonzero(np.diff(detections[order], append=-1))]
    best_iou, best_object = np.zeros(count), np.full(count, -1, np.int64)
    best_iou[detections[last]], best_object[detections[last]] = ious[last], objects[last]
    return best_iou, best_object


def _correctable(errors: Errors) -> np.ndarray:
    """Return a mask [D] of the best error per unmatched object; if corrected, further ones would be duplicates."""
    rows = np.flatnonzero(errors.targets >= 0)
    rows = rows[errors.unmatched[errors.targets[rows]]]
    _, first = np.unique(errors.targets[rows], return_index=True)
    correctable = np.zeros(len(errors.targets), bool)
    correctable[rows[first]] = True
    return correctable
