"""Random augmentation of a training image and its objects, with one random generator per sample.

The order is: colors, crop, resize (to a short side or by large-scale jitter), horizontal flip, crop of the
large-scale jitter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import Field

from ppdet_lite.config.constrained_types import Fraction, Pixels
from ppdet_lite.config.registry import register
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.color_jitter import ColorJitter
from ppdet_lite.data.loading.crops import RandomCrop, ScaleJitter, clip_objects
from ppdet_lite.data.loading.transforms import Preprocess, Sample, flip_boxes


@register
@dataclass(frozen=True)
class Augment:
    """Random augmentation for training.

    short_sides: candidates for the length of the short side; None uses the one of `Preprocess`.
    flip: probability of a horizontal flip.
    sampling: with short_sides, "choice" draws one of them; "range" draws an integer uniformly between the smallest and
        the largest of them.
    color_jitter, crop: applied to the image in its original resolution.
    scale_jitter: resizes by a factor from a wide range, into a network input of fixed size. It replaces short_sides,
        which must then be null, and the short and long side of `Preprocess`.
    """

    short_sides: Annotated[Sequence[Pixels], Field(min_length=1)] | None = None
    flip: Fraction = 0.5
    sampling: Literal["choice", "range"] = "choice"
    color_jitter: ColorJitter | None = None
    crop: RandomCrop | None = None
    scale_jitter: ScaleJitter | None = None

    def __post_init__(self) -> None:
        if self.scale_jitter is not None and self.short_sides is not None:
            raise UserError("cannot be combined with scale_jitter; set one of the two to null", key="short_sides")

    def draw(self, rng: np.random.Generator) -> tuple[int | None, bool]:
        """Draw a short side (None: the one of `Preprocess`) and whether to flip."""
        flipped = bool(rng.random() < self.flip)
        if self.short_sides is None:
            return None, flipped
        if self.sampling == "range":
            return int(rng.integers(min(self.short_sides), max(self.short_sides), endpoint=True)), flipped
        return int(rng.choice(self.short_sides)), flipped


def train_sample(
    dataset: CocoDataset,
    index: int,
    preprocess: Preprocess,
    augment: Augment,
    rng: np.random.Generator,
    keep_original: bool = False,
) -> Sample:
    """Load an image with its objects and augment both. All randomness comes from rng.

    With keep_original the sample also contains `original_image` (uint8 [H, W, 3], after colors and crop, but not
    resized and never flipped) and `flipped`. This is not supported with scale_jitter.
    """
    original, objects = dataset.load(index), dataset.annotations(index)
    short_side, flipped = augment.draw(rng)
    if augment.color_jitter is not None:
        original = augment.color_jitter(original, rng)
    if augment.crop is not None:
        original, objects = augment.crop(original, objects, rng)
    jitter = augment.scale_jitter
    if jitter is None:
        image, scale = preprocess.resize(original, short_side)
    else:
        image, scale = preprocess.rescale(original, jitter.draw_ratio(original.shape[:2], rng))
    height, width = image.shape[:2]
    boxes = np.minimum(objects.boxes * np.tile(scale[::-1], 2), np.array([width, height, width, height], np.float32))
    if flipped:
        image, boxes = cv2.flip(image, 1), flip_boxes(boxes, width)
    objects = objects._replace(boxes=boxes)
    if jitter is not None:
        window = jitter.draw_window((height, width), rng)
        image, objects = window.crop(image), clip_objects(objects, window)
    sample = {
        "image": image,
        "image_id": dataset.info(index).id,
        "image_size": np.array(image.shape[:2], np.float32),
        "original_size": np.array(original.shape[:2], np.float32),
        "scale": scale,
        "gt_boxes": objects.boxes,
        "gt_classes": objects.classes,
        "gt_is_crowd": objects.is_crowd,
    }
    if jitter is not None:
        sample["canvas"] = jitter.size
    if keep_original:
        sample |= {"original_image": original, "flipped": flipped}
    return sample
