"""Enlarged crops of an image around a box."""

from typing import NamedTuple

import cv2
import numpy as np

MAX_ZOOM = 4.0


class Crop(NamedTuple):
    """A resized part of an image."""

    pixels: np.ndarray  # [h, w, 3] uint8 RGB
    left: int  # position in the original image, pixels
    top: int
    zoom: float  # resized / original

    def convert(self, boxes: np.ndarray) -> np.ndarray:
        """Convert xyxy boxes [..., 4] from original pixels to those of the crop."""
        return (boxes - [self.left, self.top, self.left, self.top]) * self.zoom

    def overlaps(self, boxes: np.ndarray) -> np.ndarray:
        """Return which xyxy boxes [B, 4] in pixels of the crop are at least partly inside it, bool [B]."""
        return np.all((boxes[:, :2] < self.pixels.shape[1::-1]) & (boxes[:, 2:] > 0), axis=1)


def crop_around(image: np.ndarray, limits: tuple[int, int, int, int], longer_side: int) -> Crop:
    """Crop an image to (left, top, right, bottom) and resize it to a longer side, but at most by MAX_ZOOM."""
    left, top, right, bottom = limits
    zoom = min(longer_side / max(right - left, bottom - top), MAX_ZOOM)
    interpolation = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    size = [max(round(side * zoom), 1) for side in (right - left, bottom - top)]
    pixels = cv2.resize(image[top:bottom, left:right], size, interpolation=interpolation)
    return Crop(pixels, left, top, zoom)


def limits_around(
    xywh: np.ndarray | list[float], size: tuple[int, int], context: float, min_side: float
) -> tuple[int, int, int, int]:
    """Return a square (left, top, right, bottom) around a box, clipped to an image of size (h, w), in whole pixels.

    The side is `context` times the longer side of the box, but at least min_side pixels. For a box outside the image,
    the square is around the nearest point of the image.
    """
    height, width = size
    x, y, w, h = map(float, xywh)
    half = max(context * max(w, h), min_side) / 2
    center_x, center_y = min(max(x + w / 2, 0), width), min(max(y + h / 2, 0), height)
    left, right = int(max(center_x - half, 0)), int(np.ceil(min(center_x + half, width)))
    top, bottom = int(max(center_y - half, 0)), int(np.ceil(min(center_y + half, height)))
    return left, top, right, bottom
