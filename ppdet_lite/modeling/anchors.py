"""Anchors: one or more sizes per pyramid level, and the same aspect ratios on all levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import paddle
from paddle import Tensor
from pydantic import Field

from ppdet_lite.config.constrained_types import Number, PositiveFloat
from ppdet_lite.config.registry import register
from ppdet_lite.core.errors import IncompatibleArguments

LevelSizes = Annotated[Sequence[PositiveFloat], Field(min_length=1)]


@register
@dataclass(frozen=True)
class AnchorGenerator:
    """Generates boxes of fixed shapes centered on a grid (Faster R-CNN, section 3.1.1; FPN, section 4.1).

    Args:
        sizes: side in pixels of the square anchor of each level, fine to coarse; or a list of sides for each level, of
            the same length for all levels, such as [[32, 64, 128, 256, 512]] for a single level.
        ratios: height / width of each anchor; the area is always size^2.
        offset: position of an anchor's center in its cell, in strides; 0 in detectron2 and torchvision.
        measured_strides: compute the stride of a level on each axis as padded image size / feature map size, rounded
            down, as in torchvision. It differs from the nominal stride if the size of a coarser map was rounded up.
        rounded: round the corners of the base anchors to whole pixels, as only torchvision does.
    """

    sizes: Annotated[Sequence[PositiveFloat | LevelSizes], Field(min_length=1)] = (32, 64, 128, 256, 512)
    ratios: Annotated[Sequence[PositiveFloat], Field(min_length=1)] = (0.5, 1.0, 2.0)
    offset: Number = 0.0
    rounded: bool = False
    measured_strides: bool = False

    def __post_init__(self) -> None:
        if len({np.size(sizes) for sizes in self.sizes}) > 1:
            counts = ", ".join(str(np.size(sizes)) for sizes in self.sizes)
            raise IncompatibleArguments("sizes", f"every level needs the same number of sizes, not {counts}")

    @property
    def per_cell(self) -> int:
        """Number of anchors at each cell of a feature map."""
        return np.size(self.sizes[0]) * len(self.ratios)

    def base_anchors(self, sizes: float | Sequence[float]) -> np.ndarray:
        """Return the anchors of one level centered at the origin, ordered by size, then ratio: float32 [A, 4]."""
        size, ratios = np.reshape(sizes, (-1, 1)).astype(np.float64), np.asarray(self.ratios, dtype=np.float64)
        widths, heights = (size / np.sqrt(ratios)).ravel(), (size * np.sqrt(ratios)).ravel()
        boxes = np.stack([-widths, -heights, widths, heights], axis=1) / 2
        return (boxes.round() if self.rounded else boxes).astype(np.float32)

    def __call__(self, features: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
        """Return the anchors of each level [H*W*A, 4] in network-input pixels, ordered by row, column, size, ratio."""
        if not len(features) == len(strides) == len(self.sizes):
            raise ValueError(f"{len(self.sizes)} anchor sizes for {len(features)} pyramid levels")
        anchors = []
        for feature, nominal, level_sizes in zip(features, strides, self.sizes):
            stride = [nominal, nominal]
            if self.measured_strides:
                stride = [features[0].shape[axis] * strides[0] // feature.shape[axis] for axis in (2, 3)]
            anchors.append(self._level(feature.shape[2], feature.shape[3], stride, level_sizes))
        return anchors

    def _level(self, height: int, width: int, stride: Sequence[int], sizes: float | Sequence[float]) -> Tensor:
        base = paddle.to_tensor(self.base_anchors(sizes))
        x = (paddle.arange(width, dtype="float32") + self.offset) * stride[1]
        y = (paddle.arange(height, dtype="float32") + self.offset) * stride[0]
        shift_y, shift_x = paddle.meshgrid(y, x)
        shifts = paddle.stack([shift_x, shift_y, shift_x, shift_y], axis=-1).reshape([-1, 1, 4])
        return (shifts + base).reshape([-1, 4])
