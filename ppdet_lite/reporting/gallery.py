"""The worst mistakes of a detector, as crops of the images with ground truth and predictions drawn."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.images.drawing import draw_overlay
from ppdet_lite.reporting.box_crops import crop_around, limits_around
from ppdet_lite.reporting.errors import DetectionKind
from ppdet_lite.reporting.html import jpeg
from ppdet_lite.reporting.matching import IOU_50
from ppdet_lite.reporting.summary import Analysis, file_name

MAX_PER_IMAGE = 2  # mistakes, so that one bad image does not fill the page
CONTEXT, MIN_CROP_SIDE = 2.2, 96.0  # side of the crop relative to the box, and its minimum in pixels
SIDE = 300  # longer side of the enlarged crop, pixels


class Mistake(NamedTuple):
    """A drawing of a mistake with its caption."""

    drawing: str  # JPEG as a data: URL; empty if the image cannot be read
    title: str
    detail: str  # ends with the reason if the image cannot be read
    file: str


def worst_false_positives(analysis: Analysis, count: int) -> list[int]:
    """Return the wrong detections with the highest scores, at most MAX_PER_IMAGE per image."""
    wrong = np.flatnonzero(analysis.errors.kinds >= DetectionKind.CLASSIFICATION)
    return _first_per_image(wrong, analysis.detections.images, count)


def worst_misses(analysis: Analysis, score: float, count: int) -> list[int]:
    """Return the objects not found with at least a score: those never found first, among these the largest first."""
    detections, truth = analysis.detections, analysis.ground_truth
    best = np.zeros(len(truth.images))
    matched = analysis.matches.objects[IOU_50]
    best[matched[matched >= 0]] = detections.scores[matched >= 0]
    missed = np.flatnonzero(~truth.is_crowd & ((best < score) | analysis.errors.unmatched))
    order = np.lexsort((-truth.areas[missed], best[missed]))
    return _first_per_image(missed[order], truth.images, count)


def show_false_positives(dataset: CocoDataset, analysis: Analysis, rows: list[int], score: float) -> list[Mistake]:
    """Draw each of the given detections, which are false positives."""
    detections, truth, _, _, errors = analysis
    mistakes = []
    for row in rows:
        kind = DetectionKind(int(errors.kinds[row]))
        title = f"{dataset.class_names[detections.classes[row]]} {detections.scores[row]:.2f}"
        detail = kind.name.lower()
        if kind == DetectionKind.CLASSIFICATION:
            detail += f": annotated as {dataset.class_names[truth.classes[errors.targets[row]]]}"
        image = int(detections.images[row])
        mistakes.append(_show(dataset, analysis, image, detections.xywh[row], (title, detail), score, row))
    return mistakes


def show_misses(dataset: CocoDataset, analysis: Analysis, rows: list[int], score: float) -> list[Mistake]:
    """Draw each of the given objects, which are missed."""
    truth = analysis.ground_truth
    mistakes = []
    for row in rows:
        width, height = truth.xywh[row, 2:]
        caption = (dataset.class_names[truth.classes[row]], f"{width:.0f} x {height:.0f} pixels")
        mistakes.append(_show(dataset, analysis, int(truth.images[row]), truth.xywh[row], caption, score))
    return mistakes


def _first_per_image(rows: np.ndarray, images: np.ndarray, count: int) -> list[int]:
    """Return the first `count` rows that leave at most MAX_PER_IMAGE per image."""
    counts: Counter[int] = Counter()
    chosen: list[int] = []
    for row in rows.tolist():
        image = int(images[row])
        if counts[image] < MAX_PER_IMAGE:
            counts[image] += 1
            chosen.append(row)
            if len(chosen) == count:
                break
    return chosen


def _show(
    dataset: CocoDataset,
    analysis: Analysis,
    image: int,
    xywh: np.ndarray,
    caption: tuple[str, str],
    score: float,
    subject: int | None = None,
) -> Mistake:
    """Draw the ground truth and the predictions with at least a score, or with index `subject`, around a box."""
    name = file_name(dataset, image)
    try:
        pixels = dataset.load(image)
    except UserError as error:
        return Mistake("", caption[0], f"{caption[1]}; {error}", name)
    crop = crop_around(pixels, limits_around(xywh, pixels.shape[:2], CONTEXT, MIN_CROP_SIDE), SIDE)

    def in_crop(boxes: np.ndarray) -> np.ndarray:
        return crop.convert(np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1))

    detections, truth = analysis.detections, analysis.ground_truth
    objects = np.flatnonzero(truth.images == image)
    shown = detections.scores >= score
    if subject is not None:
        shown[subject] = True
    predicted = np.flatnonzero((detections.images == image) & shown)
    drawing = draw_overlay(
        crop.pixels,
        (in_crop(truth.xywh[objects]), truth.classes[objects]),
        (in_crop(detections.xywh[predicted]), detections.classes[predicted]),
        in_crop(xywh),
    )
    return Mistake(jpeg(drawing), *caption, name)
