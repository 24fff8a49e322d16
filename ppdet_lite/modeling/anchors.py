"""Anchors of a feature pyramid: one size per level, the same ratios on all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import paddle
from paddle import Tensor
from pydantic import Field, PositiveFloat

from ppdet_lite.config.registry import register


@register
@dataclass(frozen=True)
class AnchorGenerator:
    """Boxes of fixed shapes centred on a grid (Faster R-CNN, section 3.1.1; FPN, section 4.1).

    Args:
        sizes: side in pixels of the square anchor, one per pyramid level, fine to coarse.
        ratios: height / width of each anchor; the area stays size^2.
        offset: where in its cell an anchor's centre lies, in strides. detectron2 and torchvision: 0.
        rounded: round the corners of the base anchors to whole pixels, as torchvision does; the others do not.
    """

    sizes: Annotated[Sequence[PositiveFloat], Field(min_length=1)] = (32, 64, 128, 256, 512)
    ratios: Annotated[Sequence[PositiveFloat], Field(min_length=1)] = (0.5, 1.0, 2.0)
    offset: float = 0.0
    rounded: bool = False

    @property
    def per_cell(self) -> int:
        """Anchors at each cell of each level."""
        return len(self.ratios)

    def base_anchors(self, size: float) -> np.ndarray:
        """Anchors of one level around the origin: float32 [A, 4]."""
        ratios = np.asarray(self.ratios, dtype=np.float64)
        widths, heights = size / np.sqrt(ratios), size * np.sqrt(ratios)
        boxes = np.stack([-widths, -heights, widths, heights], axis=1) / 2
        return (boxes.round() if self.rounded else boxes).astype(np.float32)

    def __call__(self, features: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
        """Anchors of each level [H*W*A, 4] in network-input pixels; cells row by row, ratios innermost."""
        if not len(features) == len(strides) == len(self.sizes):
            raise ValueError(f"{len(self.sizes)} anchor sizes for {len(features)} pyramid levels")
        return [
            self._level(feature.shape[2], feature.shape[3], stride, size)
            for feature, stride, size in zip(features, strides, self.sizes)
        ]

    def _level(self, height: int, width: int, stride: int, size: float) -> Tensor:
        base = paddle.to_tensor(self.base_anchors(size))
        x = (paddle.arange(width, dtype="float32") + self.offset) * stride
        y = (paddle.arange(height, dtype="float32") + self.offset) * stride
        shift_y, shift_x = paddle.meshgrid(y, x)
        shifts = paddle.stack([shift_x, shift_y, shift_x, shift_y], axis=-1).reshape([-1, 1, 4])
        return (shifts + base).reshape([-1, 4])
