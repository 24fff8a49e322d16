"""Boxes of a data set that are nearly the same, and the numbers that its charts show."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.data.annotations.coco_content import CocoFile
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.objects import LARGEST
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at

SAME = 0.9  # IoU from which two boxes are nearly the same
MEASURES = {"least": 0, "5 %": 5, "median": 50, "95 %": 95, "most": 100}  # percentiles of a distribution


class Numbers(NamedTuple):
    """The distributions of a data set; boxes are those that are no crowd."""

    sides: np.ndarray  # [B] roots of the areas, pixels
    aspects: np.ndarray  # [B] height / width
    relative: np.ndarray  # [B] side in shares of the image's
    per_image: np.ndarray  # [I] boxes
    widths: np.ndarray  # [I]
    heights: np.ndarray  # [I]


def numbers(dataset: CocoDataset) -> Numbers:
    """Measure the boxes as training takes them, within their images."""
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
    return Numbers(sides, height / width, relative, np.array(counts), widths, heights)


def measures(values: np.ndarray) -> dict[str, float] | None:
    """The least, the most and what is between of a distribution; None of nothing."""
    if not len(values):
        return None
    return {name: round(float(np.percentile(values, percent)), 4) for name, percent in MEASURES.items()}


def box_problems(content: CocoFile) -> list[Problem]:
    """Boxes that are nearly the same as another one."""
    pairs = list(same_boxes(content))
    own = {row: other for row, other, one_class in pairs if one_class}
    crossed = {row: other for row, other, one_class in pairs if not one_class}
    return _told(content, "box_twice", own) + _told(content, "box_of_two", crossed)


def same_boxes(content: CocoFile) -> Iterator[tuple[int, int, bool]]:
    """Pairs of annotations of an image that are nearly the same: the later row, the earlier, whether of one class."""
    annotations = content.annotations
    xywh, classes = annotations.xywh, annotations.category_ids
    usable = ~annotations.is_crowd & (np.abs(xywh) <= LARGEST).all(1) & (xywh[:, 2:] > 0).all(1)
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(annotations.image_ids[rows], kind="stable")]
    ends = np.flatnonzero(np.diff(annotations.image_ids[rows])) + 1
    for group in np.split(rows, ends):
        later, earlier = np.nonzero(np.tril(_overlaps(xywh[group]) >= SAME, -1))
        for a, b in zip(group[later].tolist(), group[earlier].tolist(), strict=True):
            yield a, b, bool(classes[a] == classes[b])


def _overlaps(xywh: np.ndarray) -> np.ndarray:
    """The IoU of every box with every other, [B, B]."""
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    both = np.maximum(shared, 0).prod(axis=2)
    areas = xywh[:, 2:].prod(axis=1)
    return both / (areas[:, None] + areas - both)


def _told(content: CocoFile, kind: str, partners: dict[int, int]) -> list[Problem]:
    annotations = content.annotations
    files = dict(zip(content.image_ids.tolist(), content.file_names, strict=True))
    names = dict(zip(content.category_ids, content.class_names, strict=True))

    def place(row: int) -> Any:
        found = annotations.ids[row]
        return f"no. {row + 1}" if found is None else found

    def example(row: int) -> Example:
        image, other = int(annotations.image_ids[row]), partners[row]
        value = {"bbox": annotations.xywh[row].tolist(), "as": place(other), "there": annotations.xywh[other].tolist()}
        if kind == "box_of_two":
            value["classes"] = [names[int(annotations.category_ids[each])] for each in (row, other)]
        number = row + 1 if annotations.ids[row] is None else None
        return Example(annotations.ids[row], image, None, files.get(image), value, number)

    return problems_at(kind, sorted(partners), len(annotations.ids), example)
