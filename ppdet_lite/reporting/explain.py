"""Why AP is near 0: what of the usual causes the results show."""

from collections.abc import Iterator

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.reporting.matching import AT_HALF, Found, Truth, match, overlapping_pairs
from ppdet_lite.reporting.summary import Analysis

NEAR_ZERO = 0.01  # AP
TOLD_APART = 0.2  # of the objects must be found the other way, and three times as many as as it stands
UNSURE = 0.05  # the best score of an untrained detector is below


def explain(dataset: CocoDataset, analysis: Analysis, ap: float | None) -> list[str]:
    """Sentences on why AP is near 0, the most telling first; none if it is not."""
    if ap is not None and ap >= NEAR_ZERO:
        return []
    found, truth = analysis.found, analysis.truth
    real = ~truth.is_crowd
    if not real.any():
        why = f"all {len(real)} annotations are crowds (iscrowd: 1)" if len(real) else "no object is annotated"
        return [f"{dataset.file}: {why}, so that there is nothing to find."]
    if not len(found.scores):
        return ["Nothing was detected at all: the weights are untrained, or model.postprocess.score_threshold is high."]
    return list(_reasons(dataset, analysis)) or [
        "Boxes are found neither in another class, scale, order nor place: the detector has not learnt, or these are "
        "the results of other images under the same ids."
    ]


def _reasons(dataset: CocoDataset, analysis: Analysis) -> Iterator[str]:
    found, truth = analysis.found, analysis.truth
    here = _share_found(found, truth, len(dataset), same_class=True)

    def is_better(share: float) -> bool:
        return share >= TOLD_APART and share > 3 * here

    any_class = _share_found(found, truth, len(dataset))
    if is_better(any_class):
        yield (
            f"Classes are mixed up: {any_class:.0%} of the objects are found if classes are not looked at, {here:.0%} "
            f"as they are. {_mixed_up(dataset, analysis)}Are the category ids those of {dataset.file}?"
        )
    for what, changed in _other_boxes(dataset, found, truth):
        share = _share_found(changed, truth, len(dataset))
        if share >= TOLD_APART and share > 3 * any_class:
            yield f"{what}: {share:.0%} of the objects are found that way, {any_class:.0%} as it stands."
    with_objects = np.unique(truth.images[~truth.is_crowd])
    seen = np.isin(with_objects, found.images)
    if seen.mean() < 0.5:
        yield f"Only {seen.sum()} of {len(seen)} images with objects have detections: were all of them looked at?"
    if found.scores.max() < UNSURE:
        yield f"The best score is {found.scores.max():.3f}: the detector is sure of nothing; is it trained?"
    near = _nearest(found, truth, len(dataset))
    if here < TOLD_APART and 0.2 <= near < 0.5:
        yield (
            f"Boxes are near but off: the median IoU of objects with their nearest detection is {near:.2f}. Look at "
            "the pictures; a resize or crop that is not undone moves all boxes alike."
        )


def _share_found(found: Found, truth: Truth, image_count: int, same_class: bool = False) -> float:
    """The share of objects that some detection overlaps by 0.5, of their class or any."""
    pairs = overlapping_pairs(found, truth, image_count)
    good = (pairs.ious >= 0.5) & ~truth.is_crowd[pairs.truth]
    if same_class:
        good &= found.classes[pairs.found] == truth.classes[pairs.truth]
    return len(np.unique(pairs.truth[good])) / max(int(np.sum(~truth.is_crowd)), 1)


def _other_boxes(dataset: CocoDataset, found: Found, truth: Truth) -> Iterator[tuple[str, Found]]:
    """What boxes may have been meant instead."""
    xywh, sizes = found.xywh, dataset.sizes[found.images][:, ::-1].astype(np.float64)
    corners = np.concatenate([xywh[:, :2], xywh[:, 2:] - xywh[:, :2]], axis=1)
    yield "The boxes are corners (x1, y1, x2, y2) in place of x, y, width, height", found._replace(xywh=corners)
    yield "x and y are exchanged", found._replace(xywh=xywh[:, [1, 0, 3, 2]])
    centred = np.concatenate([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, 2:]], axis=1)
    yield "The boxes begin with their centre in place of the upper left corner", found._replace(xywh=centred)
    if np.abs(xywh).max() <= 2:
        scaled = xywh * np.concatenate([sizes, sizes], axis=1)
        yield "The boxes are relative to the image's size in place of pixels", found._replace(xywh=scaled)
    real = truth.xywh[~truth.is_crowd]
    factor = np.median(real[:, 2:].prod(1)) ** 0.5 / max(np.median(xywh[:, 2:].prod(1)) ** 0.5, 1e-9)
    if not 0.9 < factor < 1.1:
        yield f"The boxes are of another scale, by about {factor:.2f}", found._replace(xywh=xywh * factor)


def _mixed_up(dataset: CocoDataset, analysis: Analysis) -> str:
    """The most frequent exchange of classes as a sentence."""
    found, truth = analysis.found, analysis.truth
    one_class = found._replace(classes=np.zeros_like(found.classes))
    pairs = analysis.pairs
    matches = match(one_class, truth._replace(classes=np.zeros_like(truth.classes)), pairs)
    taken = matches.truth[AT_HALF]
    rows = np.flatnonzero((taken >= 0) & ~matches.ignored[AT_HALF])
    counts = np.zeros((dataset.num_classes, dataset.num_classes), np.int64)
    np.add.at(counts, (truth.classes[taken[rows]], found.classes[rows]), 1)
    np.fill_diagonal(counts, 0)
    names = dataset.class_names
    told = [
        f"{names[k]} as {names[counts[k].argmax()]} ({counts[k].max()} of {counts[k].sum()})"
        for k in np.argsort(-counts.max(axis=1), kind="stable")[:5].tolist()
        if counts[k].any()
    ]
    return f"Most often: {', '.join(told)}. " if told else ""


def _nearest(found: Found, truth: Truth, image_count: int) -> float:
    """The median IoU of objects with the detection, of any class, that overlaps them most."""
    pairs = overlapping_pairs(found, truth, image_count)
    best = np.zeros(len(truth.images))
    np.maximum.at(best, pairs.truth, pairs.ious)
    return float(np.median(best[~truth.is_crowd]))
