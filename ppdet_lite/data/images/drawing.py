"""Draws detections and ground truth on images."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.storage.files import output_file

Color = tuple[int, int, int]  # RGB

FONT = cv2.FONT_HERSHEY_SIMPLEX  # OpenCV 5 supports most alphabets; OpenCV 4 draws ? for letters outside ASCII
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GOLDEN_RATIO = 0.618034  # steps of this size around the circle of hues never repeat
GAP, PADDING, DASH = 4, 2, 6  # pixels: between two images, around a text, length of a dash
MIN_SCALE, LABEL_SCALE = 0.4, 0.7  # OpenCV font scales: the smallest legible one; labels relative to titles
OPACITY = 0.7  # of the background of a label
LONGEST_SIDES = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}  # pixels that these formats permit
POSITION_COST = 0.02  # of each later candidate position of a label, in hidden fractions of a box


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray | None,
    class_names: Sequence[str],
) -> np.ndarray:
    """Draw boxes with class names, and scores if given, on a copy of an image; the highest scores are on top.

    image [H, W, 3] uint8 RGB; boxes [D, 4] xyxy in its pixels; classes [D]; scores [D]; D = 0 is legal.
    """
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    labels = [class_names[classes[i]] + ("" if scores is None else f" {scores[i]:.2f}") for i in order]
    return draw_boxes(image, boxes[order], classes[order], labels)


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Concatenate two images [H, W, 3] of the same size horizontally, with a gap: [H, 2 W + gap, 3]."""
    return np.concatenate([left, np.full((len(left), GAP, 3), WHITE, np.uint8), right], axis=1)


def draw_strip(images: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Concatenate B > 0 images [H, W, 3] uint8 RGB of the same size horizontally, each below its label."""
    columns = [add_title(image, label) for image, label in zip(images, labels, strict=True)]
    gap = np.full((len(columns[0]), GAP, 3), WHITE, np.uint8)
    return np.concatenate([part for column in columns for part in (column, gap)][:-1], axis=1)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an RGB image atomically, in the format given by the suffix of the path.

    An image that is too large for the format is scaled down, which is logged. Raises UserError if it cannot be written.
    """
    limit, longer_side = LONGEST_SIDES.get(path.suffix.lower(), math.inf), max(image.shape[:2])
    if longer_side > limit:
        size = [max(round(side * limit / longer_side), 1) for side in image.shape[1::-1]]
        get_logger().info("%s: scaled down to %d x %d pixels, which %s permits", path, *size, path.suffix)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    is_encoded, encoded = cv2.imencode(path.suffix, image[..., ::-1])
    if not is_encoded:
        height, width = image.shape[:2]
        raise UserError(f"{path}: OpenCV cannot write {width} x {height} pixels as {path.suffix}; use .png")
    with output_file(path) as file:
        file.write(encoded.tobytes())


def class_color(class_index: int) -> Color:
    """Return the color of a class, which is the same in every image."""
    value = 1.0 if class_index % 2 == 0 else 0.75
    red, green, blue = colorsys.hsv_to_rgb(class_index * GOLDEN_RATIO % 1, 0.9, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_overlay(
    image: np.ndarray,
    truth: tuple[np.ndarray, np.ndarray],
    predicted: tuple[np.ndarray, np.ndarray],
    subject: np.ndarray | None = None,
) -> np.ndarray:
    """Draw ground truth in dashed lines and predictions in solid lines of their class's color.

    image [H, W, 3] uint8 RGB; truth and predicted: boxes [B, 4] and classes [B]; subject [4]: one of the boxes, which
    gets a black and white frame. All boxes are xyxy in pixels and may reach beyond the image.
    """
    canvas = np.array(image, np.uint8, order="C")
    if subject is not None:
        for color, thickness in ((BLACK, 9), (WHITE, 6)):
            _rectangle(canvas, np.rint(subject).astype(int).tolist(), color, thickness)
    for (boxes, classes), dash in ((truth, DASH), (predicted, 0)):
        for box, k in zip(np.rint(boxes).astype(int).tolist(), classes.tolist(), strict=True):
            _rectangle(canvas, box, class_color(k), 2, dash)
    return canvas


def draw_boxes(image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Draw all boxes, then all labels over them; later ones cover earlier ones."""
    canvas = np.array(image, np.uint8, order="C")
    corners = _corners(boxes, canvas)
    colors = [class_color(k) for k in classes.tolist()]
    for box, color in zip(corners, colors, strict=True):
        _rectangle(canvas, box, color, max(1, round(_mean_side(canvas) / 350)))
    sizes = [_label_size(canvas, label) for label in labels]
    positions = place_labels(np.array(corners).reshape(-1, 4), np.array(sizes).reshape(-1, 2), canvas.shape[:2])
    for (left, top), color, label in zip(positions, colors, labels, strict=True):
        _label(canvas, label, left, top, color)
    return canvas


def place_labels(corners: np.ndarray, sizes: np.ndarray, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the position (left, top) of the label of each box, chosen to hide little; the last box is placed first.

    corners: [B, 4] xyxy; sizes: [B, 2] (w, h) of the labels; image_size (h, w). The candidates are positions at the
    corners of the box, above it first. The cost of one is the sum of the hidden fractions of all boxes, so that small
    boxes stay visible, plus twice the fraction of the label that covers other labels, plus POSITION_COST times its
    rank. Labels are shifted into the image if it is large enough.
    """
    height, width = image_size
    placed: list[np.ndarray] = []
    positions: list[tuple[int, int]] = []
    areas = (np.maximum(corners[:, 2:] - corners[:, :2], 1)).prod(axis=1)
    for (x1, y1, x2, y2), (w, h) in zip(corners[::-1].tolist(), sizes[::-1].tolist(), strict=True):
        candidates = [
            (x1, y1 - h), (x2 + 1 - w, y1 - h), (x1, y2 + 1), (x2 + 1 - w, y2 + 1), (x2 + 1, y1), (x1 - w, y1), (x1, y1)
        ]  # fmt: skip
        tops_left = np.clip(candidates, 0, [max(width - w, 0), max(height - h, 0)])
        rectangles = np.concatenate([tops_left, tops_left + np.array([w, h])], axis=1)
        cost = POSITION_COST * np.arange(len(candidates)) + (_intersection_areas(rectangles, corners) / areas).sum(
            axis=1
        )
        if placed:
            cost += 2 * _intersection_areas(rectangles, np.array(placed)).sum(axis=1) / (w * h)
        best = int(np.argmin(cost))
        placed.append(rectangles[best])
        positions.append((int(tops_left[best, 0]), int(tops_left[best, 1])))
    return positions[::-1]


def _intersection_areas(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection areas [A, B] of rectangles [A, 4] and [B, 4] xyxy."""
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    return np.maximum(high - low, 0).prod(axis=-1)


def _corners(boxes: np.ndarray, canvas: np.ndarray) -> list[list[int]]:
    """Return boxes [B, 4] rounded to integer pixels and clipped to an image."""
    height, width = canvas.shape[:2]
    return np.rint(boxes).astype(int).clip(0, [width - 1, height - 1] * 2).tolist()


def _rectangle(canvas: np.ndarray, box: list[int], color: Color, thickness: int, dash: int = 0) -> None:
    """Draw the outline of a box; dash: the length of dashes and gaps in pixels, 0 for a solid line."""
    x1, y1, x2, y2 = box
    if not dash:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness)
        return
    for x in range(x1, x2 + 1, 2 * dash):
        for y in (y1, y2):
            cv2.line(canvas, (x, y), (min(x + dash - 1, x2), y), color, thickness)
    for y in range(y1, y2 + 1, 2 * dash):
        for x in (x1, x2):
            cv2.line(canvas, (x, y), (x, min(y + dash - 1, y2)), color, thickness)


def _label(canvas: np.ndarray, text: str, left: int, top: int, color: Color) -> None:
    """Draw a text on a translucent background of the size that `_label_size` returns."""
    scale = _text_scale(canvas, text, LABEL_SCALE)
    width, height = _label_size(canvas, text)
    background = canvas[top : top + height, left : left + width]
    background[:] = np.rint((1 - OPACITY) * background + OPACITY * np.array(color))
    is_bright = background.mean(axis=(0, 1)) @ (0.299, 0.587, 0.114) > 128
    above = _text_size(text, scale)[1]
    _write(canvas, text, left + PADDING, top + PADDING + above, scale, BLACK if is_bright else WHITE)


def _label_size(canvas: np.ndarray, text: str) -> tuple[int, int]:
    """Return the width and height of a label in pixels."""
    width, above, below = _text_size(text, _text_scale(canvas, text, LABEL_SCALE))
    return width + 2 * PADDING, above + below + 2 * PADDING


def add_title(image: np.ndarray, title: str) -> np.ndarray:
    """Add a line of text above an image; the height of the line depends only on the size of the image."""
    _, above, below = _text_size("Ag,", _text_scale(image))
    strip = np.full((above + below + 4 * PADDING, image.shape[1], 3), WHITE, np.uint8)
    _write(strip, title, PADDING, 2 * PADDING + above, _text_scale(image, title), BLACK)
    return np.concatenate([strip, image], axis=0)


def _write(canvas: np.ndarray, text: str, x: int, baseline: int, scale: float, color: Color) -> None:
    cv2.putText(canvas, text, (x, baseline), FONT, scale, color, _text_thickness(scale), cv2.LINE_AA)


def _text_size(text: str, scale: float) -> tuple[int, int, int]:
    """Return the width of a text, and its height above and below the baseline, in pixels."""
    (width, above), below = cv2.getTextSize(text, FONT, scale, _text_thickness(scale))
    return width, above, below


def _text_scale(image: np.ndarray, text: str = "", relative: float = 1.0) -> float:
    """Return the OpenCV font scale for an image of this size, reduced if the text would be wider than the image."""
    scale = max(MIN_SCALE, relative * _mean_side(image) / 1000)
    while scale > 0.1 and _text_size(text, scale)[0] + 2 * PADDING > image.shape[1]:
        scale *= 0.9
    return scale


def _text_thickness(scale: float) -> int:
    return max(1, round(1.3 * scale))


def _mean_side(image: np.ndarray) -> float:
    """Return the geometric mean of the height and width of an image."""
    return math.sqrt(image.shape[0] * image.shape[1])
