"""Conversion of images to network input: resize, flip, normalize, and pad into a batch.

Training, evaluation, inference and export share one specification of it, `Preprocess`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from ppdet_lite.config.constrained_types import Number, Pixels, PositiveFloat
from ppdet_lite.config.registry import register
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset

Sample = dict[str, Any]  # both are described in docs/architecture.md
Batch = dict[str, Any]

_INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


@register
@dataclass(frozen=True)
class Preprocess:
    """Conversion of an image to network input. It covers the variants of other projects, for their pretrained weights.

    short_side, long_side: an image is scaled, with its aspect ratio kept, to the largest size whose short side is at
        most short_side and whose long side is at most long_side.
    mean, std: per channel, in the order of `channels`, for pixels in 0..pixel_range.
    stride: the height and width of batches are padded to multiples of it.
    channels, pixel_range: rgb and 1, except for models converted from Caffe: bgr and 255.
    sizing: `exact` samples at the exact scale and rounds only the number of pixels. `unrounded` does so too, and
        detection clips proposals to the size before rounding (PaddleDetection up to 2.6.0; later: `exact`). `nearest`
        (detectron2, mmdetection) and `floor` (torchvision) round the size and stretch the image to it.
    interpolation: `linear`; `cubic` (PaddleDetection); `antialias`: linear over all source pixels when an image is
        downscaled (detectron2, using Pillow).
    resize_in: `float` does not round the resized pixels to integers (torchvision).
    """

    short_side: Pixels = 800
    long_side: Pixels = 1333
    mean: tuple[Number, Number, Number] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    stride: Pixels = 32
    channels: Literal["rgb", "bgr"] = "rgb"
    pixel_range: Literal[1, 255] = 1
    sizing: Literal["exact", "unrounded", "nearest", "floor"] = "exact"
    interpolation: Literal["linear", "cubic", "antialias"] = "linear"
    resize_in: Literal["uint8", "float"] = "uint8"

    def __post_init__(self) -> None:
        if self.short_side > self.long_side:
            raise UserError(
                f"{self.short_side} is above long_side {self.long_side} and would never apply; "
                f"{self.long_side} gives the same sizes, or raise long_side",
                key="short_side",
            )
        if self.interpolation == "antialias" and (self._keeps_ratio or self.resize_in == "float"):
            raise UserError("antialias requires sizing nearest or floor, and resize_in uint8", key="interpolation")

    def resize(self, image: np.ndarray, short_side: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Resize an image [H, W, 3] uint8; return it (float32 with resize_in float) and its scale [2] float32 (y, x).

        short_side overrides the configured one, for multi-scale training.
        """
        return self.rescale(image, self._ratio(image.shape[0], image.shape[1], short_side))

    def rescale(self, image: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
        """Resize an image by a ratio resized / original; arguments and results as in `resize`."""
        height, width = image.shape[:2]
        if self.resize_in == "float":
            image = image.astype(np.float32)
        if not self._keeps_ratio:
            new_height, new_width = self._rescaled(height, width, ratio)
            scale = np.array([new_height / height, new_width / width], np.float32)
            return self._stretch(image, (new_width, new_height)), scale
        if ratio != 1:
            # OpenCV would round a side of at most half a pixel to 0, so the size is passed instead of the ratio.
            vanishes = min(height, width) * ratio <= 0.5
            size = self._rescaled(height, width, ratio)[::-1] if vanishes else None
            image = cv2.resize(image, size, fx=ratio, fy=ratio, interpolation=_INTERPOLATIONS[self.interpolation])
        return image, np.array([ratio, ratio], np.float32)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size (h, w) of the image that `resize` returns for an image of the given size."""
        return self._rescaled(height, width, self._ratio(height, width))

    def clip_size(self, height: int, width: int) -> np.ndarray:
        """Return the size [2] float32 (h, w) to which proposals are clipped in the image that `resize` returns."""
        ratio = self._ratio(height, width)
        size = (height * ratio, width * ratio) if self.sizing == "unrounded" else self._rescaled(height, width, ratio)
        return np.array(size, np.float32)

    def padded_size(self, size: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return a size (h, w) rounded up to multiples of the stride."""
        return -(-np.asarray(size) // self.stride) * self.stride

    @property
    def _keeps_ratio(self) -> bool:
        """Whether both sides are scaled by exactly the same ratio."""
        return self.sizing in ("exact", "unrounded")

    def _rescaled(self, height: int, width: int, ratio: float) -> tuple[int, int]:
        if self._keeps_ratio:  # OpenCV rounds halves to even, as Python does
            return max(round(height * ratio), 1), max(round(width * ratio), 1)
        shift = 0.5 if self.sizing == "nearest" else 0.0
        return max(int(height * ratio + shift), 1), max(int(width * ratio + shift), 1)

    def _ratio(self, height: int, width: int, short_side: int | None = None) -> float:
        return min((short_side or self.short_side) / min(height, width), self.long_side / max(height, width))

    def _stretch(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if image.shape[1::-1] == size:
            return image
        if self.interpolation == "antialias":
            from PIL import Image  # installed with Paddle; required only for detectron2's models

            return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        return cv2.resize(image, size, interpolation=_INTERPOLATIONS[self.interpolation])

    def normalize(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Convert RGB [H, W, 3] to float32 [3, H, W] = (x / 255 * pixel_range - mean) / std, written to out if given.

        For uint8 a lookup table with 256 entries per channel is exact and takes half the time of cv2's blobFromImage.
        """
        planes = np.empty((3, *image.shape[:2]), np.float32) if out is None else out
        channels = cv2.split(image)
        channels = channels[::-1] if self.channels == "bgr" else channels
        if image.dtype == np.uint8:
            for channel, table, plane in zip(channels, self._tables, planes, strict=True):
                cv2.LUT(channel, table, dst=plane)
            return planes
        for channel, mean, std, plane in zip(channels, self.mean, self.std, planes, strict=True):
            plane[:] = (channel * (self.pixel_range / 255) - mean) / std
        return planes

    def denormalize(self, planes: np.ndarray) -> np.ndarray:
        """Convert normalized [..., 3, H, W] back to pixels, RGB uint8 [..., H, W, 3]."""
        pixels = np.moveaxis(planes, -3, -1) * np.array(self.std) + np.array(self.mean)
        pixels = pixels[..., ::-1] if self.channels == "bgr" else pixels
        return np.rint(pixels * (255 / self.pixel_range)).clip(0, 255).astype(np.uint8)

    def with_rgb_input(self) -> "Preprocess":
        """Return the preprocessing for an exported network that takes RGB and reorders the channels itself."""
        if self.channels == "rgb":
            return self
        return replace(self, channels="rgb", mean=self.mean[::-1], std=self.std[::-1])

    @cached_property
    def _tables(self) -> np.ndarray:
        """The normalized value [3, 256] float32 of every pixel value, per channel."""
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        return ((np.arange(256) / 255 * self.pixel_range - mean) / std).astype(np.float32)


class View(NamedTuple):
    """One variant of an image in test-time augmentation."""

    preprocess: Preprocess
    flipped: bool = False

    def sample(self, dataset: CocoDataset, index: int) -> Sample:
        """Load an image and preprocess it for this view."""
        return image_sample(dataset.load(index), self.preprocess, dataset.info(index).id, self.flipped)


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Flip xyxy boxes [G, 4] horizontally in an image of the given width in pixels."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def image_sample(image: np.ndarray, preprocess: Preprocess, image_id: int, flipped: bool = False) -> Sample:
    """Return a sample without objects from an RGB uint8 image [H, W, 3], flipped horizontally if requested.

    The image is flipped before it is resized: with `exact` sizing its right border may be a fraction of a pixel beyond
    the last one, so that a flipped network input would not begin at the border.
    """
    image = cv2.flip(image, 1) if flipped else image
    resized, scale = preprocess.resize(image)
    return {
        "image": resized,
        "image_id": image_id,
        "image_size": preprocess.clip_size(*image.shape[:2]),
        "original_size": np.array(image.shape[:2], np.float32),
        "scale": scale,
        "flipped": flipped,
    }


def collate(samples: Sequence[Sample], preprocess: Preprocess) -> Batch:
    """Normalize samples and stack them into a batch, zero-padded on the right and at the bottom.

    The padded size is a multiple of the stride, and at least the `canvas` (h, w) of samples that have one. The batch
    contains `targets` if the samples have objects, `original_images` (list of [3, H, W], also normalized) if they have
    an `original_image`, and `flipped` (bool [N]) if they have `flipped`.
    """
    sizes = [sample.get("canvas", sample["image"].shape[:2]) for sample in samples]
    height, width = preprocess.padded_size(np.max(sizes, axis=0))
    images = np.empty((len(samples), 3, height, width), np.float32)
    for padded, sample in zip(images, samples, strict=True):
        h, w = sample["image"].shape[:2]
        preprocess.normalize(sample["image"], out=padded[:, :h, :w])  # writes in place, which saves a copy
        padded[:, h:], padded[:, :h, w:] = 0, 0
    batch: dict[str, Any] = {
        "images": images,
        "image_sizes": np.stack([sample["image_size"] for sample in samples]),
        "original_sizes": np.stack([sample["original_size"] for sample in samples]),
        "scales": np.stack([sample["scale"] for sample in samples]),
        "image_ids": np.array([sample["image_id"] for sample in samples], np.int64),
    }
    if "gt_boxes" in samples[0]:
        keys = ("boxes", "classes", "is_crowd")
        batch["targets"] = [{key: sample[f"gt_{key}"] for key in keys} for sample in samples]
    if "original_image" in samples[0]:
        batch["original_images"] = [preprocess.normalize(sample["original_image"]) for sample in samples]
    if "flipped" in samples[0]:
        batch["flipped"] = np.array([sample["flipped"] for sample in samples], bool)
    return batch
