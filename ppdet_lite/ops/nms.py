"""Non-maximum suppression within groups, and ranks and counts within groups.

There is no loop over images, and shapes may be unknown while a graph is traced, so that the same code serves training,
inference and export for any batch size.
"""

import paddle
from paddle import Tensor
from paddle.vision.ops import nms


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Run greedy NMS in each group: boxes [D, 4], scores [D], groups [D] int64 -> kept indices [K], best score first.

    Boxes of different groups (images, classes or pyramid levels) never suppress each other: each group is shifted so
    far that it overlaps no other. float64 keeps the shifted coordinates exact enough; in float32 the corners of the
    80th class of the 8th image would be rounded to 1/16 pixel.
    """
    order = paddle.argsort(scores, descending=True, stable=True)
    boxes = paddle.gather(boxes, order).astype("float64")
    groups = paddle.gather(groups, order).astype("float64")
    largest = paddle.concat([boxes.flatten().abs(), paddle.ones([1], dtype="float64")]).max()  # D may be 0
    # unsqueeze before the product: oneDNN's fusion of "multiply, then unsqueeze" loses the new axis in float64
    kept = nms(boxes + groups.unsqueeze(-1) * (2 * largest + 1), iou_threshold)
    return paddle.gather(order, kept)


def nms_mask(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Return the mask of the boxes that `grouped_nms` keeps: boxes [D, 4], scores [D], groups [D] int64 -> bool [D]."""
    kept = grouped_nms(boxes, scores, groups, iou_threshold)
    return paddle.scatter(paddle.zeros_like(scores), kept, paddle.ones_like(kept, dtype=scores.dtype)) > 0


def rank_in_group(groups: Tensor, group_count: Tensor | int) -> Tensor:
    """Return, for each entry, how many earlier entries have the same group: groups [D] int64 -> ranks [D] int64."""
    member = (groups.unsqueeze(1) == paddle.arange(group_count, dtype=groups.dtype)).astype("int64")
    return (paddle.cumsum(member, axis=0) * member).sum(axis=1) - 1


def count_groups(groups: Tensor, group_count: Tensor | int) -> Tensor:
    """Return the number of entries in each group: groups [D] int64 -> counts [group_count] int32."""
    member = groups.unsqueeze(1) == paddle.arange(group_count, dtype=groups.dtype)
    return member.astype("int32").sum(axis=0, dtype="int32")
