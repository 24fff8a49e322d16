"""Nearly identical boxes of a dataset, and the distributions of its box and image sizes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.data.annotations.coco_content import CocoFile
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.objects import are_pixels
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at

DUPLICATE_IOU = 0.9  # two boxes with at least this IoU are nearly identical
PERCENTILES = {"least": 0, "5 %": 5, "median": 50, "95 %": 95, "most": 100}  # of a distribution, by name


class Distributions(NamedTuple):
    """Sizes of the B boxes and I images of a dataset. Crowd regions are excluded."""

    sides: np.ndarray  # [B] square root of the area, pixels
    aspects: np.ndarray  # [B] height / width
    relative: np.ndarray  # [B] side / square root of the image's area
    per_image: np.ndarray  # [I] number of boxes
    widths: np.ndarray  # [I]
    heights: np.ndarray  # [I]


def measure(dataset: CocoDataset) -> Distributions:
    """Measure the boxes as training uses them, clipped to their images."""
    boxes, counts = [np.zeros((0, 4))], []
    for index in range(len(dataset)):
        objects = dataset.annotations(index)
        boxes.append(objects.boxes[~objects.is_crowd])
        counts.append(len(boxes[-1]))
    corners = np.concatenate(boxes).astype(float)
    width, height = (corners[:, 2:] - corners[:, :2]).T
    sides, image_sides = np.sqrt(width * height), np.sqrt(dataset.sizes.astype(float).prod(axis=1))
    heights, widths = dataset.sizes.T
    relative = sides / np.repeat(image_sides, counts)
    return Distributions(sides, height / width, relative, np.array(counts), widths, heights)


def percentiles(values: np.ndarray) -> dict[str, float] | None:
    """Return the PERCENTILES of some values, rounded to 4 decimals, or None if there are no values."""
    if not len(values):
        return None
    return {name: round(float(np.percentile(values, percent)), 4) for name, percent in PERCENTILES.items()}


def box_problems(content: CocoFile) -> list[Problem]:
    """Return the problems of boxes that are nearly identical to another box of their image."""
    pairs = list(duplicate_boxes(content))
    of_same_class = {row: other for row, other, same_class in pairs if same_class}
    of_two_classes = {row: other for row, other, same_class in pairs if not same_class}
    return _problems(content, "box_twice", of_same_class) + _problems(content, "box_of_two", of_two_classes)


def duplicate_boxes(content: CocoFile) -> Iterator[tuple[int, int, bool]]:
    """Yield pairs of nearly identical boxes of an image: the later row, the earlier row, and if their classes match."""
    annotations = content.annotations
    xywh, classes = annotations.xywh, annotations.category_ids
    usable = ~annotations.is_crowd & are_pixels(xywh) & (xywh[:, 2:] > 0).all(1)
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(annotations.image_ids[rows], kind="stable")]
    ends = np.flatnonzero(np.diff(annotations.image_ids[rows])) + 1
    for group in np.split(rows, ends):
        later, earlier = np.nonzero(np.tril(_pairwise_iou(xywh[group]) >= DUPLICATE_IOU, -1))
        for a, b in zip(group[later].tolist(), group[earlier].tolist(), strict=True):
            yield a, b, bool(classes[a] == classes[b])


def _pairwise_iou(xywh: np.ndarray) -> np.ndarray:
    """Return the IoU of all pairs of boxes, [B, B]."""
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    intersections = np.maximum(sides, 0).prod(axis=2)
    areas = xywh[:, 2:].prod(axis=1)
    return intersections / (areas[:, None] + areas - intersections)


def _problems(content: CocoFile, kind: str, partners: dict[int, int]) -> list[Problem]:
    """Return the problem of the boxes that are keys of `partners`, if any; the values are the rows they duplicate."""
    annotations = content.annotations
    files = dict(zip(content.image_ids.tolist(), content.file_names, strict=True))
    names = dict(zip(content.category_ids, content.class_names, strict=True))

    def id_of(row: int) -> Any:
        return f"no. {row + 1}" if annotations.ids[row] is None else annotations.ids[row]

    def example(row: int) -> Example:
        image, other = int(annotations.image_ids[row]), partners[row]
        value = {"bbox": annotations.xywh[row].tolist(), "as": id_of(other), "there": annotations.xywh[other].tolist()}
        if kind == "box_of_two":
            value["classes"] = [names[int(annotations.category_ids[r])] for r in (row, other)]
        number = row + 1 if annotations.ids[row] is None else None
        return Example(annotations.ids[row], image, None, files.get(image), value, number)

    return problems_at(kind, sorted(partners), len(annotations.ids), example)
