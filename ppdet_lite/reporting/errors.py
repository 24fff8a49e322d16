"""The kinds of errors of a detector and what each costs, as TIDE has them (Bolya et al., ECCV 2020).

It differs from `tidecv` in this: what finds a crowd is no error and mends none; AP is the mean over the classes that
have objects, read at COCO's recalls to the last bit; equal scores keep their order when errors are mended; a crowd
excuses from the threshold on, not only above it.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from ppdet_lite.reporting.averages import by_class
from ppdet_lite.reporting.curves import plain_ap
from ppdet_lite.reporting.matching import AT_HALF, LEAST_OVERLAP, Found, Matches, Pairs, Truth, rank_within

FOREGROUND = 0.5  # IoU of a true positive
MOST_PER_IMAGE = 100  # detections of an image, of all classes, that TIDE looks at


class Kind(IntEnum):
    """What a detection is."""

    LEFT_OUT = -1  # it found a crowd, or there are MOST_PER_IMAGE better ones in its image
    RIGHT = 0
    CLASSIFICATION = 1  # right place, wrong class
    LOCALISATION = 2  # right class, poor place
    BOTH = 3
    DUPLICATE = 4  # of what a better one has found
    BACKGROUND = 5  # of nothing


ERRORS = (Kind.CLASSIFICATION, Kind.LOCALISATION, Kind.BOTH, Kind.DUPLICATE, Kind.BACKGROUND)


class Errors(NamedTuple):
    """Each detection's kind, and the objects that no detection of any error stands for."""

    kinds: np.ndarray  # [D] int64 of Kind
    targets: np.ndarray  # [D] int64: the object that a classification or localisation error was to find, else -1
    missed: np.ndarray  # [G] bool: neither found nor within reach of one of those errors
    lost: np.ndarray  # [G] bool: not found; a missed object is lost too


def find_errors(found: Found, truth: Truth, pairs: Pairs, matches: Matches) -> Errors:
    """Tell what each detection is, in the order of TIDE's rules, at IoU 0.5 and background below 0.1."""
    looked_at = rank_within(found.images) < MOST_PER_IMAGE
    taken, ignored = matches.truth[AT_HALF], matches.ignored[AT_HALF]
    right = looked_at & ~ignored & (taken >= 0)
    is_used = np.zeros(len(truth.images), bool)
    is_used[taken[right]] = True

    objects = Pairs(*(part[~truth.is_crowd[pairs.truth]] for part in pairs))
    same = found.classes[objects.found] == truth.classes[objects.truth]
    same_iou, same_object = _best(objects, same, len(found.images))
    other_iou, other_object = _best(objects, ~same, len(found.images))
    used_iou, _ = _best(objects, same & is_used[objects.truth], len(found.images))
    kinds = np.select(
        [
            ~looked_at | ignored,
            right,
            (same_iou >= LEAST_OVERLAP) & (same_iou <= FOREGROUND),
            other_iou >= FOREGROUND,
            used_iou >= FOREGROUND,
            np.maximum(same_iou, other_iou) <= LEAST_OVERLAP,
        ],
        [Kind.LEFT_OUT, Kind.RIGHT, Kind.LOCALISATION, Kind.CLASSIFICATION, Kind.DUPLICATE, Kind.BACKGROUND],
        Kind.BOTH,
    ).astype(np.int64)
    targets = np.select(
        [kinds == Kind.LOCALISATION, kinds == Kind.CLASSIFICATION], [same_object, other_object], -1
    ).astype(np.int64)
    lost = ~truth.is_crowd & ~is_used
    missed = lost.copy()
    missed[targets[targets >= 0]] = False
    return Errors(kinds, targets, missed, lost)


def error_costs(found: Found, truth: Truth, errors: Errors, class_count: int) -> dict[str, float]:
    """The AP50 (of what TIDE looks at, as `AP50`), and by how much it would rise if each kind of error were mended.

    Wrong classes and places are put right, once per object that nobody found; the other errors vanish, missed objects
    are not asked for. `false_positives`: none would stand above a true one. `false_negatives`: no lost object would be
    asked for.
    """
    kinds = errors.kinds
    classes, is_true, counts = found.classes.copy(), kinds == Kind.RIGHT, kinds != Kind.LEFT_OUT
    positives = np.bincount(truth.classes[~truth.is_crowd], minlength=class_count)
    asked = positives > 0

    def mean_ap(classes: np.ndarray, is_true: np.ndarray, counts: np.ndarray, positives: np.ndarray) -> float:
        values = []
        rows_of = by_class(np.where(counts, classes, class_count), class_count + 1)
        for k in np.flatnonzero(asked).tolist():
            if positives[k]:
                values.append(plain_ap(is_true[rows_of[k]], int(positives[k])))
            elif len(rows_of[k]):
                values.append(0.0)
        return float(np.mean(values)) if values else 0.0

    base = mean_ap(classes, is_true, counts, positives)
    mended = _mendable(errors)
    costs = {"AP50": base}
    for kind in ERRORS:
        own = kinds == kind
        kept, true, moved = counts & (~own | mended), is_true | (own & mended), classes.copy()
        if kind == Kind.CLASSIFICATION:
            moved[own & mended] = truth.classes[errors.targets[own & mended]]
        costs[kind.name.lower()] = mean_ap(moved, true, kept, positives) - base
    less = np.bincount(truth.classes[errors.missed], minlength=class_count)
    costs["missed"] = mean_ap(classes, is_true, counts, positives - less) - base
    costs["false_positives"] = mean_ap(classes, is_true, is_true, positives) - base
    less = np.bincount(truth.classes[errors.lost], minlength=class_count)
    costs["false_negatives"] = mean_ap(classes, is_true, counts, positives - less) - base
    return {name: max(value, 0.0) for name, value in costs.items()}


def _best(pairs: Pairs, among: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest IoU of each of `count` detections in some pairs, 0 for none, and its object, the first of equals."""
    found, truth, ious = (part[among] for part in pairs)
    order = np.lexsort((-truth, ious, found))
    last = order[np.flatnonzero(np.diff(found[order], append=-1))]
    best, objects = np.zeros(count), np.full(count, -1, np.int64)
    best[found[last]], objects[found[last]] = ious[last], truth[last]
    return best, objects


def _mendable(errors: Errors) -> np.ndarray:
    """[D] bool: of the errors whose object nobody found, the best of each object; more would be duplicates."""
    rows = np.flatnonzero(errors.targets >= 0)
    rows = rows[errors.lost[errors.targets[rows]]]
    _, first = np.unique(errors.targets[rows], return_index=True)
    mended = np.zeros(len(errors.targets), bool)
    mended[rows[first]] = True
    return mended
