"""Detections and ground truth drawn into pictures."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ppdet_lite.data.coco import Objects
from ppdet_lite.evaluation.detect import ImageDetections
from ppdet_lite.storage.files import output_file

Colour = tuple[int, int, int]  # RGB

FONT = cv2.FONT_HERSHEY_SIMPLEX  # OpenCV 5 has the letters of most languages, OpenCV 4 draws ? for all but ASCII
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GOLDEN_RATIO = 0.618034  # steps of it around the circle of hues never meet
GAP, PADDING = 4, 2  # pixels between two pictures, and around a text


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray | None,
    class_names: Sequence[str],
) -> np.ndarray:
    """Draw boxes with class name and score (where there are scores) into a copy of an image, the best on top.

    image [H, W, 3] uint8 RGB; boxes [D, 4] xyxy in its pixels; classes [D]; scores [D]; D = 0 is legal.
    """
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    labels = [class_names[classes[i]] + ("" if scores is None else f" {scores[i]:.2f}") for i in order]
    return _draw(image, boxes[order], classes[order], labels)


def draw_comparison(
    image: np.ndarray,
    truth: Objects,
    predicted: ImageDetections,
    class_names: Sequence[str],
    score_threshold: float = 0.5,
) -> np.ndarray:
    """Draw the annotated objects of an image and, to the right, the predictions from a score on; both with a title.

    image [H, W, 3] uint8 RGB, boxes in its pixels. Returns [H + title, 2 W + gap, 3].
    """
    labels = [class_names[k] + " (crowd)" * bool(crowd) for k, crowd in zip(truth.classes, truth.is_crowd, strict=True)]
    good = predicted.scores >= score_threshold
    left = _draw(image, truth.boxes, truth.classes, labels)
    right = draw_detections(image, predicted.boxes[good], predicted.classes[good], predicted.scores[good], class_names)
    left, right = titled(left, "truth"), titled(right, f"predicted, score >= {score_threshold:g}")
    return np.concatenate([left, np.full((len(left), GAP, 3), WHITE, np.uint8), right], axis=1)


def draw_strip(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Put B > 0 pictures [H, W, 3] uint8 RGB of one size side by side, each below its label."""
    columns = [titled(picture, label) for picture, label in zip(pictures, labels, strict=True)]
    gap = np.full((len(columns[0]), GAP, 3), WHITE, np.uint8)
    return np.concatenate([part for column in columns for part in (column, gap)][:-1], axis=1)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an RGB picture in the format that the name says, whole or not at all."""
    encoded = cv2.imencode(path.suffix, picture[..., ::-1])[1]
    with output_file(path) as file:
        file.write(encoded.tobytes())


def class_colour(class_index: int) -> Colour:
    """Return the colour of a class, the same in every picture."""
    value = 1.0 if class_index % 2 == 0 else 0.75
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(class_index * GOLDEN_RATIO % 1, 0.9, value))


def _draw(image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Draw all boxes, then all labels on top of them, later ones over earlier ones."""
    canvas = np.array(image, np.uint8, order="C")
    height, width = canvas.shape[:2]
    corners = np.rint(boxes).astype(int).clip(0, [width - 1, height - 1] * 2).tolist()
    colours = [class_colour(k) for k in classes.tolist()]
    for (x1, y1, x2, y2), colour in zip(corners, colours, strict=True):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, max(1, round(_side(canvas) / 350)))
    for (x, y, _, _), colour, label in zip(corners, colours, labels, strict=True):
        _label(canvas, label, x, y, colour)
    return canvas


def _label(canvas: np.ndarray, text: str, x: int, y: int, colour: Colour) -> None:
    """Write a text on a filled ground: above the point (x, y) or, where there is no room, below; all in the picture."""
    height, width = canvas.shape[:2]
    scale = _text_scale(canvas, text)
    text_width, above, below = _text_size(text, scale)
    full_width, full_height = text_width + 2 * PADDING, above + below + 2 * PADDING
    left = max(min(x, width - full_width), 0)
    top = y - full_height if y >= full_height else max(min(y, height - full_height), 0)
    cv2.rectangle(canvas, (left, top), (left + full_width - 1, top + full_height - 1), colour, cv2.FILLED)
    is_bright = np.dot(colour, (0.299, 0.587, 0.114)) > 128
    _write(canvas, text, left + PADDING, top + PADDING + above, scale, BLACK if is_bright else WHITE)


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """Put a line of text above an image; its height depends on the image's size alone."""
    _, above, below = _text_size("Ag,", _text_scale(image))
    strip = np.full((above + below + 4 * PADDING, image.shape[1], 3), WHITE, np.uint8)
    _write(strip, title, PADDING, 2 * PADDING + above, _text_scale(image, title), BLACK)
    return np.concatenate([strip, image], axis=0)


def _write(canvas: np.ndarray, text: str, x: int, baseline: int, scale: float, colour: Colour) -> None:
    cv2.putText(canvas, text, (x, baseline), FONT, scale, colour, _text_thickness(scale), cv2.LINE_AA)


def _text_size(text: str, scale: float) -> tuple[int, int, int]:
    """The width of a text, and its height above and below the baseline, in pixels."""
    (width, above), below = cv2.getTextSize(text, FONT, scale, _text_thickness(scale))
    return width, above, below


def _text_scale(image: np.ndarray, text: str = "") -> float:
    """OpenCV's scale of the letters that suits the size of an image, less where a text would be wider than it."""
    scale = max(0.4, _side(image) / 1000)
    while scale > 0.1 and _text_size(text, scale)[0] + 2 * PADDING > image.shape[1]:
        scale *= 0.9
    return scale


def _text_thickness(scale: float) -> int:
    return max(1, round(1.3 * scale))


def _side(image: np.ndarray) -> float:
    """The side of a square of the image's area, in pixels."""
    return math.sqrt(image.shape[0] * image.shape[1])
