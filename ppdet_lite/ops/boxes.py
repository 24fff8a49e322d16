"""Box arithmetic: areas, IoU, clipping and the delta coding of R-CNN.

Every box is float32 [x1, y1, x2, y2], continuous: width = x2 - x1. Nothing here rounds or adds one.
"""

import math
from collections.abc import Sequence

import paddle
from paddle import Tensor

from ppdet_lite.ops import dispatch

MAX_LOG_SCALE = math.log(1000.0 / 16)  # dw, dh are clamped here before exp: a box grows at most 62.5 fold


def box_area(boxes: Tensor) -> Tensor:
    """Area of boxes [..., 4] -> [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair: [A, 4], [B, 4] -> [A, B]; 0 where a pair's union is empty.

    With few first and many second it is fastest.
    """
    intersection = _pairwise_intersection(first, second)
    area, other = _pairs(box_area(first), box_area(second))
    return _safe_ratio(intersection, area + other - intersection)


def box_coverage(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box that lies inside each region: [A, 4], [B, 4] -> [A, B] in 0..1.

    It is COCO's overlap with a crowd region: intersection over the area of the box alone.
    """
    return _safe_ratio(_pairwise_intersection(boxes, regions), box_area(boxes).unsqueeze(1))


def _pairwise_intersection(first: Tensor, second: Tensor) -> Tensor:
    def extent(low: int, high: int) -> Tensor:
        right = paddle.minimum(*_pairs(first[:, high], second[:, high]))
        left = paddle.maximum(*_pairs(first[:, low], second[:, low]))
        return (right - left).clip(min=0)

    return extent(0, 2) * extent(1, 3)


def _pairs(first: Tensor, second: Tensor) -> Sequence[Tensor]:
    """Every pair of [A] and [B] as two tensors that combine to [A, B].

    A CPU combines two of equal shape ten times faster, the copies included, than it broadcasts both; a GPU needs none.
    """
    pair = first.unsqueeze(1), second
    return paddle.broadcast_tensors(pair) if dispatch.on_cpu(first) else pair


def _safe_ratio(part: Tensor, whole: Tensor) -> Tensor:
    return paddle.where(whole > 0, part / whole.clip(min=1e-12), paddle.zeros_like(part))


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes [..., 4] into images of `sizes` (h, w), broadcast against the boxes' leading axes: [..., 2]."""
    limits = sizes[..., 1::-1].astype(boxes.dtype)  # (w, h)
    limits = paddle.concat([limits, limits], axis=-1)
    return paddle.minimum(boxes.clip(min=0), limits)


def encode_boxes(boxes: Tensor, targets: Tensor, weights: Sequence[float]) -> Tensor:
    """The deltas (dx, dy, dw, dh) that turn `boxes` into `targets`: [R, 4], [R, 4] -> [R, 4].

    Centre shifts are relative to the box's size, size changes are logarithmic, each times its weight
    (R-CNN, appendix C). Both must have positive width and height.
    """
    x, y, width, height = _centre_form(boxes)
    target_x, target_y, target_width, target_height = _centre_form(targets)
    deltas = [
        (target_x - x) / width * weights[0],
        (target_y - y) / height * weights[1],
        paddle.log(target_width / width) * weights[2],
        paddle.log(target_height / height) * weights[3],
    ]
    return paddle.stack(deltas, axis=-1)


def decode_boxes(boxes: Tensor, deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """Apply deltas to boxes, the inverse of `encode_boxes`; shapes [..., 4] broadcast.

    dw and dh are clamped at log(1000/16) so that an untrained network cannot overflow.
    """
    x, y, width, height = _centre_form(boxes)
    x = x + deltas[..., 0] / weights[0] * width
    y = y + deltas[..., 1] / weights[1] * height
    half_width = (deltas[..., 2] / weights[2]).clip(max=MAX_LOG_SCALE).exp() * width * 0.5
    half_height = (deltas[..., 3] / weights[3]).clip(max=MAX_LOG_SCALE).exp() * height * 0.5
    return paddle.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def _centre_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = boxes[..., 2] - boxes[..., 0]
    height = boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + width * 0.5, boxes[..., 1] + height * 0.5, width, height
