"""Random crops of an image, and the objects that remain in them."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator

from ppdet_lite.config.constrained_types import Pixels, PositiveFloat, PositiveFraction
from ppdet_lite.config.registry import register
from ppdet_lite.data.annotations.dataset import Objects

MAX_ATTEMPTS = 50  # windows drawn before the image is left uncropped
MIN_SIDE = 1.0  # pixels of the network's input; objects cut to less are dropped


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the smaller number first")
    return pair


class Window(NamedTuple):
    """A rectangular part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Return the window of an image [H, W, ...] as a view [height, width, ...]."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def clip_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Convert xyxy boxes [G, 4] to the window's coordinates and clip them to it."""
        moved = boxes - np.array([self.left, self.top] * 2, np.float32)
        return np.clip(moved, 0, np.array([self.width, self.height] * 2, np.float32))


@register
@dataclass(frozen=True)
class RandomCrop:
    """Crop a random window that keeps at least one object, if the image has any that is not a crowd region.

    An object is kept if its center lies in the window, and is clipped to it (as in SSD, Liu et al. 2016, section 2.2).
    A crowd region is kept if it overlaps the window. If MAX_ATTEMPTS windows keep no object, the image is not cropped.

    probability: probability of cropping an image.
    sides: range of the window's height and width, drawn independently, as fractions of the image's.
    aspect: range of the window's width / height.
    """

    probability: PositiveFraction = 0.5
    sides: Annotated[tuple[PositiveFraction, PositiveFraction], AfterValidator(_ascending)] = (0.3, 1.0)
    aspect: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)] = (0.5, 2.0)

    def __call__(self, image: np.ndarray, objects: Objects, rng: np.random.Generator) -> tuple[np.ndarray, Objects]:
        """Crop an image [H, W, 3]; return a view of it and the objects that are kept, in its coordinates."""
        if rng.random() >= self.probability:
            return image, objects
        needs_object = not objects.is_crowd.all()
        for _ in range(MAX_ATTEMPTS):
            window = self.draw(image.shape[:2], rng)
            if not self.aspect[0] <= window.width / window.height <= self.aspect[1]:
                continue
            is_kept = kept_objects(objects, window)
            if not needs_object or (is_kept & ~objects.is_crowd).any():
                kept = Objects(*(column[is_kept] for column in objects))
                return window.crop(image), kept._replace(boxes=window.clip_boxes(kept.boxes))
        return image, objects

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Window:
        """Draw a window of an image of the given size (h, w)."""
        height, width = (max(round(side * fraction), 1) for side, fraction in zip(size, rng.uniform(*self.sides, 2)))
        return _random_window(size, height, width, rng)


def _random_window(size: tuple[int, int], height: int, width: int, rng: np.random.Generator) -> Window:
    top, left = rng.integers(0, [size[0] - height, size[1] - width], endpoint=True).tolist()
    return Window(top, left, height, width)


def kept_objects(objects: Objects, window: Window) -> np.ndarray:
    """Return a mask [G] of the objects whose center lies in a window and of the crowd regions that overlap it."""
    low, high = np.array([window.left, window.top]), np.array([window.left + window.width, window.top + window.height])
    starts, ends = objects.boxes[:, :2], objects.boxes[:, 2:]
    centers = (starts + ends) / 2
    center_inside = ((centers >= low) & (centers < high)).all(1)
    return np.where(objects.is_crowd, ((starts < high) & (ends > low)).all(1), center_inside)


@register
@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste", section 3): the scale of the image varies, the size
    of the network's input does not.

    The image is resized, with its aspect ratio kept, by a random factor relative to the scale that just fits it into
    `size`. A larger image is cropped to `size` at a random position; a smaller one is padded on the right and at the
    bottom. Objects are clipped to the crop, and dropped if less than a pixel remains. An image may lose all objects.

    size: (height, width) of the network's input, which is then padded to multiples of `preprocess.stride`.
    scales: range of the random factor.
    """

    size: tuple[Pixels, Pixels] = (1024, 1024)
    scales: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)] = (0.1, 2.0)

    def draw_ratio(self, size: tuple[int, int], rng: np.random.Generator) -> float:
        """Draw the ratio resized / original for an image of the given size (h, w)."""
        return min(self.size[0] / size[0], self.size[1] / size[1]) * rng.uniform(*self.scales)

    def draw_window(self, size: tuple[int, int], rng: np.random.Generator) -> Window:
        """Draw the window to crop from a resized image of the given size (h, w)."""
        return _random_window(size, min(size[0], self.size[0]), min(size[1], self.size[1]), rng)


def clip_objects(objects: Objects, window: Window) -> Objects:
    """Clip objects to a window and drop those with less than a pixel of height or width left."""
    boxes = window.clip_boxes(objects.boxes)
    kept = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(1)
    return Objects(boxes[kept], objects.classes[kept], objects.is_crowd[kept])
