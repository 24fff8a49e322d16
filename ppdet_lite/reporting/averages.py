"""Average precision over classes, sizes, crowding and selections of images."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ppdet_lite.reporting.curves import Ranked, average_precision
from ppdet_lite.reporting.matching import AT_HALF, Found, Matches, Pairs, Truth, match, overlapping_pairs

SIDES = (0, 16, 32, 96, 288, np.inf)  # pixels: square roots of the areas that part sizes; COCO's are 32 and 96
CROWDING = (1, 3, 6, 11, 21, np.inf)  # objects in an image that part how crowded it is
NEARNESS = (0.0, 0.1, 0.3, 0.5, 1.0)  # IoU with the nearest object of the class


class Group(NamedTuple):
    """AP over some of the objects; None where there are none."""

    low: float
    high: float  # exclusive; inf for no limit
    objects: int
    ap: float | None
    ap50: float | None


class NearGroup(NamedTuple):
    """The recall of objects that overlap another one of their class."""

    low: float  # IoU
    high: float
    objects: int
    recall: float | None


def ranked_classes(found: Found, matches: Matches, at: int, class_count: int) -> Iterator[Ranked]:
    """The detections that count, class after class, at the IoU threshold of index `at`."""
    for rows in by_class(found.classes, class_count):
        rows = rows[~matches.ignored[at, rows]]
        yield Ranked(matches.truth[at, rows] >= 0, found.images[rows], found.scores[rows])


def by_class(classes: np.ndarray, class_count: int) -> list[np.ndarray]:
    """The rows of each class, in their order."""
    order = np.argsort(classes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(classes, minlength=class_count))[:-1])


def class_aps(
    found: Found, truth: Truth, matches: Matches, weights: np.ndarray, class_count: int, ignored: np.ndarray
) -> np.ndarray:
    """The average precision of each class in B selections of images; [B, T, K], NaN where a class has no object.

    weights: [B, images], how often each occurs. ignored: [G] bool, objects that are not asked for.
    """
    aps = np.full((len(weights), len(matches.truth), class_count), np.nan)
    asked = np.flatnonzero(~ignored)
    rows_of = by_class(found.classes, class_count)
    for k, objects in enumerate(by_class(truth.classes[asked], class_count)):
        if not len(objects):
            continue
        positives = weights[:, truth.images[asked[objects]]].sum(axis=1)
        rows = rows_of[k]
        own = weights[:, found.images[rows]]
        taken = np.cumsum(own, axis=1)
        for t in range(len(matches.truth)):
            ignored_rows = np.flatnonzero(matches.ignored[t, rows])
            true = np.flatnonzero((matches.truth[t, rows] >= 0) & ~matches.ignored[t, rows])
            excused = np.cumsum(np.pad(own[:, ignored_rows], ((0, 0), (1, 0))), axis=1)
            before = taken[:, true] - excused[:, np.searchsorted(ignored_rows, true)]
            aps[:, t, k] = average_precision(np.cumsum(own[:, true], axis=1), before, positives)
    return aps


def mean_aps(aps: np.ndarray) -> np.ndarray:
    """Means of [..., K] over the classes that have objects; NaN where none has."""
    known = np.isfinite(aps)
    total = np.where(known, aps, 0.0).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return total / known.sum(axis=-1)


def by_size(found: Found, truth: Truth, pairs: Pairs, image_count: int, class_count: int) -> list[Group]:
    """AP by the size of objects, as COCO's APs, APm and APl are computed but in finer steps."""
    groups = []
    everything = np.ones((1, image_count), np.int64)
    for low, high in itertools.pairwise(SIDES):
        area_range = (low**2, np.nextafter(high**2, 0))
        outside = (truth.areas < area_range[0]) | (truth.areas > area_range[1]) | truth.is_crowd
        matches = match(found, truth, pairs, area_range=area_range)
        aps = class_aps(found, truth, matches, everything, class_count, outside)[0]
        groups.append(_group(low, high, int(np.sum(~outside)), aps))
    return groups


def by_crowding(found: Found, truth: Truth, matches: Matches, image_count: int, class_count: int) -> list[Group]:
    """AP over the images that have so many objects."""
    counts = np.bincount(truth.images[~truth.is_crowd], minlength=image_count)
    lows, highs = np.array(CROWDING[:-1])[:, None], np.array(CROWDING[1:])[:, None]
    chosen = (counts >= lows) & (counts < highs)
    aps = class_aps(found, truth, matches, chosen.astype(np.int64), class_count, truth.is_crowd)
    objects = (chosen * counts).sum(axis=1).tolist()
    return [_group(*item) for item in zip(CROWDING, CROWDING[1:], objects, aps)]


def by_nearness(found: Found, truth: Truth, matches: Matches, image_count: int, score: float) -> list[NearGroup]:
    """The recall, at IoU 0.5 and a score, of objects by their IoU with the nearest other one of their class."""
    real = np.flatnonzero(~truth.is_crowd)
    objects = Truth(*(part[real] for part in truth))
    pairs = overlapping_pairs(Found(*objects[:3], np.zeros(len(real))), objects, image_count)
    others = (pairs.found != pairs.truth) & (objects.classes[pairs.found] == objects.classes[pairs.truth])
    nearest = np.zeros(len(real))
    np.maximum.at(nearest, pairs.found[others], pairs.ious[others])
    taken = matches.truth[AT_HALF][(found.scores >= score) & ~matches.ignored[AT_HALF]]
    is_found = np.isin(real, taken)
    groups = []
    for low, high in itertools.pairwise(NEARNESS):
        own = (nearest >= low) & ((nearest < high) | (high == NEARNESS[-1]))
        groups.append(NearGroup(low, high, int(own.sum()), float(is_found[own].mean()) if own.any() else None))
    return groups


def _group(low: float, high: float, objects: int, aps: np.ndarray) -> Group:
    """aps: [T, K]."""
    if not objects:
        return Group(low, high, 0, None, None)
    means = mean_aps(aps)
    return Group(low, high, objects, float(means.mean()), float(means[AT_HALF]))
