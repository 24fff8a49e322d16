"""RoIAlign over a feature pyramid, and the sharing of RoIs among its levels."""

import math
from collections.abc import Callable, Sequence

import paddle
from paddle import Tensor
from paddle.vision.ops import roi_align

from ppdet_lite.ops.boxes import box_area
from ppdet_lite.ops.checks import full_precision
from ppdet_lite.ops.nms import count_groups
from ppdet_lite.ops.roi_windows import window_roi_align
from ppdet_lite.structures import Rois

_NEAR_ZERO = 1e-8  # keeps the logarithm of a RoI's size finite
_UP = 1 + 1e-6  # keeps a side of exactly 224 from falling a level by rounding


def image_of_roi(counts: Tensor, total: Tensor | int) -> Tensor:
    """Which image each packed RoI belongs to: counts [N] -> [R] int64."""
    ends = paddle.cumsum(counts.astype("int64"))
    return (paddle.arange(total, dtype="int64").unsqueeze(1) >= ends).astype("int64").sum(axis=1)


def pyramid_level(boxes: Tensor, level_count: int, canonical_size: float, canonical_level: int) -> Tensor:
    """Level of each box [R, 4] -> [R] int64 in 0..level_count-1 (FPN, equation 1).

    A box of side `canonical_size` goes to `canonical_level`; half the side, one level finer.
    """
    relative = paddle.sqrt(box_area(boxes)) / canonical_size
    level = paddle.floor(canonical_level + paddle.log2(relative * _UP + _NEAR_ZERO))
    return level.clip(0, level_count - 1).astype("int64")


def square_level(side: float, level_count: int, canonical_size: float, canonical_level: int) -> int:
    """`pyramid_level` of a square of this side."""
    level = math.floor(canonical_level + math.log2(side / canonical_size * _UP + _NEAR_ZERO))
    return min(max(level, 0), level_count - 1)


def pool_by_level(
    features: Sequence[Tensor], rois: Rois, level: Tensor, pool: Callable[[int, Tensor, Rois], Tensor]
) -> Tensor:
    """Pool each RoI from its own level, in the order of the RoIs: [R, C, P, P].

    `pool(l, feature, rois_of_level)` may get a level without RoIs. With one level nothing is read; else a GPU is waited
    for once.
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
    """Which RoIs are of each level, ascending."""
    if paddle.in_dynamic_mode():
        return paddle.argsort(level, stable=True).split(count_groups(level, level_count).tolist())
    return [paddle.nonzero(level == i).flatten() for i in range(level_count)]  # no sizes are known in a graph


def pyramid_roi_align(
    features: Sequence[Tensor],
    strides: Sequence[int],
    rois: Rois,
    level: Tensor,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign (Mask R-CNN, section 3) of each RoI on its level: [R, C, P, P].

    sampling_ratio: samples per bin and axis; 0 adapts it to the RoI's size, ceil(bin size in cells).
    aligned: the half-pixel shift that puts a cell's value at its centre. Computed in float32, or in float64 if the
    features are. A traced graph gathers windows instead of calling Paddle's operator: see `ops.roi_windows`.
    """

    def pool(i: int, feature: Tensor, part: Rois) -> Tensor:
        return roi_align(feature, part.boxes, part.counts, output_size, 1.0 / strides[i], sampling_ratio or -1, aligned)

    with paddle.amp.auto_cast(enable=False):
        features = full_precision(*features)
        if paddle.in_dynamic_mode():
            return pool_by_level(features, rois, level, pool)
        image = image_of_roi(rois.counts, rois.boxes.shape[0])

        def natively(some: Tensor) -> Tensor:
            counts = count_groups(paddle.gather(image, some), rois.counts.shape[0])
            chosen = Rois(paddle.gather(rois.boxes, some), counts)
            return pool_by_level(features, chosen, paddle.gather(level, some), pool)

        scales = [1.0 / stride for stride in strides]
        return window_roi_align(
            features, scales, rois.boxes, image, level, output_size, sampling_ratio, aligned, natively
        )
