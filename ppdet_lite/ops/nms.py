"""Non-maximum suppression within groups, and ranks and counts within groups.

There is no loop over images, and shapes may be unknown while a graph is traced, so that the same code serves training,
inference and export for any batch size.

Paddle's kernel compares every kept box with all boxes after it: its cost grows with the square of the boxes in a call.
On a GPU it also copies one bit per pair of boxes to the host, and launches an empty grid for no boxes. `grouped_nms`
therefore sorts the boxes by group and passes whole groups to each call, until a group would exceed BOXES_PER_CALL. Two
neighboring calls together have more boxes than that, so that D boxes take at most 1 + 2 * D / BOXES_PER_CALL calls. A
call has at most BOXES_PER_CALL boxes or one larger group; no boxes take no call.
"""

from collections.abc import Callable

import paddle
from paddle import Tensor
from paddle.vision.ops import nms

from ppdet_lite.ops import dispatch

BOXES_PER_CALL = 512  # on a CPU and in a graph: a call then takes about as long as the rest of its iteration
BOXES_PER_CALL_GPU = 4096  # each call synchronizes; its mask, of one bit per pair of boxes, has 2 MiB


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Run greedy NMS in each group: boxes [D, 4], scores [D], groups [D] int64 -> kept indices [K], best score first.

    Boxes of different groups (images, classes or pyramid levels) never suppress each other. Boxes of equal score are
    processed in their order.
    """
    return _grouped_nms(boxes, scores, groups, iou_threshold, _boxes_per_call(scores))


def nms_mask(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Return the mask of the boxes that `grouped_nms` keeps: boxes [D, 4], scores [D], groups [D] int64 -> bool [D].

    In eager mode all groups are in one call, so the caller has to bound D.
    """
    limit = scores.shape[0] if paddle.in_dynamic_mode() else _boxes_per_call(scores)
    kept = _grouped_nms(boxes, scores, groups, iou_threshold, limit)
    return paddle.scatter(paddle.zeros_like(scores), kept, paddle.ones_like(kept, dtype=scores.dtype)) > 0


@paddle.jit.not_to_static
def _boxes_per_call(scores: Tensor) -> int:
    """Return the number of boxes up to which a call takes several groups; a graph does not depend on the device."""
    return BOXES_PER_CALL_GPU if dispatch.eager_on_gpu(scores) else BOXES_PER_CALL


def _grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """See `grouped_nms`. limit: number of boxes up to which a call takes several groups."""
    by_score = paddle.argsort(scores, descending=True, stable=True)
    boxes, groups = paddle.gather(boxes, by_score), paddle.gather(groups, by_score)
    if not paddle.in_dynamic_mode():
        kept = _nms_by_group(_nms_in_graph, boxes, groups, iou_threshold, limit)
    elif scores.shape[0] > limit:
        kept = _nms_by_group(_nms_in_calls, boxes, groups, iou_threshold, limit)
    elif scores.shape[0]:
        kept = nms(_separate(boxes, groups), iou_threshold)
    else:
        kept = by_score
    return paddle.gather(by_score, kept)


def _nms_by_group(
    function: Callable[..., Tensor], boxes: Tensor, groups: Tensor, iou_threshold: float, limit: int
) -> Tensor:
    """Return the kept positions, in ascending order, by a function for boxes that are sorted by group."""
    by_group = paddle.argsort(groups, stable=True)
    kept = function(paddle.gather(boxes, by_group), paddle.gather(groups, by_group), iou_threshold, limit)
    return paddle.sort(paddle.gather(by_group, kept))


def _nms_in_graph(boxes: Tensor, groups: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Return the kept positions of boxes that are sorted by group: `_nms_in_calls` as a loop of the traced graph.

    `deployment.onnx_convert` replaces the whole loop.
    """
    count = paddle.shape(groups).astype("int64")
    ends = _ends_of_calls(groups, limit)
    shifted = _separate(boxes, groups)

    def has_boxes(start: Tensor, _: Tensor) -> Tensor:
        return start < count

    def suppress(start: Tensor, kept: Tensor) -> list[Tensor]:
        end = paddle.gather(ends, start)
        part = nms(paddle.slice(shifted, [0], start, end), iou_threshold)
        return [end, paddle.concat([kept, part + start])]

    start, kept = paddle.zeros([1], dtype="int64"), paddle.zeros([0], dtype="int64")
    return paddle.static.nn.while_loop(has_boxes, suppress, [start, kept])[1]


def _nms_in_calls(boxes: Tensor, groups: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Return the kept positions of boxes that are sorted by group, then by descending score, in ascending order."""
    ends = _ends_of_calls(groups, limit).numpy()
    shifted = _separate(boxes, groups)
    start, kept = 0, []
    while start < len(ends):
        end = int(ends[start])
        kept.append(nms(shifted[start:end], iou_threshold) + start)
        start = end
    return paddle.concat(kept)


def _ends_of_calls(groups: Tensor, limit: int) -> Tensor:
    """Return, for each position [D] of sorted groups, the end of a call that starts there: int64 [D].

    It is the end of the last whole group within `limit` boxes, or of the first group if that is larger.
    """
    position, count = paddle.arange(groups.shape[0], dtype="int64"), paddle.shape(groups).astype("int64")
    starts = paddle.concat([paddle.searchsorted(groups, groups), count])  # the group of a position starts there
    end = paddle.gather(starts, paddle.minimum(position + limit, count))
    return paddle.where(end > position, end, paddle.searchsorted(groups, groups, right=True))


def _separate(boxes: Tensor, groups: Tensor) -> Tensor:
    """Shift each group so far that it overlaps no other: boxes [D, 4], groups [D] -> float64 [D, 4].

    float64 keeps the shifted coordinates exact enough; in float32 the corners of the 80th class of the 8th image would
    be rounded to 1/16 pixel.
    """
    boxes, groups = boxes.astype("float64"), groups.astype("float64")
    largest = paddle.concat([boxes.flatten().abs(), paddle.ones([1], dtype="float64")]).max()  # D may be 0
    # unsqueeze before the product: oneDNN's fusion of "multiply, then unsqueeze" loses the new axis in float64
    return boxes + groups.unsqueeze(-1) * (2 * largest + 1)


def rank_in_group(groups: Tensor, group_count: Tensor | int) -> Tensor:
    """Return, for each entry, how many earlier entries have the same group: groups [D] int64 -> ranks [D] int64."""
    member = (groups.unsqueeze(1) == paddle.arange(group_count, dtype=groups.dtype)).astype("int64")
    return (paddle.cumsum(member, axis=0) * member).sum(axis=1) - 1


def count_groups(groups: Tensor, group_count: Tensor | int) -> Tensor:
    """Return the number of entries in each group: groups [D] int64 -> counts [group_count] int32."""
    member = groups.unsqueeze(1) == paddle.arange(group_count, dtype=groups.dtype)
    return member.astype("int32").sum(axis=0, dtype="int32")
