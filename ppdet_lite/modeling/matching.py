"""Matching of anchors or RoIs with the ground truth, and sampling of them for the loss."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import paddle
from paddle import Tensor

from ppdet_lite.config.constrained_types import Fraction, PositiveInt
from ppdet_lite.config.registry import register
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.ops.boxes import box_coverage, box_iou
from ppdet_lite.structures import Targets

IGNORE, BACKGROUND, FOREGROUND = -1, 0, 1
MAX_PAIRS = 2**24  # entries of one matrix of IoUs or coverages, 64 MiB in float32


class Matches(NamedTuple):
    """The assignment of A boxes to the G ground-truth boxes of one image."""

    labels: Tensor  # [A] int64: FOREGROUND, BACKGROUND or IGNORE
    target_index: Tensor  # [A] int64: the ground-truth box with the highest IoU; 0 if G = 0


@register
@dataclass(frozen=True)
class Matcher:
    """Assigns boxes to ground-truth boxes by IoU (Faster R-CNN, section 3.1.2).

    Args:
        foreground_iou: boxes with at least this IoU with any ground truth are foreground.
        background_iou: boxes below this IoU with all ground truth are background; boxes in between are ignored.
        keep_best: for each ground-truth box, the boxes with the highest IoU > 0 (ties included) are foreground too.
        crowd_coverage: a box that is not foreground is ignored if at least this fraction of its area is inside a crowd
            region, which then counts neither as an object nor as background. None: crowd regions have no effect, so
            boxes inside them are background (torchvision, detectron2, PaddleDetection, mmdetection as configured).
    """

    foreground_iou: Fraction = 0.5
    background_iou: Fraction = 0.5
    keep_best: bool = False
    crowd_coverage: Fraction | None = 0.5

    def __post_init__(self) -> None:
        if self.background_iou > self.foreground_iou:
            reason = f"{self.background_iou:g} is above foreground_iou {self.foreground_iou:g}"
            raise IncompatibleArguments("background_iou", f"{reason}; it must be at most that")

    @paddle.no_grad()
    def __call__(self, boxes: Tensor, targets: Targets) -> Matches:
        """Match boxes [A, 4] with the ground truth of one image."""
        labels, index = self._match_objects(boxes, targets.boxes)
        if self.crowd_coverage is not None and targets.crowds.shape[0]:
            length = max(MAX_PAIRS // targets.crowds.shape[0], 1)
            starts = range(0, max(boxes.shape[0], 1), length)
            coverage = [box_coverage(boxes[i : i + length], targets.crowds).max(axis=1) for i in starts]
            in_crowd = paddle.concat(coverage) >= self.crowd_coverage
            labels = paddle.where(in_crowd & (labels != FOREGROUND), paddle.full_like(labels, IGNORE), labels)
        return Matches(labels, index)

    def _match_objects(self, boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        if objects.shape[0] == 0:
            zeros = paddle.zeros([boxes.shape[0]], dtype="int64")
            return zeros + BACKGROUND, zeros
        length = max(MAX_PAIRS // objects.shape[0], 1)
        kept = [box_iou(objects, boxes)] if boxes.shape[0] <= length else []

        def iou_parts() -> Iterable[Tensor]:  # a large matrix in parts [G, length], computed again for each use
            starts = range(0, boxes.shape[0], length)
            return kept or (box_iou(objects, boxes[start : start + length]) for start in starts)

        best_parts = [(iou.max(axis=0), iou.argmax(axis=0)) for iou in iou_parts()]
        best, index = (paddle.concat([part[k] for part in best_parts]) for k in range(2))
        foreground = best >= self.foreground_iou
        if self.keep_best:
            highest = paddle.stack([iou.max(axis=1) for iou in iou_parts()]).max(axis=0).unsqueeze(1)
            is_best = [((iou == highest) & (highest > 0)).any(axis=0) for iou in iou_parts()]
            foreground = foreground | paddle.concat(is_best)
        labels = foreground.astype("int64")  # FOREGROUND or BACKGROUND
        undecided = ~foreground & (best >= self.background_iou)
        return paddle.where(undecided, paddle.full_like(labels, IGNORE), labels), index


@register
@dataclass(frozen=True)
class Sampler:
    """Samples at most `count` boxes at random, at most `foreground_share` of them foreground, the rest background.

    The random numbers come from Paddle's generator: `paddle.seed` before a training step makes the step reproducible.
    """

    count: PositiveInt = 256
    foreground_share: Fraction = 0.5

    def __post_init__(self) -> None:
        if self.foreground_share > 0 and int(self.count * self.foreground_share) == 0:
            reason = f"foreground_share {self.foreground_share:g} of count {self.count} is less than one box"
            raise IncompatibleArguments("count", f"{reason}; raise one of the two, or set foreground_share to 0")

    @paddle.no_grad()
    def __call__(self, labels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Sample from the labels [A] of each image; return its foreground and background indices, both ascending."""
        masks = [part == kind for part in labels for kind in (FOREGROUND, BACKGROUND)]
        available, sampled = count_true(masks), []
        for i in range(0, len(masks), 2):
            foreground = sample_true(masks[i], available[i], int(self.count * self.foreground_share))
            background = sample_true(masks[i + 1], available[i + 1], self.count - foreground.shape[0])
            sampled.append((foreground, background))
        return sampled


def count_true(masks: Sequence[Tensor]) -> list[int]:
    """Return the number of true entries of each bool tensor. Synchronizes with the GPU once for all of them."""
    return paddle.stack([mask.astype("int64").sum() for mask in masks]).tolist()


def sample_true(mask: Tensor, available: int, count: int) -> Tensor:
    """Sample at most `count` of the `available` true entries of a bool [A]; return their indices, ascending."""
    ranks = paddle.arange(available) if available <= count else paddle.randperm(available)[:count].sort()
    return paddle.searchsorted(mask.astype("int64").cumsum(), ranks + 1)
