"""The worst mistakes of a detector, as crops of the images with ground truth and predictions, and the worst images."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.images.drawing import Color, class_color, draw_overlay
from ppdet_lite.reporting.box_crops import crop_around, limits_around
from ppdet_lite.reporting.errors import DetectionKind
from ppdet_lite.reporting.html import jpeg
from ppdet_lite.reporting.matching import IOU_50
from ppdet_lite.reporting.summary import Analysis, file_name

MAX_PER_IMAGE = 2  # mistakes, so that one bad image does not fill the page
CONTEXT, MIN_CROP_SIDE = 2.2, 96.0  # side of the crop relative to the box, and its minimum in pixels
SIDE, IMAGE_SIDE = 400, 640  # longer side of a crop and of a whole image, pixels


class Mistake(NamedTuple):
    """A drawing of a mistake, or of all mistakes in an image, with its caption."""

    drawing: str  # JPEG as a data: URL; empty if the image cannot be read
    title: str
    detail: str
    file: str
    classes: list[tuple[str, Color]]  # names and colors of the boxes that are drawn
    error: str = ""  # why the image cannot be read


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


def show_images(dataset: CocoDataset, analysis: Analysis, rows: list[int], score: float) -> list[Mistake]:
    """Draw all mistakes of each of the given images: wrong detections with at least a score, and missed objects."""
    detections, truth, matches = analysis.detections, analysis.ground_truth, analysis.matches
    counted = (detections.scores >= score) & ~matches.ignored[IOU_50]
    matched = matches.objects[IOU_50]
    is_missed = ~truth.is_crowd
    is_missed[matched[counted & (matched >= 0)]] = False
    mistakes = []
    for row in rows:
        missed = np.flatnonzero(is_missed & (truth.images == row))
        wrong = np.flatnonzero(counted & (matched < 0) & (detections.images == row))
        caption = (file_name(dataset, row), f"{len(wrong)} wrong, {len(missed)} missed")
        mistakes.append(_draw(dataset, analysis, row, None, caption, (missed, wrong)))
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
    detections = analysis.detections
    shown = detections.scores >= score
    if subject is not None:
        shown[subject] = True
    objects = np.flatnonzero(analysis.ground_truth.images == image)
    predicted = np.flatnonzero((detections.images == image) & shown)
    return _draw(dataset, analysis, image, xywh, caption, (objects, predicted))


def _draw(
    dataset: CocoDataset,
    analysis: Analysis,
    image: int,
    xywh: np.ndarray | None,
    caption: tuple[str, str],
    rows: tuple[np.ndarray, np.ndarray],
) -> Mistake:
    """Draw the given objects and detections of an image, around a box xywh if there is one."""
    name = file_name(dataset, image)
    try:
        pixels = dataset.load(image)
    except UserError as error:
        return Mistake("", *caption, name, [], str(error))
    height, width = pixels.shape[:2]
    if xywh is None:
        crop = crop_around(pixels, (0, 0, width, height), IMAGE_SIDE)
    else:
        crop = crop_around(pixels, limits_around(xywh, (height, width), CONTEXT, MIN_CROP_SIDE), SIDE)

    def in_crop(boxes: np.ndarray) -> np.ndarray:
        return crop.convert(np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1))

    drawn, visible = [], set()
    truth, detections = analysis.ground_truth, analysis.detections
    sources = ((truth.xywh, truth.classes), (detections.xywh, detections.classes))
    for (xywhs, all_classes), chosen in zip(sources, rows, strict=True):
        boxes, classes = in_crop(xywhs[chosen]), all_classes[chosen]
        inside = crop.overlaps(boxes)
        drawn.append((boxes[inside], classes[inside]))
        visible |= set(classes[inside].tolist())
    drawing = draw_overlay(crop.pixels, drawn[0], drawn[1], None if xywh is None else in_crop(xywh))
    legend = [(dataset.class_names[k], class_color(k)) for k in sorted(visible)]
    return Mistake(jpeg(drawing), *caption, name, legend)
