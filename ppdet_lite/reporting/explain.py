"""Diagnosis of an AP near 0: test the results for the usual causes."""

from collections.abc import Iterator

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.reporting.matching import IOU_50, Detections, GroundTruth, match, overlapping_pairs
from ppdet_lite.reporting.summary import Analysis

NEAR_ZERO = 0.01  # AP
MIN_RECALL = 0.2  # a cause is reported only if at least this fraction of the objects is found after undoing it
MIN_RATIO = 3  # a cause is reported only if undoing it multiplies that fraction by more than this
LOW_SCORE = 0.05  # all scores of an untrained detector are below


def explain(dataset: CocoDataset, analysis: Analysis, ap: float | None) -> list[str]:
    """Return sentences on why AP is near 0, the most likely cause first; an empty list if AP is not near 0."""
    if ap is not None and ap >= NEAR_ZERO:
        return []
    detections, truth = analysis.detections, analysis.ground_truth
    real = ~truth.is_crowd
    if not real.any():
        why = f"all {len(real)} annotations are crowds (iscrowd: 1)" if len(real) else "no object is annotated"
        return [f"{dataset.file}: {why}, so there is nothing to detect."]
    if not len(detections.scores):
        return ["Nothing was detected: the weights are untrained, or model.postprocess.score_threshold is too high."]
    return list(_reasons(dataset, analysis)) or [
        "Other classes, box formats or scales do not explain it: the detector has not learned anything, or these are "
        "results of other images with the same ids."
    ]


def _reasons(dataset: CocoDataset, analysis: Analysis) -> Iterator[str]:
    detections, truth = analysis.detections, analysis.ground_truth
    same_class = _recall(detections, truth, len(dataset), same_class=True)
    any_class = _recall(detections, truth, len(dataset))
    if any_class >= MIN_RECALL and any_class > MIN_RATIO * same_class:
        yield (
            f"Classes are mixed up: {any_class:.0%} of the objects are found if classes are ignored, {same_class:.0%} "
            f"otherwise. {_frequent_confusions(dataset, analysis)}Check that the category ids are those of "
            f"{dataset.file}."
        )
    for cause, xywh in _other_box_formats(dataset, detections, truth):
        recall = _recall(detections._replace(xywh=xywh), truth, len(dataset))
        if recall >= MIN_RECALL and recall > MIN_RATIO * any_class:
            yield f"{cause}: {recall:.0%} of the objects are found if they are read so, {any_class:.0%} otherwise."
    has_detections = np.isin(np.unique(truth.images[~truth.is_crowd]), detections.images)
    if has_detections.mean() < 0.5:
        counts = f"{has_detections.sum()} of {len(has_detections)}"
        yield f"Only {counts} images with objects have detections: check that all images were evaluated."
    if detections.scores.max() < LOW_SCORE:
        yield f"The highest score is only {detections.scores.max():.3f}: check that the detector is trained."
    iou = _median_iou(detections, truth, len(dataset))
    if same_class < MIN_RECALL and 0.2 <= iou < 0.5:
        yield (
            f"Boxes are close but shifted: the median IoU of objects with their nearest detection is {iou:.2f}. Draw "
            "them on the images: a resize or crop that is not undone shifts all boxes in the same way."
        )


def _recall(detections: Detections, truth: GroundTruth, image_count: int, same_class: bool = False) -> float:
    """Return the fraction of objects with a detection of their class, or of any class, at IoU 0.5 and any score."""
    pairs = overlapping_pairs(detections, truth, image_count)
    good = (pairs.ious >= 0.5) & ~truth.is_crowd[pairs.objects]
    if same_class:
        good &= detections.classes[pairs.detections] == truth.classes[pairs.objects]
    return len(np.unique(pairs.objects[good])) / max(int(np.sum(~truth.is_crowd)), 1)


def _other_box_formats(dataset: CocoDataset, detections: Detections, truth: GroundTruth) -> Iterator[tuple]:
    """Yield possible causes of wrong boxes (str), each with boxes [D, 4] xywh that undo it."""
    xywh, sizes = detections.xywh, dataset.sizes[detections.images][:, ::-1].astype(np.float64)
    corners = np.concatenate([xywh[:, :2], xywh[:, 2:] - xywh[:, :2]], axis=1)
    yield "The boxes are corners (x1, y1, x2, y2) instead of x, y, width, height", corners
    yield "x and y are swapped", xywh[:, [1, 0, 3, 2]]
    from_center = np.concatenate([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, 2:]], axis=1)
    yield "The boxes start with their center instead of the top left corner", from_center
    if np.abs(xywh).max() <= 2:
        scaled = xywh * np.concatenate([sizes, sizes], axis=1)
        yield "The boxes are relative to the image size instead of in pixels", scaled
    real = truth.xywh[~truth.is_crowd]
    factor = np.median(real[:, 2:].prod(1)) ** 0.5 / max(np.median(xywh[:, 2:].prod(1)) ** 0.5, 1e-9)
    if not 0.9 < factor < 1.1:
        yield f"The boxes are scaled; the factor to undo it is about {factor:.2f}", xywh * factor


def _frequent_confusions(dataset: CocoDataset, analysis: Analysis) -> str:
    """Return the most frequent confusions of classes as a sentence, or an empty string."""
    detections, truth = analysis.detections, analysis.ground_truth
    matches = match(
        detections._replace(classes=np.zeros_like(detections.classes)),
        truth._replace(classes=np.zeros_like(truth.classes)),
        analysis.pairs,
    )
    matched = matches.objects[IOU_50]
    rows = np.flatnonzero((matched >= 0) & ~matches.ignored[IOU_50])
    counts = np.zeros((dataset.num_classes, dataset.num_classes), np.int64)
    np.add.at(counts, (truth.classes[matched[rows]], detections.classes[rows]), 1)
    np.fill_diagonal(counts, 0)
    names = dataset.class_names
    confusions = [
        f"{names[k]} as {names[counts[k].argmax()]} ({counts[k].max()} of {counts[k].sum()})"
        for k in np.argsort(-counts.max(axis=1), kind="stable")[:5].tolist()
        if counts[k].any()
    ]
    return f"Most frequent: {', '.join(confusions)}. " if confusions else ""


def _median_iou(detections: Detections, truth: GroundTruth, image_count: int) -> float:
    """Return the median over objects of the highest IoU with a detection of any class."""
    pairs = overlapping_pairs(detections, truth, image_count)
    best = np.zeros(len(truth.images))
    np.maximum.at(best, pairs.objects, pairs.ious)
    return float(np.median(best[~truth.is_crowd]))
