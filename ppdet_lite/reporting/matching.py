"""Matching of detections with ground-truth objects as in pycocotools, vectorized over all images."""

from typing import NamedTuple

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.evaluation.results_file import Results

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # computed as in pycocotools, so that they are equal to the last bit
IOU_50 = 0  # index of the threshold 0.5
MAX_PER_CLASS = 100  # detections per image and class that the COCO metric uses
MIN_OVERLAP = 0.1  # IoU; TIDE treats a detection and an object with less as unrelated
CHUNK = 1 << 21  # pairs whose IoU is computed at once, which bounds the memory


class GroundTruth(NamedTuple):
    """The objects of a dataset, sorted by image."""

    images: np.ndarray  # [G] int64, indices in the dataset
    classes: np.ndarray  # [G] int64, 0..K-1
    xywh: np.ndarray  # [G, 4] float64, original pixels, as annotated
    areas: np.ndarray  # [G] float64, as annotated
    is_crowd: np.ndarray  # [G] bool


class Detections(NamedTuple):
    """Detections by descending score. Ties are sorted by image id, then by position in the file, as in pycocotools."""

    images: np.ndarray  # [D] int64, indices in the dataset
    classes: np.ndarray  # [D] int64, 0..K-1
    xywh: np.ndarray  # [D, 4] float64, original pixels
    scores: np.ndarray  # [D] float64


class Pairs(NamedTuple):
    """Pairs of a detection and an object of the same image, of any classes, with an IoU of at least MIN_OVERLAP."""

    detections: np.ndarray  # [P] int64 indices, ascending
    objects: np.ndarray  # [P] int64 indices
    ious: np.ndarray  # [P] float64; for a crowd region, the fraction of the detection inside it


class Matches(NamedTuple):
    """The object matched to each detection, at T IoU thresholds."""

    objects: np.ndarray  # [T, D] int64 indices, -1 for no match
    ignored: np.ndarray  # [T, D] bool: neither true nor false positive (crowd region or other size)


def ground_truth_of(dataset: CocoDataset) -> GroundTruth:
    """Return all objects of a dataset, with boxes and areas as annotated."""
    records = dataset.ground_truth()["annotations"]
    return GroundTruth(
        positions_of([record["image_id"] for record in records], dataset.image_ids),
        positions_of([record["category_id"] for record in records], dataset.category_ids),
        np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4),
        np.array([record["area"] for record in records], np.float64),
        np.array([record["iscrowd"] for record in records], bool),
    )


def top_detections(results: Results, dataset: CocoDataset) -> Detections:
    """Return the best MAX_PER_CLASS detections per image and class from the results of a dataset."""
    order = np.lexsort((results.image_ids, -results.scores))
    images = positions_of(results.image_ids[order], dataset.image_ids)
    classes = positions_of(results.category_ids[order], dataset.category_ids)
    kept = rank_within(images * dataset.num_classes + classes) < MAX_PER_CLASS
    return Detections(*(column[kept] for column in (images, classes, results.xywh[order], results.scores[order])))


def positions_of(values: np.ndarray | list[int], ids: np.ndarray) -> np.ndarray:
    """Return the position of each value in an array of unique ids, int64. Every value must be one of them."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], np.asarray(values, np.int64))].astype(np.int64)


def rank_within(groups: np.ndarray) -> np.ndarray:
    """Return for each element how many earlier elements belong to the same group."""
    order = np.argsort(groups, kind="stable")
    sorted_groups = groups[order]
    first = np.searchsorted(sorted_groups, sorted_groups)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - first
    return ranks


def overlapping_pairs(detections: Detections, truth: GroundTruth, image_count: int) -> Pairs:
    """Return all pairs with an IoU of at least MIN_OVERLAP, computed in chunks."""
    order = np.argsort(truth.images, kind="stable")
    counts = np.bincount(truth.images, minlength=image_count)
    first = np.cumsum(counts) - counts
    per_detection = counts[detections.images]
    ends = np.cumsum(per_detection)
    cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, CHUNK)[1:])
    chunks = []
    for rows in np.split(np.arange(len(ends)), cuts):
        sizes = per_detection[rows]
        d = np.repeat(rows, sizes)  # the detection of each pair; below, g is its object
        within_image = np.arange(len(d)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        g = order[first[detections.images[d]] + within_image]
        ious = pair_ious(detections.xywh[d], truth.xywh[g], truth.is_crowd[g])
        near = ious >= MIN_OVERLAP
        chunks.append((d[near], g[near], ious[near]))
    return Pairs(*(np.concatenate(columns) for columns in zip(*chunks, strict=True)))


def pair_ious(detections: np.ndarray, truth: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """Return the IoU [P] float64 of xywh boxes [P, 4] with boxes [P, 4], equal to pycocotools to the last bit."""
    low = np.maximum(detections[:, :2], truth[:, :2])
    high = np.minimum(detections[:, 2:] + detections[:, :2], truth[:, 2:] + truth[:, :2])
    sides = high - low
    shared = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0.0)
    detection_areas, truth_areas = detections[:, 2] * detections[:, 3], truth[:, 2] * truth[:, 3]
    unions = np.where(is_crowd, detection_areas, detection_areas + truth_areas - shared)
    return np.divide(shared, unions, out=np.zeros_like(shared), where=shared > 0)


def match(
    detections: Detections,
    truth: GroundTruth,
    pairs: Pairs,
    area_range: tuple[float, float] | None = None,
) -> Matches:
    """Match detections with objects of the same image and class at IOU_THRESHOLDS, as pycocotools does.

    In order of descending score, each detection is matched to the unmatched object with the highest IoU, if that is at
    least the threshold. If there is none, it is matched to an ignored object. Crowd regions can match several times.

    area_range: objects whose annotated area is outside are ignored, and so are unmatched detections with an area
        outside. None: no limits.
    """
    ignored = truth.is_crowd.copy()
    if area_range is not None:
        ignored |= (truth.areas < area_range[0]) | (truth.areas > area_range[1])
    same = detections.classes[pairs.detections] == truth.classes[pairs.objects]
    near = pairs.ious >= min(IOU_THRESHOLDS)
    candidates = Pairs(*(column[same & near] for column in pairs))
    groups = detections.images * (1 + max(detections.classes, default=0)) + detections.classes
    matched = match_greedy(candidates, groups, IOU_THRESHOLDS, ignored, truth.is_crowd)
    unmatched = matched < 0
    is_ignored = np.where(unmatched, False, ignored[matched]) if len(truth.images) else np.zeros_like(unmatched)
    if area_range is not None:
        areas = detections.xywh[:, 2] * detections.xywh[:, 3]
        is_ignored |= unmatched & ((areas < area_range[0]) | (areas > area_range[1]))
    return Matches(matched, is_ignored)


def match_greedy(
    pairs: Pairs, groups: np.ndarray, thresholds: np.ndarray, ignored: np.ndarray, is_crowd: np.ndarray
) -> np.ndarray:
    """Match detections greedily with the objects of their pairs; return the objects [T, D], -1 for no match.

    groups: [D] group of each detection. Detections of one group are matched in order. Different groups must have no
        objects in common, so the n-th detections of all groups are matched at once.
    """
    matched = np.full((len(thresholds), len(groups)), -1, np.int64)
    if not len(pairs.detections):
        return matched
    matchable = np.unique(pairs.detections)
    turns = np.zeros(len(groups), np.int64)  # position among the detections of its group that have pairs
    turns[matchable] = rank_within(groups[matchable])
    order = np.lexsort((pairs.objects, pairs.ious, ~ignored[pairs.objects], pairs.detections, turns[pairs.detections]))
    detections, objects, ious = (column[order] for column in pairs)  # the last free pair of a detection is the best
    limits = np.minimum(thresholds, 1 - 1e-10)[:, None]  # as in pycocotools
    free = np.ones((len(thresholds), len(ignored)), bool)
    bounds = np.flatnonzero(np.diff(turns[detections])) + 1
    for start, end in zip([0, *bounds], [*bounds, len(detections)], strict=True):
        turn = slice(start, end)
        possible = (ious[turn] >= limits) & (free[:, objects[turn]] | is_crowd[objects[turn]])
        firsts = np.flatnonzero(np.diff(detections[turn], prepend=-1))
        best = np.maximum.reduceat(np.where(possible, np.arange(end - start), -1), firsts, axis=1)
        rows, columns = np.nonzero(best >= 0)
        chosen = objects[turn][best[rows, columns]]
        matched[rows, detections[turn][firsts][columns]] = chosen
        free[rows, chosen] = False
    return matched
