"""Windows of an image, drawn at random, and what stays of its objects in them."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from ppdet_lite.config.registry import register
from ppdet_lite.data.annotations.dataset import Objects

ATTEMPTS = 50  # windows that are drawn until one fits
MIN_SIDE = 1.0  # pixels of the network's input; less of an object is nothing to learn from


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the smaller number first")
    return pair


Share = Annotated[float, Field(gt=0, le=1)]


class Window(NamedTuple):
    """A part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """The pixels [height, width, ...] of an image, a view."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def clip(self, boxes: np.ndarray) -> np.ndarray:
        """Move boxes [G, 4] to the window's corner and cut off what is outside."""
        moved = boxes - np.array([self.left, self.top] * 2, np.float32)
        return np.clip(moved, 0, np.array([self.width, self.height] * 2, np.float32))


@register
@dataclass(frozen=True)
class RandomCrop:
    """A window of the image in which at least one of its objects stays, if it has any.

    An object stays where its centre is in the window, cut off at the window's border (as in SSD, Liu et al. 2016,
    section 2.2); a crowd region where it reaches into it. Where 50 windows show no object, the image stays whole.

    probability: of cropping at all.
    sides: range of height and of width, drawn apart, as shares of the image's.
    aspect: range of the window's width / height.
    """

    probability: Annotated[float, Field(gt=0, le=1)] = 0.5
    sides: Annotated[tuple[Share, Share], AfterValidator(_ascending)] = (0.3, 1.0)
    aspect: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)] = (0.5, 2.0)

    def __call__(self, image: np.ndarray, objects: Objects, rng: np.random.Generator) -> tuple[np.ndarray, Objects]:
        """Crop an image [H, W, 3]; return the view and the objects that stay, in its pixels."""
        if rng.random() >= self.probability:
            return image, objects
        needed = not objects.is_crowd.all()
        for _ in range(ATTEMPTS):
            window = self.draw(image.shape[:2], rng)
            if not self.aspect[0] <= window.width / window.height <= self.aspect[1]:
                continue
            stays = staying(objects, window)
            if not needed or (stays & ~objects.is_crowd).any():
                kept = Objects(*(column[stays] for column in objects))
                return window.of(image), kept._replace(boxes=window.clip(kept.boxes))
        return image, objects

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Window:
        """Draw a window of an image of a size (h, w)."""
        height, width = (max(round(side * share), 1) for side, share in zip(size, rng.uniform(*self.sides, 2)))
        top, left = rng.integers(0, [size[0] - height, size[1] - width], endpoint=True).tolist()
        return Window(top, left, height, width)


def staying(objects: Objects, window: Window) -> np.ndarray:
    """Which objects [G] bool have their centre in a window, or of crowd regions a part."""
    low, high = np.array([window.left, window.top]), np.array([window.left + window.width, window.top + window.height])
    starts, ends = objects.boxes[:, :2], objects.boxes[:, 2:]
    centres = (starts + ends) / 2
    centred = ((centres >= low) & (centres < high)).all(1)
    return np.where(objects.is_crowd, ((starts < high) & (ends > low)).all(1), centred)


@register
@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste", section 3): the size of the image varies, not that
    of the network's input.

    The image is resized, its aspect kept, to a drawn multiple of what just fits into `size`. A window of that size is
    cut out of what is larger, at random; what is smaller is padded right and bottom. Objects are cut off at the
    window's border, and left out where less than a pixel stays; an image may lose all.

    size: (height, width) of the network's input, padded further to `preprocess.stride`.
    scales: range of the multiple.
    """

    size: tuple[PositiveInt, PositiveInt] = (1024, 1024)
    scales: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)] = (0.1, 2.0)

    def draw_ratio(self, size: tuple[int, int], rng: np.random.Generator) -> float:
        """Draw resized / original of an image of a size (h, w)."""
        return min(self.size[0] / size[0], self.size[1] / size[1]) * rng.uniform(*self.scales)

    def draw_window(self, size: tuple[int, int], rng: np.random.Generator) -> Window:
        """Draw a window of a resized image of a size (h, w)."""
        height, width = (min(side, limit) for side, limit in zip(size, self.size))
        top, left = rng.integers(0, [size[0] - height, size[1] - width], endpoint=True).tolist()
        return Window(top, left, height, width)


def cut(objects: Objects, window: Window) -> Objects:
    """The objects as far as they are in a window, without those of which less than a pixel is."""
    boxes = window.clip(objects.boxes)
    stays = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(1)
    return Objects(boxes[stays], objects.classes[stays], objects.is_crowd[stays])
