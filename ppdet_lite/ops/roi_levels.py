"""The image and pyramid level of each RoI, and pooling level by level."""

import math
from collections.abc import Callable, Sequence

import paddle
from paddle import Tensor

from ppdet_lite.ops.boxes import box_area
from ppdet_lite.ops.nms import count_groups
from ppdet_lite.structures import Rois

_EPSILON = 1e-8  # keeps the logarithm of an empty RoI's size finite
_ROUND_UP = 1 + 1e-6  # keeps a side of exactly `canonical_size` on `canonical_level` in spite of rounding errors


def image_of_roi(counts: Tensor, total: Tensor | int) -> Tensor:
    """Return the image index of each packed RoI: counts [N] -> [R] int64; total is R."""
    ends = paddle.cumsum(counts.astype("int64"))
    return (paddle.arange(total, dtype="int64").unsqueeze(1) >= ends).astype("int64").sum(axis=1)


def pyramid_level(boxes: Tensor, level_count: int, canonical_size: float, canonical_level: int) -> Tensor:
    """Assign each box to a pyramid level by its size (FPN, equation 1): [R, 4] -> [R] int64 in 0..level_count-1.

    A square box of side `canonical_size` goes to `canonical_level`, one of half that side to the next finer level.
    """
    relative = paddle.sqrt(box_area(boxes)) / canonical_size
    level = paddle.floor(canonical_level + paddle.log2(relative * _ROUND_UP + _EPSILON))
    return level.clip(0, level_count - 1).astype("int64")


def square_level(side: float, level_count: int, canonical_size: float, canonical_level: int) -> int:
    """Return the `pyramid_level` of a square box of this side, computed on the host."""
    level = math.floor(canonical_level + math.log2(side / canonical_size * _ROUND_UP + _EPSILON))
    return min(max(level, 0), level_count - 1)


def pool_by_level(
    features: Sequence[Tensor], rois: Rois, level: Tensor, pool: Callable[[int, Tensor, Rois], Tensor]
) -> Tensor:
    """Pool each RoI from its own level; return the results in the order of the RoIs, [R, C, P, P].

    `pool(l, feature, rois_of_level)` is called for each level, also for one without RoIs. If there are several levels,
    this synchronizes with the GPU once.
    """
    if len(features) == 1:
        return pool(0, features[0], rois)
    image = image_of_roi(rois.counts, rois.boxes.shape[0])
    rows, pooled = _rows_by_level(level, len(features)), []
    for i, feature in enumerate(features):
        counts = count_groups(paddle.gather(image, rows[i]), rois.counts.shape[0])
        pooled.append(pool(i, feature, Rois(paddle.gather(rois.boxes, rows[i]), counts)))
    return paddle.gather(paddle.concat(pooled), paddle.argsort(paddle.concat(rows)))


def _rows_by_level(level: Tensor, level_count: int) -> list[Tensor]:
    """Return the indices of the RoIs of each level, ascending."""
    if paddle.in_dynamic_mode():
        return paddle.argsort(level, stable=True).split(count_groups(level, level_count).tolist())
    return [paddle.nonzero(level == i).flatten() for i in range(level_count)]  # sizes are unknown in a traced graph
