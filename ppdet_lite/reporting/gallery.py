"""The worst mistakes, as pictures with truth and predictions drawn."""

from collections import Counter
from typing import NamedTuple

import cv2
import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.images.drawing import draw_overlay
from ppdet_lite.reporting.errors import Kind
from ppdet_lite.reporting.html import jpeg
from ppdet_lite.reporting.matching import AT_HALF
from ppdet_lite.reporting.summary import Analysis, file_name

MOST_OF_AN_IMAGE = 2  # so that one bad image does not fill the page
CONTEXT, LEAST_SIDE = 2.2, 96.0  # the cut: so many times the box, at least so many pixels
SIDE, MOST_ZOOM = 300, 4.0  # pixels of a picture's longer side, and its enlargement


class Mistake(NamedTuple):
    """A picture of a mistake, or why there is none."""

    picture: str  # a data: address; empty if the image cannot be read
    title: str
    detail: str
    file: str


def worst_false_positives(analysis: Analysis, count: int) -> list[int]:
    """The most confident detections that are wrong, a few of each image."""
    wrong = np.flatnonzero(analysis.errors.kinds >= Kind.CLASSIFICATION)
    return _some_of_each_image(wrong, analysis.found.images, count)


def worst_misses(analysis: Analysis, score: float, count: int) -> list[int]:
    """Objects that are not found from a score on: first those found at no score, of these the largest."""
    found, truth = analysis.found, analysis.truth
    best = np.zeros(len(truth.images))
    taken = analysis.matches.truth[AT_HALF]
    best[taken[taken >= 0]] = found.scores[taken >= 0]
    missed = np.flatnonzero(~truth.is_crowd & ((best < score) | analysis.errors.lost))
    order = np.lexsort((-truth.areas[missed], best[missed]))
    return _some_of_each_image(missed[order], truth.images, count)


def show_false_positives(dataset: CocoDataset, analysis: Analysis, rows: list[int], score: float) -> list[Mistake]:
    """A picture of each of these detections."""
    found, truth, _, _, errors = analysis
    shown = []
    for row in rows:
        kind = Kind(int(errors.kinds[row]))
        title = f"{dataset.class_names[found.classes[row]]} {found.scores[row]:.2f}"
        detail = kind.name.lower()
        if kind == Kind.CLASSIFICATION:
            detail += f": annotated as {dataset.class_names[truth.classes[errors.targets[row]]]}"
        shown.append(_show(dataset, analysis, int(found.images[row]), found.xywh[row], (title, detail), score, row))
    return shown


def show_misses(dataset: CocoDataset, analysis: Analysis, rows: list[int], score: float) -> list[Mistake]:
    """A picture of each of these objects."""
    truth = analysis.truth
    shown = []
    for row in rows:
        width, height = truth.xywh[row, 2:]
        texts = (dataset.class_names[truth.classes[row]], f"{width:.0f} x {height:.0f} pixels")
        shown.append(_show(dataset, analysis, int(truth.images[row]), truth.xywh[row], texts, score))
    return shown


def _some_of_each_image(rows: np.ndarray, images: np.ndarray, count: int) -> list[int]:
    seen: Counter[int] = Counter()
    chosen: list[int] = []
    for row in rows.tolist():
        image = int(images[row])
        if seen[image] < MOST_OF_AN_IMAGE:
            seen[image] += 1
            chosen.append(row)
            if len(chosen) == count:
                break
    return chosen


def _show(
    dataset: CocoDataset,
    analysis: Analysis,
    image: int,
    xywh: np.ndarray,
    texts: tuple[str, str],
    score: float,
    subject: int | None = None,
) -> Mistake:
    """A cut around a box: what is annotated there, what is predicted from the score on, and the subject itself."""
    name = file_name(dataset, image)
    try:
        pixels = dataset.load(image)
    except UserError as error:
        return Mistake("", texts[0], f"{texts[1]}; {error}", name)
    left, top, right, bottom = _cut(xywh, pixels.shape[:2])
    zoom = min(SIDE / max(right - left, bottom - top), MOST_ZOOM)
    way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    part = cv2.resize(pixels[top:bottom, left:right], None, fx=zoom, fy=zoom, interpolation=way)

    def inside(boxes: np.ndarray) -> np.ndarray:
        corners = np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)
        return (corners - [left, top, left, top]) * zoom

    found, truth = analysis.found, analysis.truth
    objects = np.flatnonzero(truth.images == image)
    shown = found.scores >= score
    if subject is not None:
        shown[subject] = True
    predicted = np.flatnonzero((found.images == image) & shown)
    picture = draw_overlay(
        part,
        (inside(truth.xywh[objects]), truth.classes[objects]),
        (inside(found.xywh[predicted]), found.classes[predicted]),
        inside(xywh),
    )
    return Mistake(jpeg(picture), *texts, name)


def _cut(xywh: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part (left, top, right, bottom) of an image (h, w) around a box, in whole pixels; within the image."""
    height, width = size
    x, y, w, h = xywh.tolist()
    half = max(CONTEXT * max(w, h), LEAST_SIDE) / 2
    centre_x, centre_y = min(max(x + w / 2, 0), width), min(max(y + h / 2, 0), height)
    left, right = int(max(centre_x - half, 0)), int(np.ceil(min(centre_x + half, width)))
    top, bottom = int(max(centre_y - half, 0)), int(np.ceil(min(centre_y + half, height)))
    return left, top, max(right, left + 1), max(bottom, top + 1)
