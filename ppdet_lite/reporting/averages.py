"""Average precision per class, object size, number of objects per image, and selection of images."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ppdet_lite.reporting.curves import RankedDetections, average_precision
from ppdet_lite.reporting.matching import IOU_50, Detections, GroundTruth, Matches, Pairs, match, overlapping_pairs

SIZE_LIMITS = (0, 16, 32, 96, 288, np.inf)  # bin edges of the square root of the area, pixels; COCO uses 32 and 96
CROWDING_LIMITS = (1, 3, 6, 11, 21, np.inf)  # bin edges of the number of objects in an image
NEARNESS_LIMITS = (0.0, 0.1, 0.3, 0.5, 1.0)  # bin edges of the highest IoU with another object of the class


class Group(NamedTuple):
    """AP over a subset of the objects; None if there are none."""

    low: float
    high: float | None  # exclusive; None for no limit
    objects: int
    ap: float | None
    ap50: float | None


class NearGroup(NamedTuple):
    """The recall of objects whose highest IoU with another object of their class is in a range."""

    low: float  # IoU
    high: float
    objects: int
    recall: float | None


def ranked_classes(detections: Detections, matches: Matches, t: int, class_count: int) -> Iterator[RankedDetections]:
    """Yield, for each class, its detections that are not ignored at the t-th IoU threshold."""
    for rows in rows_by_class(detections.classes, class_count):
        rows = rows[~matches.ignored[t, rows]]
        yield RankedDetections(matches.objects[t, rows] >= 0, detections.scores[rows])


def rows_by_class(classes: np.ndarray, class_count: int) -> list[np.ndarray]:
    """Return the indices of the elements of each class, in ascending order."""
    order = np.argsort(classes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(classes, minlength=class_count))[:-1])


def class_aps(
    detections: Detections,
    truth: GroundTruth,
    matches: Matches,
    weights: np.ndarray,
    class_count: int,
    ignored: np.ndarray,
) -> np.ndarray:
    """Return the average precision of each class in B selections of images, at T IoU thresholds, as [B, T, K].

    It is NaN for a class without objects.

    weights: [B, images], how often each image occurs in a selection: 0 or 1, or more in a bootstrap sample.
    ignored: [G] bool, objects that do not count.
    """
    aps = np.full((len(weights), len(matches.objects), class_count), np.nan)
    counted = np.flatnonzero(~ignored)
    rows_of = rows_by_class(detections.classes, class_count)
    for k, objects in enumerate(rows_by_class(truth.classes[counted], class_count)):
        if not len(objects):
            continue
        positives = weights[:, truth.images[counted[objects]]].sum(axis=1)
        rows = rows_of[k]
        row_weights = weights[:, detections.images[rows]]
        detections_so_far = np.cumsum(row_weights, axis=1)
        for t in range(len(matches.objects)):
            ignored_rows = np.flatnonzero(matches.ignored[t, rows])
            true = np.flatnonzero((matches.objects[t, rows] >= 0) & ~matches.ignored[t, rows])
            ignored_so_far = np.cumsum(np.pad(row_weights[:, ignored_rows], ((0, 0), (1, 0))), axis=1)
            counted_so_far = detections_so_far[:, true] - ignored_so_far[:, np.searchsorted(ignored_rows, true)]
            aps[:, t, k] = average_precision(np.cumsum(row_weights[:, true], axis=1), counted_so_far, positives)
    return aps


def mean_aps(aps: np.ndarray) -> np.ndarray:
    """Return the mean of [..., K] over the classes that have objects; NaN if none has."""
    has_objects = np.isfinite(aps)
    total = np.where(has_objects, aps, 0.0).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return total / has_objects.sum(axis=-1)


def by_size(
    detections: Detections, truth: GroundTruth, pairs: Pairs, image_count: int, class_count: int
) -> list[Group]:
    """Return the AP per object size, computed as COCO's APs, APm and APl but with narrower ranges."""
    groups = []
    all_images = np.ones((1, image_count), np.int64)
    for low, high in itertools.pairwise(SIZE_LIMITS):
        area_range = (low**2, np.nextafter(high**2, 0))
        outside = (truth.areas < area_range[0]) | (truth.areas > area_range[1]) | truth.is_crowd
        matches = match(detections, truth, pairs, area_range=area_range)
        aps = class_aps(detections, truth, matches, all_images, class_count, outside)[0]
        groups.append(_group(low, high, int(np.sum(~outside)), aps))
    return groups


def by_crowding(
    detections: Detections, truth: GroundTruth, matches: Matches, image_count: int, class_count: int
) -> list[Group]:
    """Return the AP per range of the number of objects in an image."""
    counts = np.bincount(truth.images[~truth.is_crowd], minlength=image_count)
    lows, highs = np.array(CROWDING_LIMITS[:-1])[:, None], np.array(CROWDING_LIMITS[1:])[:, None]
    chosen = (counts >= lows) & (counts < highs)
    aps = class_aps(detections, truth, matches, chosen.astype(np.int64), class_count, truth.is_crowd)
    objects = (chosen * counts).sum(axis=1).tolist()
    return [_group(*group) for group in zip(CROWDING_LIMITS, CROWDING_LIMITS[1:], objects, aps)]


def by_nearness(
    detections: Detections, truth: GroundTruth, matches: Matches, image_count: int, score: float
) -> list[NearGroup]:
    """Return the recall at IoU 0.5 and a minimum score, by the highest IoU of an object with another of its class."""
    real = np.flatnonzero(~truth.is_crowd)
    objects = GroundTruth(*(column[real] for column in truth))
    pairs = overlapping_pairs(Detections(*objects[:3], np.zeros(len(real))), objects, image_count)
    others = (pairs.detections != pairs.objects) & (objects.classes[pairs.detections] == objects.classes[pairs.objects])
    nearest = np.zeros(len(real))
    np.maximum.at(nearest, pairs.detections[others], pairs.ious[others])
    matched = matches.objects[IOU_50][(detections.scores >= score) & ~matches.ignored[IOU_50]]
    is_found = np.isin(real, matched)
    groups = []
    for low, high in itertools.pairwise(NEARNESS_LIMITS):
        inside = (nearest >= low) & ((nearest < high) | (high == NEARNESS_LIMITS[-1]))
        groups.append(NearGroup(low, high, int(inside.sum()), float(is_found[inside].mean()) if inside.any() else None))
    return groups


def _group(low: float, high: float, objects: int, aps: np.ndarray) -> Group:
    """Return the group of a range; aps: [T, K]."""
    limit = None if np.isinf(high) else high
    if not objects:
        return Group(low, limit, 0, None, None)
    means = mean_aps(aps)
    return Group(low, limit, objects, float(means.mean()), float(means[IOU_50]))
