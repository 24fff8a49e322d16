"""Which ground truth an anchor or RoI answers for, and which of them are drawn for the loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import paddle
from paddle import Tensor
from pydantic import PositiveInt

from ppdet_lite.config.constrained_types import Share
from ppdet_lite.config.registry import register
from ppdet_lite.ops.boxes import box_coverage, box_iou
from ppdet_lite.structures import Targets

IGNORE, BACKGROUND, FOREGROUND = -1, 0, 1
PAIRS = 2**24  # of objects and boxes that are looked at together, 64 MiB for each number of a pair


class Matches(NamedTuple):
    """The assignment of A boxes to the G ground truths of one image."""

    labels: Tensor  # [A] int64: FOREGROUND, BACKGROUND or IGNORE
    target_index: Tensor  # [A] int64: the ground truth of highest IoU; 0 where G = 0


@register
@dataclass(frozen=True)
class Matcher:
    """Assigns boxes to ground truths by IoU (Faster R-CNN, section 3.1.2).

    Args:
        foreground_iou: at least this IoU with some ground truth: foreground.
        background_iou: below this IoU with all: background. What lies between is ignored.
        keep_best: each ground truth also claims the boxes of highest IoU with it (ties included), however low.
        crowd_coverage: a box that is not foreground and lies with at least this share inside a crowd region is ignored:
            a crowd is neither an object to find nor background.
    """

    foreground_iou: Share = 0.5
    background_iou: Share = 0.5
    keep_best: bool = False
    crowd_coverage: Share = 0.5

    def __post_init__(self) -> None:
        if self.background_iou > self.foreground_iou:
            raise ValueError(f"background_iou {self.background_iou} is above foreground_iou {self.foreground_iou}")

    @paddle.no_grad()
    def __call__(self, boxes: Tensor, targets: Targets) -> Matches:
        """Match boxes [A, 4] with the targets of one image."""
        labels, index = self._match_objects(boxes, targets.boxes)
        if targets.crowds.shape[0]:
            in_crowd = box_coverage(boxes, targets.crowds).max(axis=1) >= self.crowd_coverage
            labels = paddle.where(in_crowd & (labels != FOREGROUND), paddle.full_like(labels, IGNORE), labels)
        return Matches(labels, index)

    def _match_objects(self, boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        if objects.shape[0] == 0:
            zeros = paddle.zeros([boxes.shape[0]], dtype="int64")
            return zeros + BACKGROUND, zeros
        length = max(PAIRS // objects.shape[0], 1)
        kept = [box_iou(objects, boxes)] if boxes.shape[0] <= length else []  # too many to keep are computed again
        found = [(iou.max(axis=0), iou.argmax(axis=0)) for iou in kept or _each_iou(objects, boxes, length)]
        best, index = (paddle.concat([part[k] for part in found]) for k in range(2))
        foreground = best >= self.foreground_iou
        if self.keep_best:
            highest = paddle.stack([iou.max(axis=1) for iou in kept or _each_iou(objects, boxes, length)])
            highest = highest.max(axis=0).unsqueeze(1)
            ious = kept or _each_iou(objects, boxes, length)
            claimed = [((iou == highest) & (highest > 0)).any(axis=0) for iou in ious]
            foreground = foreground | paddle.concat(claimed)
        labels = foreground.astype("int64")  # FOREGROUND or BACKGROUND
        undecided = ~foreground & (best >= self.background_iou)
        return paddle.where(undecided, paddle.full_like(labels, IGNORE), labels), index


def _each_iou(objects: Tensor, boxes: Tensor, length: int) -> Iterator[Tensor]:
    """IoU of objects [G, 4] with boxes [A, 4], so many of them at a time."""
    return (box_iou(objects, boxes[start : start + length]) for start in range(0, boxes.shape[0], length))


@register
@dataclass(frozen=True)
class Sampler:
    """Draws a fixed number of boxes at random, with at most a given share of foreground.

    Where there is less foreground than its share, background fills the rest. Randomness comes from Paddle's generator:
    `paddle.seed` before a training step makes the step reproducible.
    """

    count: PositiveInt = 256
    foreground_share: Share = 0.5

    @paddle.no_grad()
    def __call__(self, labels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Draw from the labels [A] of each image: its foreground indices and its background indices, each ascending."""
        candidates = [part == kind for part in labels for kind in (FOREGROUND, BACKGROUND)]
        found, drawn = count_true(candidates), []
        for i in range(0, len(candidates), 2):
            foreground = draw(candidates[i], found[i], int(self.count * self.foreground_share))
            background = draw(candidates[i + 1], found[i + 1], self.count - foreground.shape[0])
            drawn.append((foreground, background))
        return drawn


def count_true(masks: Sequence[Tensor]) -> list[int]:
    """How many entries of each bool tensor are true. The device is waited for once, however many they are."""
    return paddle.stack([mask.astype("int64").sum() for mask in masks]).tolist()


def draw(candidates: Tensor, found: int, count: int) -> Tensor:
    """Indices, ascending, of at most `count` random ones of the `found` true entries of a bool [A]."""
    ranks = paddle.arange(found) if found <= count else paddle.randperm(found)[:count].sort()
    return paddle.searchsorted(candidates.astype("int64").cumsum(), ranks + 1)
