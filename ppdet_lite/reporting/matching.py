"""Detections matched with objects as pycocotools does it, in all images at once."""

from typing import NamedTuple

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.evaluation.results_file import Results

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # as pycocotools computes them
AT_HALF = 0  # the place of 0.5 among them
MOST_PER_CLASS = 100  # detections of an image and class that the COCO metric looks at
LEAST_OVERLAP = 0.1  # below, TIDE says, a detection has nothing to do with an object
CHUNK = 1 << 21  # pairs whose IoU is computed at a time


class Truth(NamedTuple):
    """The objects of a dataset, image after image."""

    images: np.ndarray  # [G] int64, positions in the dataset
    classes: np.ndarray  # [G] int64, 0..K-1
    xywh: np.ndarray  # [G, 4] float64, original pixels, as annotated
    areas: np.ndarray  # [G] float64, as annotated
    is_crowd: np.ndarray  # [G] bool


class Found(NamedTuple):
    """Detections, best first; equals by image id, then as in their file: the order in which pycocotools takes them."""

    images: np.ndarray  # [D] int64, positions in the dataset
    classes: np.ndarray  # [D] int64, 0..K-1
    xywh: np.ndarray  # [D, 4] float64, original pixels
    scores: np.ndarray  # [D] float64


class Pairs(NamedTuple):
    """Detections and objects of one image, of whatever classes, that overlap by LEAST_OVERLAP or more."""

    found: np.ndarray  # [P] int64, ascending
    truth: np.ndarray  # [P] int64
    ious: np.ndarray  # [P] float64; with a crowd, the share of the detection that lies within


class Matches(NamedTuple):
    """Which object each detection has found, at T IoU thresholds."""

    truth: np.ndarray  # [T, D] int64, -1 for none
    ignored: np.ndarray  # [T, D] bool: of a crowd or another size, counts neither for nor against


def truth_of(dataset: CocoDataset) -> Truth:
    """All objects of a dataset, with the file's own numbers."""
    records = dataset.ground_truth()["annotations"]
    return Truth(
        positions([record["image_id"] for record in records], dataset.image_ids),
        positions([record["category_id"] for record in records], dataset.category_ids),
        np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4),
        np.array([record["area"] for record in records], np.float64),
        np.array([record["iscrowd"] for record in records], bool),
    )


def found_of(results: Results, dataset: CocoDataset) -> Found:
    """The detections of a results file, of each image and class the best MOST_PER_CLASS."""
    order = np.lexsort((results.image_ids, -results.scores))
    images = positions(results.image_ids[order], dataset.image_ids)
    classes = positions(results.category_ids[order], dataset.category_ids)
    found = Found(images, classes, results.xywh[order], results.scores[order])
    return select(found, rank_within(images * dataset.num_classes + classes) < MOST_PER_CLASS)


def select(found: Found, kept: np.ndarray) -> Found:
    """Some of the detections, by a mask."""
    return Found(*(part[kept] for part in found))


def positions(values: np.ndarray | list[int], ids: np.ndarray) -> np.ndarray:
    """The position of each value among unique ids, int64; every value is one of them."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], np.asarray(values, np.int64))].astype(np.int64)


def rank_within(groups: np.ndarray) -> np.ndarray:
    """How many earlier members of its group each of the values has."""
    order = np.argsort(groups, kind="stable")
    sorted_groups = groups[order]
    first = np.searchsorted(sorted_groups, sorted_groups)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - first
    return ranks


def overlapping_pairs(found: Found, truth: Truth, image_count: int) -> Pairs:
    """Find all pairs that overlap."""
    order = np.argsort(truth.images, kind="stable")
    counts = np.bincount(truth.images, minlength=image_count)
    first = np.cumsum(counts) - counts
    per_detection = counts[found.images]
    ends = np.cumsum(per_detection)
    cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, CHUNK)[1:])
    parts = []
    for rows in np.split(np.arange(len(ends)), cuts):
        sizes = per_detection[rows]
        detections = np.repeat(rows, sizes)
        within = np.arange(len(detections)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        objects = order[first[found.images[detections]] + within]
        ious = pair_ious(found.xywh[detections], truth.xywh[objects], truth.is_crowd[objects])
        near = ious >= LEAST_OVERLAP
        parts.append((detections[near], objects[near], ious[near]))
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def pair_ious(found: np.ndarray, truth: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """The IoU of boxes [P, 4] xywh with boxes [P, 4] as pycocotools has it, to the last bit; [P] float64."""
    low = np.maximum(found[:, :2], truth[:, :2])
    high = np.minimum(found[:, 2:] + found[:, :2], truth[:, 2:] + truth[:, :2])
    sides = high - low
    shared = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0.0)
    found_areas, truth_areas = found[:, 2] * found[:, 3], truth[:, 2] * truth[:, 3]
    unions = np.where(is_crowd, found_areas, found_areas + truth_areas - shared)
    return np.divide(shared, unions, out=np.zeros_like(shared), where=shared > 0)


def match(
    found: Found,
    truth: Truth,
    pairs: Pairs,
    thresholds: np.ndarray = IOU_THRESHOLDS,
    area_range: tuple[float, float] | None = None,
) -> Matches:
    """Match within images and classes as pycocotools does: the best detection first, each taking the free object of
    the highest IoU, from the threshold on; failing that, one that is ignored, and crowds as often as need be.

    area_range: objects of another area (as annotated) are ignored, and so are detections of another area that find
        nothing; None for all.
    """
    ignored = truth.is_crowd.copy()
    if area_range is not None:
        ignored |= (truth.areas < area_range[0]) | (truth.areas > area_range[1])
    same = found.classes[pairs.found] == truth.classes[pairs.truth]
    near = pairs.ious >= min(thresholds)
    candidates = Pairs(*(part[same & near] for part in pairs))
    groups = found.images * (1 + max(found.classes, default=0)) + found.classes
    taken = greedy(candidates, groups, thresholds, ignored, truth.is_crowd)
    lost = taken < 0
    is_ignored = np.where(lost, False, ignored[taken]) if len(truth.images) else np.zeros_like(lost)
    if area_range is not None:
        areas = found.xywh[:, 2] * found.xywh[:, 3]
        is_ignored |= lost & ((areas < area_range[0]) | (areas > area_range[1]))
    return Matches(taken, is_ignored)


def greedy(
    pairs: Pairs, groups: np.ndarray, thresholds: np.ndarray, ignored: np.ndarray, is_crowd: np.ndarray
) -> np.ndarray:
    """Let detections choose objects among their pairs, in the order of detections within each group.

    groups: [D], of detections that compete; those of different ones never share an object. Returns [T, D] objects,
    -1 for none. The n-th detections of all groups choose at once, since they are in nobody's way.
    """
    taken = np.full((len(thresholds), len(groups)), -1, np.int64)
    if not len(pairs.found):
        return taken
    choosers = np.unique(pairs.found)
    turns = np.zeros(len(groups), np.int64)
    turns[choosers] = rank_within(groups[choosers])
    order = np.lexsort((pairs.truth, pairs.ious, ~ignored[pairs.truth], pairs.found, turns[pairs.found]))
    found, truth, ious = (part[order] for part in pairs)  # of a detection's free pairs, the last is the best
    limits = np.minimum(thresholds, 1 - 1e-10)[:, None]
    free = np.ones((len(thresholds), len(ignored)), bool)
    bounds = np.flatnonzero(np.diff(turns[found])) + 1
    for start, end in zip([0, *bounds], [*bounds, len(found)], strict=True):
        turn = slice(start, end)
        possible = (ious[turn] >= limits) & (free[:, truth[turn]] | is_crowd[truth[turn]])
        firsts = np.flatnonzero(np.diff(found[turn], prepend=-1))
        best = np.maximum.reduceat(np.where(possible, np.arange(end - start), -1), firsts, axis=1)
        rows, columns = np.nonzero(best >= 0)
        chosen = truth[turn][best[rows, columns]]
        taken[rows, found[turn][firsts][columns]] = chosen
        free[rows, chosen] = False
    return taken
