"""Detections and ground truth drawn into pictures."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ppdet_lite.storage.files import output_file

Colour = tuple[int, int, int]  # RGB

FONT = cv2.FONT_HERSHEY_SIMPLEX  # OpenCV 5 has the letters of most languages, OpenCV 4 draws ? for all but ASCII
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GOLDEN_RATIO = 0.618034  # steps of it around the circle of hues never meet
GAP, PADDING, DASH = 4, 2, 6  # pixels between two pictures, around a text, and of a dash
LEAST_SCALE, SMALL = 0.4, 0.7  # OpenCV's scale of letters: the least that can be read; labels beside titles
OPACITY = 0.7  # of the ground of a label
PREFERENCE = 0.02  # for the place before: what a label hides of a box must be that much less to move it


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
    return draw_boxes(image, boxes[order], classes[order], labels)


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Put two pictures [H, W, 3] of one size beside each other, with a gap: [H, 2 W + gap, 3]."""
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


def draw_overlay(
    image: np.ndarray,
    truth: tuple[np.ndarray, np.ndarray],
    predicted: tuple[np.ndarray, np.ndarray],
    subject: np.ndarray,
) -> np.ndarray:
    """Draw annotated boxes dashed, predicted ones in whole lines, and one box that is meant, in black and white.

    image [H, W, 3] uint8 RGB; truth and predicted are boxes [B, 4] and classes [B]; subject [4]; xyxy in its pixels,
    where they may reach beyond it.
    """
    canvas = np.array(image, np.uint8, order="C")
    for colour, thickness in ((BLACK, 7), (WHITE, 5)):
        _rectangle(canvas, np.rint(subject).astype(int).tolist(), colour, thickness)
    for (boxes, classes), dash in ((truth, DASH), (predicted, 0)):
        for box, k in zip(np.rint(boxes).astype(int).tolist(), classes.tolist(), strict=True):
            _rectangle(canvas, box, class_colour(k), 2, dash)
    return canvas


def draw_boxes(image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Draw all boxes, then all labels on top of them, later ones over earlier ones."""
    canvas = np.array(image, np.uint8, order="C")
    corners = _corners(boxes, canvas)
    colours = [class_colour(k) for k in classes.tolist()]
    for box, colour in zip(corners, colours, strict=True):
        _rectangle(canvas, box, colour, max(1, round(_side(canvas) / 350)))
    sizes = [_label_size(canvas, label) for label in labels]
    places = place_labels(np.array(corners).reshape(-1, 4), np.array(sizes).reshape(-1, 2), canvas.shape[:2])
    for (left, top), colour, label in zip(places, colours, labels, strict=True):
        _label(canvas, label, left, top, colour)
    return canvas


def place_labels(corners: np.ndarray, sizes: np.ndarray, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Find a place (left, top) for the label of each box, where it hides little; the last box chooses first.

    corners: [B, 4] xyxy; sizes: [B, 2] (w, h) of the labels; image_size (h, w). A label stands at a corner of its box,
    above it unless that hides more: the share of every box that is hidden counts, so that small ones stay to be seen,
    and what it hides of other labels, doubly. All of it is inside the image where that is large enough.
    """
    height, width = image_size
    filled: list[np.ndarray] = []
    places: list[tuple[int, int]] = []
    areas = (np.maximum(corners[:, 2:] - corners[:, :2], 1)).prod(axis=1)
    for (x1, y1, x2, y2), (w, h) in zip(corners[::-1].tolist(), sizes[::-1].tolist(), strict=True):
        spots = [
            (x1, y1 - h), (x2 + 1 - w, y1 - h), (x1, y2 + 1), (x2 + 1 - w, y2 + 1), (x2 + 1, y1), (x1 - w, y1), (x1, y1)
        ]  # fmt: skip
        tops_left = np.clip(spots, 0, [max(width - w, 0), max(height - h, 0)])
        rectangles = np.concatenate([tops_left, tops_left + np.array([w, h])], axis=1)
        cost = PREFERENCE * np.arange(len(spots)) + (_shared(rectangles, corners) / areas).sum(axis=1)
        if filled:
            cost += 2 * _shared(rectangles, np.array(filled)).sum(axis=1) / (w * h)
        best = int(np.argmin(cost))
        filled.append(rectangles[best])
        places.append((int(tops_left[best, 0]), int(tops_left[best, 1])))
    return places[::-1]


def _shared(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The areas [S, O] that rectangles [S, 4] and [O, 4] xyxy share."""
    low = np.maximum(some[:, None, :2], others[:, :2])
    high = np.minimum(some[:, None, 2:], others[:, 2:])
    return np.maximum(high - low, 0).prod(axis=-1)


def _corners(boxes: np.ndarray, canvas: np.ndarray) -> list[list[int]]:
    """Boxes [B, 4] in whole pixels within an image."""
    height, width = canvas.shape[:2]
    return np.rint(boxes).astype(int).clip(0, [width - 1, height - 1] * 2).tolist()


def _rectangle(canvas: np.ndarray, box: list[int], colour: Colour, thickness: int, dash: int = 0) -> None:
    """The outline of a box; dash: the pixels of a dash and of the gap after it, 0 for a whole line."""
    x1, y1, x2, y2 = box
    if not dash:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness)
        return
    for x in range(x1, x2 + 1, 2 * dash):
        for y in (y1, y2):
            cv2.line(canvas, (x, y), (min(x + dash - 1, x2), y), colour, thickness)
    for y in range(y1, y2 + 1, 2 * dash):
        for x in (x1, x2):
            cv2.line(canvas, (x, y), (x, min(y + dash - 1, y2)), colour, thickness)


def _label(canvas: np.ndarray, text: str, left: int, top: int, colour: Colour) -> None:
    """Write a text on a ground that what is below shines through; it has the size that `_label_size` says."""
    scale = _label_scale(canvas, text)
    width, height = _label_size(canvas, text)
    ground = canvas[top : top + height, left : left + width]
    ground[:] = np.rint((1 - OPACITY) * ground + OPACITY * np.array(colour))
    is_bright = ground.mean(axis=(0, 1)) @ (0.299, 0.587, 0.114) > 128
    above = _text_size(text, scale)[1]
    _write(canvas, text, left + PADDING, top + PADDING + above, scale, BLACK if is_bright else WHITE)


def _label_size(canvas: np.ndarray, text: str) -> tuple[int, int]:
    """The width and height of a label in pixels."""
    width, above, below = _text_size(text, _label_scale(canvas, text))
    return width + 2 * PADDING, above + below + 2 * PADDING


def _label_scale(canvas: np.ndarray, text: str) -> float:
    return _text_scale(canvas, text, SMALL)


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


def _text_scale(image: np.ndarray, text: str = "", share: float = 1.0) -> float:
    """OpenCV's scale of the letters that suits the size of an image, less where a text would be wider than it."""
    scale = max(LEAST_SCALE, share * _side(image) / 1000)
    while scale > 0.1 and _text_size(text, scale)[0] + 2 * PADDING > image.shape[1]:
        scale *= 0.9
    return scale


def _text_thickness(scale: float) -> int:
    return max(1, round(1.3 * scale))


def _side(image: np.ndarray) -> float:
    """The side of a square of the image's area, in pixels."""
    return math.sqrt(image.shape[0] * image.shape[1])
