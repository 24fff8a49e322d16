"""Box arithmetic: areas, IoU, clipping, and the encoding of boxes as R-CNN deltas.

Boxes are float32 [x1, y1, x2, y2], continuous: width = x2 - x1, without rounding and without "+ 1".
"""

import math
from collections.abc import Sequence

import paddle
from paddle import Tensor

from ppdet_lite.ops import dispatch

MAX_LOG_SCALE = math.log(1000.0 / 16)  # upper limit of dw and dh before exp: a box grows at most 62.5-fold


def box_area(boxes: Tensor) -> Tensor:
    """Return the area of each box: [..., 4] -> [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of every pair: [A, 4], [B, 4] -> [A, B]; 0 where the union is empty.

    It is fastest if `first` has the fewer boxes.
    """
    intersection = _pairwise_intersection(first, second)
    area, other = _pairs(box_area(first), box_area(second))
    return _safe_ratio(intersection, area + other - intersection)


def box_coverage(boxes: Tensor, regions: Tensor) -> Tensor:
    """Return the fraction of each box's area inside each region: [A, 4], [B, 4] -> [A, B] in 0..1.

    The COCO metric measures the overlap with crowd regions in this way.
    """
    return _safe_ratio(_pairwise_intersection(boxes, regions), box_area(boxes).unsqueeze(1))


def _pairwise_intersection(first: Tensor, second: Tensor) -> Tensor:
    def extent(low: int, high: int) -> Tensor:
        right = paddle.minimum(*_pairs(first[:, high], second[:, high]))
        left = paddle.maximum(*_pairs(first[:, low], second[:, low]))
        return (right - left).clip(min=0)

    return extent(0, 2) * extent(1, 3)


def _pairs(first: Tensor, second: Tensor) -> Sequence[Tensor]:
    """Return [A] and [B] as two tensors that an elementwise operator combines to [A, B].

    On a CPU, copying both to [A, B] first is ten times faster than letting the operator broadcast.
    """
    pair = first.unsqueeze(1), second
    return paddle.broadcast_tensors(pair) if dispatch.on_cpu(first) else pair


def _safe_ratio(part: Tensor, whole: Tensor) -> Tensor:  # 0 where the whole is 0
    return paddle.where(whole > 0, part / whole.clip(min=1e-12), paddle.zeros_like(part))


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return boxes [..., 4] clipped to images of `sizes` [..., 2] (h, w); the leading axes broadcast."""
    limits = sizes[..., 1::-1].astype(boxes.dtype)  # (w, h)
    limits = paddle.concat([limits, limits], axis=-1)
    return paddle.minimum(boxes.clip(min=0), limits)


def encode_boxes(boxes: Tensor, targets: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the deltas (dx, dy, dw, dh) that transform `boxes` into `targets`: [R, 4], [R, 4] -> [R, 4].

    dx, dy: shift of the center relative to the box size; dw, dh: logarithm of the size ratio; each times its weight
    (R-CNN, appendix C). All boxes must have positive width and height.
    """
    x, y, width, height = _center_form(boxes)
    target_x, target_y, target_width, target_height = _center_form(targets)
    deltas = [
        (target_x - x) / width * weights[0],
        (target_y - y) / height * weights[1],
        paddle.log(target_width / width) * weights[2],
        paddle.log(target_height / height) * weights[3],
    ]
    return paddle.stack(deltas, axis=-1)


def decode_boxes(boxes: Tensor, deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """Apply deltas to boxes, the inverse of `encode_boxes`; shapes [..., 4] broadcast.

    dw and dh are clamped to at most log(1000/16), so that the predictions of an untrained network cannot overflow.
    """
    x, y, width, height = _center_form(boxes)
    x = x + deltas[..., 0] / weights[0] * width
    y = y + deltas[..., 1] / weights[1] * height
    half_width = (deltas[..., 2] / weights[2]).clip(max=MAX_LOG_SCALE).exp() * width * 0.5
    half_height = (deltas[..., 3] / weights[3]).clip(max=MAX_LOG_SCALE).exp() * height * 0.5
    return paddle.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def _center_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = boxes[..., 2] - boxes[..., 0]
    height = boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + width * 0.5, boxes[..., 1] + height * 0.5, width, height
