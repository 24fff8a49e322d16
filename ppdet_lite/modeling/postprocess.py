"""Postprocessing of the box head's output to final detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppdet_lite.config.constrained_types import Fraction, PositiveInt
from ppdet_lite.config.registry import register
from ppdet_lite.ops.boxes import clip_boxes, decode_boxes
from ppdet_lite.ops.nms import count_groups, grouped_nms, rank_in_group
from ppdet_lite.ops.roi_levels import image_of_roi
from ppdet_lite.structures import BoxHeadOutput, PackedDetections, Rois


@register
@dataclass(frozen=True)
class Postprocess:
    """Decodes boxes, drops low scores, applies NMS per class, and keeps the best, in pixels of the original image.

    Args:
        score_threshold: boxes whose score is not above it are dropped.
        nms_iou: of two boxes of a class with a larger IoU, the one with the lower score is dropped.
        max_detections: maximum number of detections per image, over all classes.
    """

    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.5
    max_detections: PositiveInt = 100

    @paddle.no_grad()
    def __call__(
        self,
        output: BoxHeadOutput,
        rois: Rois,
        delta_weights: Sequence[float],
        image_sizes: Tensor,
        original_sizes: Tensor,
        scales: Tensor,
    ) -> PackedDetections:
        """Return detections in original-image pixels.

        image_sizes, original_sizes [N, 2] (h, w) of the network input and of the original; scales [N, 2] (y, x) =
        resized / original size. NMS compares boxes that are clipped to the network input. Detections are clipped to the
        original only: image_sizes are rounded, so that a border of the network input may lie inside the original.
        """
        image = image_of_roi(rois.counts, rois.boxes.shape[0])
        scores = F.softmax(output.logits.astype("float32"), axis=1)[:, :-1]
        deltas = output.deltas.astype("float32").reshape([rois.boxes.shape[0], -1, 4])
        boxes = decode_boxes(rois.boxes.unsqueeze(1), deltas, delta_weights)
        boxes = boxes.expand([-1, scores.shape[1], 4])  # when class-agnostic, all classes share one box
        clipped = clip_boxes(boxes, paddle.gather(image_sizes, image).unsqueeze(1))
        has_area = (clipped[..., 2:] > clipped[..., :2]).all(axis=-1)
        candidates = paddle.nonzero((scores > self.score_threshold) & has_area)
        roi, classes = candidates[:, 0], candidates[:, 1]
        image_count, num_classes = image_sizes.shape[0], scores.shape[1]
        flat = roi * num_classes + classes
        scores, image = paddle.gather(scores.flatten(), flat), paddle.gather(image, roi)
        clipped = paddle.gather(clipped.reshape([-1, 4]), flat)
        kept = grouped_nms(clipped, scores, image * num_classes + classes, self.nms_iou)
        kept = paddle.gather(kept, paddle.argsort(paddle.gather(image, kept), stable=True))
        rank = rank_in_group(paddle.gather(image, kept), image_count)
        kept = paddle.gather(kept, paddle.nonzero(rank < self.max_detections).flatten())
        # float64, because oneDNN's float32 kernels crash if D = 0; for float64 it has none, and Paddle's are used
        boxes = paddle.gather(boxes.reshape([-1, 4]), paddle.gather(flat, kept)).astype("float64")
        image, original_sizes = paddle.gather(image, kept), original_sizes.astype("float64")
        factor = paddle.gather(scales.astype("float64"), image)[:, ::-1]  # (x, y)
        boxes = clip_boxes(boxes / paddle.concat([factor, factor], axis=1), paddle.gather(original_sizes, image))
        return PackedDetections(
            boxes.astype("float32"),
            paddle.gather(scores, kept),
            paddle.gather(classes, kept),
            count_groups(image, image_count),
        )


def recover_sizes(image_sizes: Tensor, scales: Tensor) -> Tensor:
    """Return original sizes [N, 2], computed as image_sizes / scales and rounded.

    They are exact if image_sizes = scales * original sizes. If image_sizes were rounded and scales were not, they are
    wrong by up to half a pixel of the network input: 3456 x 5184 at a scale of 640 / 5184 becomes 427 x 640, from which
    3459 x 5184 is recovered.
    """
    return paddle.floor(image_sizes.astype("float64") / scales.astype("float64") + 0.5).astype("float32")
